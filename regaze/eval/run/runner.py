"""Ask benchmarks' questions of the plain model and under methods, keep every answer, score them.

A run may end at any moment, by a signal, a full disk or a lost machine, and is taken up again by starting it
again: what the journals in the output folder hold is not asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark
from regaze.eval.comparison.conditions import PLAIN, compare_conditions, non_share_figures
from regaze.eval.run import fingerprint, journal, results
from regaze.eval.run.answers import answer_rows, collect_answers
from regaze.eval.run.generate import Asker, Model, reason
from regaze.eval.run.process_group import Team
from regaze.eval.run.requests import Method, Pictures, Questions, Setting, digest, questions

#: called with what is going on, how much of it is done, and of how much
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """A benchmark, and what `generate` is given for it."""

    benchmark: Benchmark
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """How to go about a run; none of it decides an answer but the seed, and that only of sampled ones.

    Attributes:
        batch_size: questions asked at once.
        seed: of sampling and of the bootstrap.
        max_errors: how many questions may fail under one condition before the run stops.
        share_prefix: let questions about one image share its prefill where that is sound.
        team: the processes that share the work.
        must_work: a method that cannot run ends the run; else it is a line in the results.
    """

    batch_size: int = 16
    seed: int = 0
    max_errors: int = 10
    share_prefix: bool = True
    team: Team = field(default_factory=Team)
    must_work: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}: expected at least 1")
        if self.max_errors < 0:
            raise InputError(f"max errors {self.max_errors}: expected 0 or more")


def run(
    gaze: Model,
    benchmark: Benchmark,
    method: Method | None,
    output: Path,
    *,
    model_name: str,
    progress: Progress | None = None,
    batch_size: int = 16,
    seed: int = 0,
    max_errors: int = 10,
    share_prefix: bool = True,
    **generate_kwargs: Any,
) -> dict[str, Any]:
    """One benchmark, plain and (unless `method` is None) under one method; see `evaluate`."""
    methods = {} if method is None else {str(method.to_dict()["method"]): method}
    plan = Plan(batch_size, seed, max_errors, share_prefix, must_work=True)
    tasks = [Task(benchmark, generate_kwargs)]
    return evaluate(gaze, tasks, methods, output, model_name=model_name, plan=plan, progress=progress)


def evaluate(
    gaze: Model,
    tasks: Sequence[Task],
    methods: Mapping[str, Method],
    output: Path,
    *,
    model_name: str,
    plan: Plan | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask every question plain and under each method, score all; returns what results.json holds.

    Each method is compared with the plain model on the same questions. A question that fails (its image
    cannot be read, the model raises) becomes an error that is counted; its cluster is left out of the scores
    of both conditions. results.json, answers.jsonl and the journals are in `output`; results of another
    configuration that lie there are kept as results.1.json.

    Args:
        methods: by the label that tables show.

    Raises:
        InputError: nothing to ask, a label or benchmark twice, a folder that cannot be written or that
            another process writes, more than `plan.max_errors` failures, no question left to score.
        Exception: what the model raises when it cannot be asked at all; with `plan.must_work` also when it
            cannot be asked under a method.
    """
    plan = plan or Plan()
    _check(tasks, methods)
    with journal.locked_folder(output) if plan.team.is_first else nullcontext():
        plan.team.wait()  # the others write into the folder only when it is there and held
        running = _Run(gaze, tasks, methods, output, model_name, plan, progress or (lambda *state: None))
        return running.go()


