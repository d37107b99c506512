"""Ask the questions of benchmarks under one condition after the other, except those in the journals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.comparison.conditions import AnswerSet
from regaze.eval.run import journal
from regaze.eval.run.answers import collect_answers
from regaze.eval.run.engines import Engine
from regaze.eval.run.generate import error_text
from regaze.eval.run.requests import (
    AnswerRequest,
    BenchmarkRequests,
    Condition,
    ImageHashes,
    Method,
    build_requests,
)
from regaze.eval.run.tasks import EvalConfig, EvalTask
from regaze.progress import Progress


@dataclass(frozen=True)
class Asked:
    """A benchmark under one condition, asked.

    Attributes:
        requests: its questions. refused: why the method cannot run; None where it can.
    """

    requests: BenchmarkRequests
    refused: str | None = None


@dataclass
class Asker:
    """Fills the journal of this process. To be used as a context, which all processes enter together.

    Attributes:
        engine: what answers. fingerprint: of its model.
        output: the folder of the journals. hashes: of the images.
    """

    engine: Engine
    fingerprint: str
    output: Path
    config: EvalConfig
    progress: Progress
    hashes: ImageHashes = field(default_factory=ImageHashes)

    def __enter__(self) -> Asker:
        group = self.config.process_group
        stored = {key for batch in journal.read_batches(self.output) for key in batch.answers}
        self._answered: set[str] = set(group.broadcast(stored))
        group.barrier()  # no process writes before all have read
        self._journal = journal.Journal(self.output, group.rank)
        return self

    def __exit__(self, *error: object) -> None:
        self._journal.__exit__(*error)

    def condition(self, task: EvalTask, method: Method | None) -> Condition:
        """What decides the answers to a benchmark, besides its questions."""
        config = self.config
        return Condition(self.fingerprint, method, task.generate_kwargs, config.seed, config.thinking_tokens)

    def check(self, task: EvalTask, method: Method) -> None:
        """Raise why a method cannot run, as far as the engine knows it before it answers."""
        condition = self.condition(task, method)
        requests = build_requests(task.benchmark, condition, self.hashes).requests
        if missing := self._missing(requests):
            self.engine.generator(condition, self.config).check(missing)

    def _missing(self, requests: Mapping[str, AnswerRequest]) -> list[AnswerRequest]:
        return [request for request in requests.values() if request.key not in self._answered]

    def ask(self, task: EvalTask, label: str, method: Method | None, title: str) -> Asked:
        """Generate and store the missing answers; the plain model's where `method` is None.

        Args:
            label: of the condition, in the journal. title: for the progress.

        Raises:
            InputError: too many questions failed. Exception: what the plain model raises, and a method where
                the configuration says so.
        """
        config, condition = self.config, self.condition(task, method)
        requests = build_requests(task.benchmark, condition, self.hashes)
        missing = self._missing(requests.requests)
        total = len(requests.requests)
        self.progress(title, total - len(missing), total)
        failed = len(requests.unreadable)
        self._check_errors(failed, requests.unreadable.values())
        if not missing:
            return Asked(requests)
        generator = self.engine.generator(condition, config)
        try:
            generator.warm_up(missing)
        except Exception as error:
            if config.raise_method_errors or method is None:
                raise
            return Asked(requests, error_text(error))
        items_per_request = Counter(requests.item_keys)
        done = total - len(missing)
        for part in generator.answer_all(config.process_group.split(missing, config.batch_size)):
            cost, name = part.cost.to_dict(), task.benchmark.name
            self._journal.append(
                journal.Batch(label, name, part.answers, part.errors, cost, generator.obstacle)
            )
            self._answered.update(part.answers)
            failed += sum(items_per_request[request] for request in part.errors)
            self._check_errors(failed, part.errors.values())
            done += (len(part.answers) + len(part.errors)) * config.process_group.size
            self.progress(title, min(done, total), total)
        return Asked(requests)

    def answers(self, asked: Mapping[Any, Asked]) -> dict[Any, AnswerSet]:
        """The answers in the journals of all processes, without the conditions that cannot run.

        Raises:
            InputError: too many questions failed.
        """
        batches = list(journal.read_batches(self.output))
        opening = getattr(self.engine.reader, "thinking_opening", "")
        found = {
            key: collect_answers(each.requests, batches, opening)
            for key, each in asked.items()
            if each.refused is None
        }
        for each in found.values():
            self._check_errors(len(each.errors), each.errors.values())
        return found

    def _check_errors(self, failed: int, reasons: Iterable[str]) -> None:
        if failed > self.config.max_errors:
            example = next(iter(reasons), "")
            raise InputError(
                f"{failed} questions failed, more than --max-errors {self.config.max_errors} allows; one of "
                f"them: {example}"
            )
