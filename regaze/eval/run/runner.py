"""Run benchmarks on the plain model and under methods: generate answers, store them, score them.

A run may stop at any moment, by a signal, a full disk or a lost machine. Starting it again resumes it: what
the journals in the output folder hold is not generated twice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark
from regaze.eval.comparison.conditions import PLAIN, compare_conditions, non_share_figures
from regaze.eval.comparison.control_plan import ControlPlan, matched_length
from regaze.eval.run import fingerprint, journal, results
from regaze.eval.run.answers import answer_lengths, answer_rows, collect_answers
from regaze.eval.run.generate import AnswerGenerator, Model, error_text
from regaze.eval.run.process_group import ProcessGroup
from regaze.eval.run.requests import (
    BenchmarkRequests,
    Condition,
    ImageHashes,
    Method,
    build_requests,
    digest,
)
from regaze.toolkit.model.sampling_choice import with_sampling_choice
from regaze.writing import replace_file

#: called with a label, the number of answers that are there, and the total
Progress = Callable[[str, int, int], None]
#: benchmark and label of a condition
Key = tuple[str, str]


@dataclass(frozen=True)
class EvalTask:
    """A benchmark and the arguments of `generate` for it.

    Raises:
        BadParameterError: arguments of `generate` that contradict each other.
    """

    benchmark: Benchmark
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.generate_kwargs:
            given, chosen = dict(self.generate_kwargs), with_sampling_choice(self.generate_kwargs)
            if "do_sample" not in given and not chosen["do_sample"]:
                del chosen["do_sample"]  # greedy is the default: keys of stored answers stay
            object.__setattr__(self, "generate_kwargs", chosen)


@dataclass(frozen=True)
class EvalConfig:
    """How to run. Only the seed can change an answer, and only a sampled one.

    Attributes:
        batch_size: requests per batch.
        seed: of sampling and of the bootstrap.
        max_errors: how many questions may fail under one condition before the run stops.
        share_prefix: let questions about one image share its prefill where that is sound.
        process_group: the processes that share the work.
        raise_method_errors: raise the error of a method that cannot run, instead of noting it in the results.
    """

    batch_size: int = 16
    seed: int = 0
    max_errors: int = 10
    share_prefix: bool = True
    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    raise_method_errors: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}: expected at least 1")
        if self.max_errors < 0:
            raise InputError(f"max errors {self.max_errors}: expected 0 or more")


def evaluate_benchmark(
    gaze: Model,
    benchmark: Benchmark,
    method: Method | None,
    output: str | os.PathLike[str],
    *,
    model_name: str,
    progress: Progress | None = None,
    batch_size: int = 16,
    seed: int = 0,
    max_errors: int = 10,
    share_prefix: bool = True,
    controls: bool = False,
    **generate_kwargs: Any,
) -> dict[str, Any]:
    """One benchmark on the plain model and (unless `method` is None) under one method; see `evaluate`."""
    methods = {} if method is None else {str(method.to_dict()["method"]): method}
    config = EvalConfig(batch_size, seed, max_errors, share_prefix, raise_method_errors=True)
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
    gaze: Model,
    tasks: Sequence[EvalTask],
    methods: Mapping[str, Method],
    output: str | os.PathLike[str],
    *,
    model_name: str,
    config: EvalConfig | None = None,
    progress: Progress | None = None,
    files: Mapping[str, str] | None = None,
    controls: bool = False,
) -> dict[str, Any]:
    """Run every benchmark on the plain model and under each method; returns what results.json holds.

    Each method is compared with the plain model on the same questions. A question that fails (its image
    cannot be read, the model raises) is counted as an error, and its cluster is left out of the scores of
    both conditions. results.json, answers.jsonl and the journals lie in `output`; results of another
    configuration in that folder are renamed to results.1.json.

    Args:
        methods: by the label that tables show.
        files: further files that belong to the run, text by name: written before the first question.
        controls: run the controls of each method, too, and say whether it beats the best of them.

    Raises:
        InputError: no questions, a label or benchmark twice, a folder that cannot be written or that another
            process writes, more than `config.max_errors` failures, no question left to score.
        Exception: what the model raises when every question fails; with `config.raise_method_errors` also
            under a method.
    """
    config = config or EvalConfig()
    _check(tasks, methods)
    group, output = config.process_group, Path(output)
    with run_folder(output) if group.is_main else nullcontext():
        group.barrier()  # the other processes write only into a folder that exists and is locked
        progress = progress or (lambda *state: None)
        run = _Run(gaze, tasks, methods, output, model_name, config, progress, files or {}, controls)
        return run.execute()


@contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """A folder in which a run can write: it is made if needed, and locked during the block.

    Raises:
        InputError: it cannot be written, another process has it, or something else is in the place of a file.
    """
    with journal.locked_folder(folder):
        results.check_places(folder)
        yield


@dataclass
class _Run:
    """One call of `evaluate`."""

    gaze: Model
    tasks: Sequence[EvalTask]
    methods: Mapping[str, Method]
    output: Path
    model_name: str
    config: EvalConfig
    progress: Progress
    files: Mapping[str, str]
    with_controls: bool

    def __post_init__(self) -> None:
        self.model = fingerprint.describe_model(self.gaze, self.model_name)
        #: of each benchmark, without controls an empty one
        self.plans = {
            task.benchmark.name: ControlPlan.of_methods(
                task.benchmark.items, self.methods, task.generate_kwargs
            )
            if self.with_controls
            else ControlPlan()
            for task in self.tasks
        }
        self.conditions = {
            (task.benchmark.name, label): self._condition(task, method)
            for task in self.tasks
            for label, method in self._conditions_of(task).items()
        }
        #: conditions that cannot run, and the reason
        self.refused: dict[Key, str] = {}
        self.requests: dict[Key, BenchmarkRequests] = {}

    def _conditions_of(self, task: EvalTask) -> dict[str, Method | None]:
        """By label the plain model, the methods and the controls."""
        return {PLAIN: None, **self.methods, **self.plans[task.benchmark.name].controls}

    def _condition(self, task: EvalTask, method: Method | None) -> Condition:
        return Condition(self.model["fingerprint"], method, task.generate_kwargs, self.config.seed)

    def execute(self) -> dict[str, Any]:
        group, hashes = self.config.process_group, ImageHashes()
        record = self._header()
        if group.is_main:
            self._start(record)
        stored = {key for batch in journal.read_batches(self.output) for key in batch.answers}
        answered = set(group.broadcast(stored))
        group.barrier()  # no process writes before all have read
        with journal.Journal(self.output, group.rank) as file:
            for task in self.tasks:
                for label in self._conditions_of(task):
                    self._answer(task, label, hashes, answered, file)
            if self.with_controls:
                group.barrier()  # lengths are matched to all answers
                self._answer_matched(hashes, answered, file)
        group.barrier()
        if group.is_main:
            record = self._finish(record)
        group.barrier()
        return record

    def _answer_matched(self, hashes: ImageHashes, answered: set[str], file: journal.Journal) -> None:
        """Where a method shortens texts, ask for plain ones that are as short."""
        batches = list(journal.read_batches(self.output))
        for task in self.tasks:
            name, plan = task.benchmark.name, self.plans[task.benchmark.name]
            if plan.answers != "texts":
                continue
            lengths = {
                label: answer_lengths(self.gaze, collect_answers(self.requests[name, label], batches))
                for label in (PLAIN, *self.methods)
                if (name, label) not in self.refused
            }
            known = set(plan.controls)
            for label in self.methods:
                control = matched_length(lengths[PLAIN], lengths.get(label, ()))
                if control is not None and control != self.methods[label]:
                    plan.add(label, control, self.methods)
            for label in [label for label in plan.controls if label not in known]:
                self.conditions[name, label] = self._condition(task, plan.controls[label])
                self._answer(task, label, hashes, answered, file)

    def _header(self) -> dict[str, Any]:
        """results.json as it is before the first answer."""
        described = {task.benchmark.name: task.benchmark.describe() for task in self.tasks}
        conditions = sorted([*key, condition.digest()] for key, condition in self.conditions.items())
        return {
            "format": results.SCHEMA,
            "complete": False,
            "configuration": digest([[conditions, self.config.seed], results.finite(described)]),
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
                    "generation": dict(task.generate_kwargs),
                    "numbers": non_share_figures(task.benchmark),
                    "plain": None,
                    "methods": {},
                }
                for task in self.tasks
            },
        }

    def _start(self, record: Mapping[str, Any]) -> None:
        """Write an incomplete results.json; results of another configuration are renamed first."""
        try:
            earlier = results.read(self.output)
        except InputError:  # of an older version
            earlier = {"configuration": None}
        if earlier is None or earlier["configuration"] != record["configuration"]:
            results.set_aside(self.output)
        results.write(record, self.output)
        for name, text in self.files.items():
            replace_file(self.output / name, text)

    def _answer(
        self, task: EvalTask, label: str, hashes: ImageHashes, answered: set[str], file: journal.Journal
    ) -> None:
        """Generate and store the missing answers to one benchmark under one condition."""
        benchmark = task.benchmark.name
        key = benchmark, label
        config, condition = self.config, self.conditions[key]
        requests = self.requests[key] = build_requests(task.benchmark, condition, hashes)
        title = label if len(self.tasks) == 1 else f"{benchmark} {label}"
        missing = [request for request in requests.requests.values() if request.key not in answered]
        total = len(requests.requests)
        self.progress(title, total - len(missing), total)
        failed = len(requests.unreadable)
        _check_errors(failed, config.max_errors, requests.unreadable.values())
        if not missing:
            return
        generator = AnswerGenerator(
            self.gaze, condition, batch_size=config.batch_size, share_prefix=config.share_prefix
        )
        try:
            generator.warm_up(missing)
        except Exception as error:
            if config.raise_method_errors or label == PLAIN:
                raise
            self.refused[key] = error_text(error)
            return
        items_per_request = Counter(requests.item_keys)
        done = total - len(missing)
        for batch in generator.make_batches(config.process_group.split(missing, config.batch_size)):
            for part in generator.answer(batch):
                cost, sharing = part.cost.to_dict(), generator.sharing.obstacle
                file.append(journal.Batch(label, benchmark, part.answers, part.errors, cost, sharing))
                answered.update(part.answers)
                failed += sum(items_per_request[request] for request in part.errors)
                _check_errors(failed, config.max_errors, part.errors.values())
            done += len(batch) * config.process_group.size
            self.progress(title, min(done, total), total)

    def _finish(self, record: dict[str, Any]) -> dict[str, Any]:
        """Score the answers in the journals, and write results.json and answers.jsonl."""
        batches = list(journal.read_batches(self.output))
        rows: list[dict[str, Any]] = []
        for task in self.tasks:
            name = task.benchmark.name
            answers = {
                label: collect_answers(self.requests[name, label], batches)
                for label in self._conditions_of(task)
                if (name, label) not in self.refused
            }
            for label, each in answers.items():
                _check_errors(len(each.errors), self.config.max_errors, each.errors.values())
                rows += answer_rows(task.benchmark, label, each)
            refused = {label: reason for (where, label), reason in self.refused.items() if where == name}
            plan = self.plans[name]
            own = plan.of if self.with_controls else None
            scores = compare_conditions(task.benchmark, answers, refused, self.config.seed, own)
            record["benchmarks"][name] |= {**scores, "controls_of": plan.of}
            record["controls"] |= {label: control.to_dict() for label, control in plan.controls.items()}
        record["complete"] = True
        results.write_answers(rows, self.output)
        return results.write(record, self.output)


def _check(tasks: Sequence[EvalTask], methods: Mapping[str, Method]) -> None:
    names = [task.benchmark.name for task in tasks]
    if not tasks:
        raise InputError("no benchmark was given")
    if len(set(names)) < len(names):
        raise InputError(f"each benchmark once, got {', '.join(names)}")
    if PLAIN in methods:
        raise InputError(f"{PLAIN!r} is the model without a method; give the method another label")
    for task in tasks:
        if not task.benchmark.items:
            raise InputError(f"{task.benchmark.name}: no questions to ask")


def _check_errors(failed: int, limit: int, reasons: Iterable[str]) -> None:
    if failed > limit:
        example = next(iter(reasons), "")
        raise InputError(
            f"{failed} questions failed, more than --max-errors {limit} allows; one of them: {example}"
        )
