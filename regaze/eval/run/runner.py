"""Run benchmarks on the plain model and under methods: generate answers, store them, score them.

A run may stop at any moment, by a signal, a full disk or a lost machine. Starting it again resumes it: what
the journals in the output folder hold is not generated twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark
from regaze.eval.benchmarks.common.earlier import describe_earlier
from regaze.eval.comparison.conditions import PLAIN, compare_conditions, non_share_figures
from regaze.eval.comparison.control_plan import ControlPlan, Controls, matched_length
from regaze.eval.comparison.damage import check_damage
from regaze.eval.run import journal, results
from regaze.eval.run.answers import answer_lengths, answer_rows
from regaze.eval.run.asking import Asked, Asker
from regaze.eval.run.engines import Engine, TransformersEngine
from regaze.eval.run.generate import Model, error_text
from regaze.eval.run.requests import Method, digest
from regaze.eval.run.run_results import RunResults
from regaze.eval.run.tasks import EvalConfig, EvalTask, with_check
from regaze.eval.run.tuned import TuningStage
from regaze.eval.tuning.grids import Grid, Trial, grid_values, make_trials
from regaze.eval.tuning.tuning import Tuning
from regaze.progress import Progress, reporting
from regaze.writing import replace_file

#: benchmark and label of a condition
Key = tuple[str, str]


def evaluate_benchmark(
    gaze: Model,
    benchmark: Benchmark,
    method: Method | None,
    output: str | os.PathLike[str],
    *,
    model_name: str,
    progress: Progress | bool | None = None,
    batch_size: int = 16,
    seed: int = 0,
    max_errors: int = 10,
    share_prefix: bool = True,
    thinking_tokens: int = 0,
    controls: bool = False,
    **generate_kwargs: Any,
) -> RunResults:
    """One benchmark on the plain model and (unless `method` is None) under one method; see `evaluate`."""
    methods = {} if method is None else {str(method.to_dict()["method"]): method}
    config = EvalConfig(
        *(batch_size, seed, max_errors, share_prefix),
        raise_method_errors=True,
        thinking_tokens=thinking_tokens,
    )
    return evaluate(
        gaze,
        [EvalTask(benchmark, generate_kwargs)],
        methods,
        output,
        model_name=model_name,
        config=config,
        progress=progress,
        controls=controls,
    )


def evaluate(
    gaze: Model | None,
    tasks: Sequence[EvalTask],
    methods: Mapping[str, Method],
    output: str | os.PathLike[str],
    *,
    model_name: str,
    config: EvalConfig | None = None,
    progress: Progress | bool | None = None,
    files: Mapping[str, str] | None = None,
    controls: bool | Controls = False,
    tuning: Tuning | None = None,
    damage_check: EvalTask | None = None,
    engine: Engine | None = None,
) -> RunResults:
    """Run every benchmark on the plain model and under each method; returns what results.json holds.

    A notebook shows the figures as a table, which `to_dataframe()` gives as a whole.

    Each method is compared with the plain model on the same questions. A question that fails (its image
    cannot be read, the model raises) is counted as an error, and its cluster is left out of the scores of
    both conditions. results.json, answers.jsonl and the journals lie in `output`; results of another
    configuration in that folder are renamed to results.1.json.

    Args:
        gaze: the model; None where an engine answers.
        methods: by the label that tables show.
        progress: called with a label, the number of answers that are there, and the total. None: a bar where
            one is seen (a terminal, a notebook); True: always; False: never.
        files: further files that belong to the run, text by name: written before the first question.
        controls: run the controls of each method, too, and say whether it beats the best of them; `Controls`
            says which ones on which benchmarks.
        tuning: first choose parameters of the methods on some of the images; all figures but those under
            "tuning" are then of the other images, of the methods with the chosen parameters.
        damage_check: questions that say whether a method broke the model (`comparison.damage`), one of the
            tasks or a further one; without controls of their own.
        engine: answers in the place of `gaze`, such as a `VLLMEngine`.

    Raises:
        InputError: a model and an engine, or neither; a tuning that does not fit methods or questions, no
            questions, a label or benchmark twice, a folder that cannot be written or that another process
            writes, more than `config.max_errors` failures, no question left to score.
        Exception: what the model raises when every question fails; with `config.raise_method_errors` also
            under a method.
    """
    chosen = Controls() if controls is True else controls or None
    plan = _Plan(tasks, methods, chosen, tuning, damage_check)
    return _execute(_chosen(gaze, engine), plan, Path(output), model_name, config, progress, files)


def sweep(
    gaze: Model | None,
    tasks: Sequence[EvalTask],
    method: Method,
    grid: Grid,
    output: str | os.PathLike[str],
    *,
    model_name: str,
    config: EvalConfig | None = None,
    progress: Progress | bool | None = None,
    files: Mapping[str, str] | None = None,
    engine: Engine | None = None,
) -> RunResults:
    """Run every benchmark under a method with each value of its parameters; see `evaluate`.

    A value that is the best of a sweep was chosen on the questions that it is shown on: for figures of a
    chosen value see `Tuning`.

    Args:
        method: its other parameters stay.
        grid: {parameter: values}; of several parameters, all combinations.

    Raises:
        UnknownParameterError, BadParameterError: a grid that the method does not take.
        InputError, Exception: as `evaluate`.
    """
    points = make_trials(str(method.to_dict()["method"]), method, grid)
    plan = _Plan(tasks, {point.label: point.method for point in points}, points=points)
    return _execute(_chosen(gaze, engine), plan, Path(output), model_name, config, progress, files)


def _chosen(gaze: Model | None, engine: Engine | None) -> Engine:
    """What answers. Raises InputError where that is not said, or twice."""
    if (gaze is None) == (engine is None):
        raise InputError("what answers is either a wrapped model or an engine: give one of the two")
    return TransformersEngine(gaze) if gaze is not None else engine  # type: ignore[return-value]


def _execute(
    engine: Engine,
    plan: _Plan,
    output: Path,
    model_name: str,
    config: EvalConfig | None,
    progress: Progress | bool | None,
    files: Mapping[str, str] | None,
) -> RunResults:
    config = config or EvalConfig()
    plan.check()
    group = config.process_group
    with run_folder(output) if group.is_main else nullcontext():
        group.barrier()  # the other processes write only into a folder that exists and is locked
        with reporting(progress if group.is_main else False) as report:
            return _Run(engine, plan, output, model_name, config, report, files or {}).execute()


@contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """A folder in which a run can write: it is made if needed, and locked during the block.

    Raises:
        InputError: it cannot be written, another process has it, or something else is in the place of a file.
    """
    with journal.locked_folder(folder):
        results.check_places(folder)
        yield


@dataclass(frozen=True)
class _Plan:
    """What to run: the arguments of `evaluate`.

    Attributes:
        points: of a sweep, all of them methods.
    """

    tasks: Sequence[EvalTask]
    methods: Mapping[str, Method]
    controls: Controls | None = None
    tuning: Tuning | None = None
    damage_check: EvalTask | None = None
    points: Sequence[Trial] = ()

    @property
    def all_tasks(self) -> Sequence[EvalTask]:
        """The tasks, and at the end a damage check that is none of them."""
        return with_check(self.tasks, self.damage_check)

    def check(self) -> None:
        """Raises InputError: no benchmark or question, a name twice, or one that means something else."""
        names = [task.benchmark.name for task in self.all_tasks]
        if not self.tasks:
            raise InputError("no benchmark was given")
        if len(set(names)) < len(names):
            raise InputError(f"each benchmark once, got {', '.join(names)}")
        if PLAIN in self.methods:
            raise InputError(f"{PLAIN!r} is the model without a method; give the method another label")
        for task in self.all_tasks:
            if not task.benchmark.items:
                raise InputError(f"{task.benchmark.name}: no questions to ask")


@dataclass
class _Run:
    """One call of `evaluate` or `sweep`."""

    engine: Engine
    plan: _Plan
    output: Path
    model_name: str
    config: EvalConfig
    progress: Progress
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        #: with the questions that are tested. methods: from the choice on with the chosen parameters
        self.tasks, self.methods = self.plan.all_tasks, self.plan.methods
        self.model = self.engine.describe(self.model_name)
        self.asker = Asker(self.engine, self.model["fingerprint"], self.output, self.config, self.progress)
        self.stage: TuningStage | None = None
        if self.plan.tuning is not None:
            self.stage = TuningStage.of(self.plan.tuning, self.tasks, self.methods, self.asker.hashes)
            self.tasks = self.stage.tested
        #: the task that is asked for the damage check alone, and why it could not be
        self.added = self.tasks[-1] if len(self.tasks) > len(self.plan.tasks) else None
        self.unchecked: str | None = None
        self.plans = self._plan_controls()
        self.asked: dict[Key, Asked] = {}

    def _plan_controls(self) -> dict[str, ControlPlan]:
        """The controls of the methods on each benchmark; without controls, none."""
        return {task.benchmark.name: self._controls_on(task) for task in self.tasks}

    def _controls_on(self, task: EvalTask) -> ControlPlan:
        controls = self.plan.controls
        if controls is None or not self._has_controls(task):
            return ControlPlan()
        items, options = task.benchmark.items, task.generate_kwargs
        return ControlPlan.of_methods(items, self.methods, options, controls.general)

    def _has_controls(self, task: EvalTask) -> bool:
        controls = self.plan.controls
        if controls is None or task is self.added:
            return False
        return controls.benchmarks is None or task.benchmark.name in controls.benchmarks

    def _conditions_of(self, task: EvalTask) -> dict[str, Method | None]:
        """By label the plain model, the methods and the controls."""
        return {PLAIN: None, **self.methods, **self.plans[task.benchmark.name].controls}

    def execute(self) -> RunResults:
        group = self.config.process_group
        record = RunResults(self._header())
        if group.is_main:
            self._start(record)
        with self.asker:
            self._check_methods()
            if self.stage is not None:
                self._tune(self.stage)
            for task in self.tasks:
                self._ask_all(task)
            if self.plan.controls:
                group.barrier()  # lengths are matched to all answers
                self._ask_matched()
        group.barrier()
        if group.is_main:
            record = self._finish(record)
        group.barrier()
        return record

    def _check_methods(self) -> None:
        """Raise what a method cannot do here before any question is answered, where it ends the run."""
        if self.config.raise_method_errors:
            for task in self.tasks:
                for method in self.methods.values():
                    self.asker.check(task, method)

    def _tune(self, stage: TuningStage) -> None:
        """Choose parameters; from here on the methods are those with the chosen ones."""
        stage.run(self.asker, self.config.seed)
        left = {label: method for label, method in self.methods.items() if label not in stage.refused}
        self.methods = {label: stage.chosen.get(label, method) for label, method in left.items()}
        self.plans = self._plan_controls()

    def _ask_all(self, task: EvalTask) -> None:
        """Ask the plain model and the methods; a check that was added must not end the run."""
        try:
            for label, method in self._conditions_of(task).items():
                self._ask(task, label, method)
        except Exception as error:
            if task is not self.added:
                raise
            self.unchecked = error_text(error)
            self.tasks = [each for each in self.tasks if each is not task]
            name = task.benchmark.name
            self.asked = {key: asked for key, asked in self.asked.items() if key[0] != name}

    def _ask(self, task: EvalTask, label: str, method: Method | None) -> None:
        name = task.benchmark.name
        title = label if len(self.tasks) == 1 else f"{name} {label}"
        self.asked[name, label] = self.asker.ask(task, label, method, title)

    def _ask_matched(self) -> None:
        """Where a method shortens texts, ask for plain ones that are as short."""
        answers = self.asker.answers(self.asked)
        for task in self.tasks:
            name, plan = task.benchmark.name, self.plans[task.benchmark.name]
            if plan.answers != "texts":
                continue
            lengths = {
                label: answer_lengths(self.engine.reader, answers[name, label])
                for label in (PLAIN, *self.methods)
                if (name, label) in answers
            }
            known = set(plan.controls)
            for label in self.methods:
                control = matched_length(lengths[PLAIN], lengths.get(label, ()))
                if control is not None and control != self.methods[label]:
                    plan.add(label, control, self.methods)
            for label in [label for label in plan.controls if label not in known]:
                self._ask(task, label, plan.controls[label])

    def _header(self) -> dict[str, Any]:
        """results.json as it is before the first answer."""
        described = {
            task.benchmark.name: {**task.benchmark.describe(), **describe_earlier(task.benchmark)}
            for task in self.tasks
        }
        tokens = self.config.thinking_tokens
        thinking = {"thinking_tokens": tokens} if tokens else {}
        return {
            "format": results.SCHEMA,
            "complete": False,
            "configuration": self._configuration(described),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": self.model,
            "seed": self.config.seed,
            "batch_size": self.config.batch_size,
            "processes": self.config.process_group.size,
            "versions": results.versions(),
            "machine": results.machine(),
            "methods": {label: method.to_dict() for label, method in self.methods.items()},
            "controls": {},
            "benchmarks": {
                task.benchmark.name: {
                    "benchmark": described[task.benchmark.name],
                    "generation": dict(task.generate_kwargs) | thinking,
                    "numbers": non_share_figures(task.benchmark),
                    "plain": None,
                    "methods": {},
                }
                for task in self.tasks
            },
        }

    def _configuration(self, described: Mapping[str, Any]) -> str:
        """Hash of all that decides the figures: of a tuned run the trials, from which the choice follows."""
        conditions = sorted(
            [task.benchmark.name, label, self.asker.condition(task, method).digest()]
            for task in self.tasks
            for label, method in self._conditions_of(task).items()
        )
        parts: list[Any] = [[conditions, self.config.seed], results.finite(described)]
        if self.stage is not None:
            tried = [
                [label, self.asker.condition(self.stage.task, method).digest()]
                for label, method in self.stage.conditions.items()
            ]
            parts += [tried, results.finite(self.stage.describe())]
        return digest(parts)

    def _start(self, record: Mapping[str, Any]) -> None:
        """Write an incomplete results.json; results of another configuration are renamed first."""
        try:
            earlier = results.read(self.output)
        except InputError:  # of an older version
            earlier = RunResults(configuration=None)
        if earlier is None or earlier["configuration"] != record["configuration"]:
            results.set_aside(self.output)
        results.write(record, self.output)
        for name, text in self.files.items():
            replace_file(self.output / name, text)

    def _finish(self, record: RunResults) -> RunResults:
        """Score the answers in the journals, and write results.json and the files of answers."""
        found = self.asker.answers(self.asked)
        rows: list[dict[str, Any]] = []
        for task in self.tasks:
            name, plan = task.benchmark.name, self.plans[task.benchmark.name]
            labels = list(self._conditions_of(task))
            answers = {label: found[name, label] for label in labels if (name, label) in found}
            for label, each in answers.items():
                rows += answer_rows(task.benchmark, label, each)
            refused = {
                label: str(self.asked[name, label].refused) for label in labels if label not in answers
            }
            own: dict[str, list[str]] | None = plan.of if self._has_controls(task) else None
            if self.stage is not None:
                refused |= self.stage.refused
                own = own and own | {label: [] for label in self.stage.refused}
            scores = compare_conditions(task.benchmark, answers, refused, self.config.seed, own)
            record["benchmarks"][name] |= {**scores, "controls_of": plan.of}
            record["controls"] |= {label: control.to_dict() for label, control in plan.controls.items()}
        if self.plan.damage_check is not None:
            record["damage"] = self._damage(self.plan.damage_check.benchmark.name, record["benchmarks"])
        record["methods"] |= {label: method.to_dict() for label, method in self.methods.items()}
        if self.plan.points:
            record["sweep"] = self._describe_sweep(record)
        record["complete"] = True
        if self.stage is not None:
            record["tuning"] = self.stage.results
            results.write_answers(self.stage.rows, self.output, results.TUNING_ANSWERS)
        results.write_answers(rows, self.output)
        return results.write(record, self.output)

    def _damage(self, name: str, benchmarks: dict[str, Any]) -> dict[str, Any]:
        """The damage check in results.json; without answers the reason, and no benchmark."""
        added = self.added is not None
        if self.unchecked is None:
            return check_damage(benchmarks, name, added)
        del benchmarks[name]
        return {"benchmark": name, "added": added, "error": self.unchecked}

    def _describe_sweep(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What results.json has as "sweep"."""
        points = self.plan.points
        neutral = [point.label for point in points if getattr(point.method, "is_identity", False)]
        return {
            "method": points[0].method.to_dict()["method"],
            "grid": grid_values(points),
            "points": {point.label: point.parameters for point in points},
            "neutral": {
                label: {
                    name: benchmark["methods"][label]["answers_changed"]
                    for name, benchmark in record["benchmarks"].items()
                    if not benchmark["methods"][label].get("error")
                }
                for label in neutral
            },
        }