@dataclass
class _Run:
    """A run in progress."""

    gaze: Model
    tasks: Sequence[Task]
    methods: Mapping[str, Method]
    output: Path
    model_name: str
    plan: Plan
    tell: Progress

    def __post_init__(self) -> None:
        self.model = fingerprint.describe(self.gaze, self.model_name)
        self.pictures = Pictures()
        #: per benchmark and label what could not be run, and why
        self.refused: dict[tuple[str, str], str] = {}

    def go(self) -> dict[str, Any]:
        conditions: dict[str, Method | None] = {PLAIN: None, **self.methods}
        settings = {
            (task.benchmark.name, label): self._setting(task, method)
            for task in self.tasks
            for label, method in conditions.items()
        }
        record = self._header({key: setting.digest() for key, setting in settings.items()})
        self._begin(record)
        asked: dict[tuple[str, str], Questions] = {}
        known = {key for batch in journal.batches(self.output) for key in batch.answers}
        answers = set(self.plan.team.agree(known))
        self.plan.team.wait()  # nobody writes before all have read
        with journal.Journal(self.output, self.plan.team.rank) as file:
            for task in self.tasks:
                for label in conditions:
                    key = (task.benchmark.name, label)
                    asked[key] = questions(task.benchmark, settings[key], self.pictures)
                    self._ask(key, settings[key], asked[key], answers, file)
        self.plan.team.wait()
        if self.plan.team.is_first:
            record = self._finish(record, asked)
        self.plan.team.wait()
        return record

    def _setting(self, task: Task, method: Method | None) -> Setting:
        return Setting(self.model["fingerprint"], method, task.options, self.plan.seed)

    def _header(self, settings: Mapping[tuple[str, str], str]) -> dict[str, Any]:
        """results.json as it stands before the first answer."""
        described = {task.benchmark.name: task.benchmark.describe() for task in self.tasks}
        decisive = [sorted([*key, value] for key, value in settings.items()), self.plan.seed]
        return {
            "format": results.SCHEMA,
            "complete": False,
            "configuration": digest([decisive, results.finite(described)]),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": self.model,
            "seed": self.plan.seed,
            "batch_size": self.plan.batch_size,
            "processes": self.plan.team.size,
            "versions": results.versions(),
            "machine": results.machine(),
            "methods": {label: method.to_dict() for label, method in self.methods.items()},
            "benchmarks": {
                task.benchmark.name: {
                    "benchmark": described[task.benchmark.name],
                    "generation": dict(task.options),
                    "numbers": non_share_figures(task.benchmark),
                    "plain": None,
                    "methods": {},
                }
                for task in self.tasks
            },
        }

    def _begin(self, record: Mapping[str, Any]) -> None:
        """results.json says that the run has begun; those of another configuration are set aside."""
        if not self.plan.team.is_first:
            return
        try:
            earlier = results.read(self.output)
        except InputError:  # of an older version
            earlier = {"configuration": None}
        if earlier is None or earlier["configuration"] != record["configuration"]:
            results.set_aside(self.output)
        results.write(record, self.output)

    def _ask(
        self,
        key: tuple[str, str],
        setting: Setting,
        asked: Questions,
        answered: set[str],
        file: journal.Journal,
    ) -> None:
        """Ask what has no answer yet of one benchmark under one condition."""
        benchmark, label = key
        plan = self.plan
        what, total = (label if len(self.tasks) == 1 else f"{benchmark} {label}"), len(asked.requests)
        missing = [request for request in asked.requests.values() if request.key not in answered]
        self.tell(what, total - len(missing), total)
        failed = len(asked.failed)
        _check_errors(failed, plan.max_errors, next(iter(asked.failed.values()), ""))
        if not missing:
            return
        asker = Asker(self.gaze, setting, batch_size=plan.batch_size, share_prefix=plan.share_prefix)
        try:
            asker.probe(missing)
        except Exception as error:
            if plan.must_work or label == PLAIN:
                raise
            self.refused[key] = reason(error)
            return
        uses = _uses(asked)
        done = total - len(missing)
        for batch in asker.plan(plan.team.share(missing, plan.batch_size)):
            for part in asker.ask(batch):
                cost, sharing = part.cost.to_dict(), asker.sharing.obstacle
                file.append(journal.Batch(label, benchmark, part.answers, part.errors, cost, sharing))
                answered.update(part.answers)
                failed += sum(uses[request] for request in part.errors)
                _check_errors(failed, plan.max_errors, next(iter(part.errors.values()), ""))
            done += len(batch) * plan.team.size
            self.tell(what, min(done, total), total)

    def _finish(self, record: dict[str, Any], asked: Mapping[tuple[str, str], Questions]) -> dict[str, Any]:
        """Score what the journals hold, and write it all down."""
        written = list(journal.batches(self.output))
        rows: list[dict[str, Any]] = []
        for task in self.tasks:
            name = task.benchmark.name
            outcomes = {
                label: collect_answers(asked[name, label], written)
                for label in (PLAIN, *self.methods)
                if (name, label) not in self.refused
            }
            for label, outcome in outcomes.items():
                _check_errors(
                    len(outcome.errors), self.plan.max_errors, next(iter(outcome.errors.values()), "")
                )
                rows += answer_rows(task.benchmark, label, outcome)
            refused = {label: why for (where, label), why in self.refused.items() if where == name}
            scored = compare_conditions(task.benchmark, outcomes, refused, self.plan.seed)
            record["benchmarks"][name] |= scored
        record["complete"] = True
        results.write_answers(rows, self.output)
        return results.write(record, self.output)


def _check(tasks: Sequence[Task], methods: Mapping[str, Method]) -> None:
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


def _check_errors(failed: int, limit: int, last: str) -> None:
    if failed > limit:
        raise InputError(
            f"{failed} questions failed, more than --max-errors {limit} allows; one of them: {last}"
        )


def _uses(asked: Questions) -> dict[str, int]:
    """How many items ask each request."""
    counts: dict[str, int] = {}
    for key in asked.of_item:
        if key is not None:
            counts[key] = counts.get(key, 0) + 1
    return counts
