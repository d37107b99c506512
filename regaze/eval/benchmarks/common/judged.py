"""Benchmarks whose answers a judge grades: prompts to the judge, and scores of its verdicts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval import judges
from regaze.eval.benchmarks.common.base import BaseBenchmark
from regaze.eval.benchmarks.common.final_answer import without_thinking
from regaze.reading import StrPath, read_text


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt to the judge with placeholders such as {question}.

    Verdicts depend on the wording. Ours asks for the same form of verdict as the official prompt. Only the
    official text (see `from_file`) with the original judge gives figures that compare with published ones.
    """

    text: str
    name: str

    @classmethod
    def from_file(cls, path: StrPath, placeholders: Sequence[str]) -> JudgePrompt:
        """The official prompt, or one of your own.

        Raises:
            InputError: The file cannot be read or lacks a placeholder.
        """
        path = Path(path)
        text = read_text(path)
        absent = [name for name in placeholders if f"{{{name}}}" not in text]
        if absent:
            raise InputError(
                f"{path} lacks {{{absent[0]}}}; a template has {', '.join(placeholders)} in braces"
            )
        return cls(text, f"{Path(path).name} {hashlib.sha256(text.encode()).hexdigest()[:8]}")

    def fill(self, **values: str) -> str:
        """The prompt with the placeholders replaced; other braces stay, also those in the values."""
        placeholders = re.compile("|".join(f"{{{name}}}" for name in values))
        return placeholders.sub(lambda match: values[match[0][1:-1]], self.text)


class JudgedBenchmark(BaseBenchmark):
    """Base of the judged benchmarks: the scorers take the judge's verdicts in place of the answers.

    A subclass has a field `judge` and refuses to be created without one, before anything is generated. A
    benchmark that can also be scored without a judge has a field `judged`, False by default.
    """

    judge: judges.Judge | None
    judged: bool = True

    def __post_init__(self) -> None:
        if self.judged:
            self.require_judge()

    def require_judge(self) -> judges.Judge:
        """The judge. Raises InputError if there is none."""
        return judges.require_judge(self.judge, self.about.title)

    def verdicts(self, answers: Sequence[str]) -> list[Any]:
        """The judge's verdicts on the answers to all items, in the form that the scorers take."""
        raise NotImplementedError

    def score(self, answers: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, Any]:
        """As `BaseBenchmark.score`, of the judge's verdicts on the answers without their thinking.

        Raises:
            InputError: The number of answers differs from the number of items, or the judge fails.
        """
        if not self.judged:
            return super().score(answers, seed=seed)
        self.check_answers(answers)
        verdicts = {
            condition: self.verdicts([without_thinking(answer) for answer in given])
            for condition, given in answers.items()
        }
        return self.score_per_group(verdicts, seed)

    def describe(self) -> dict[str, Any]:
        """As `BaseBenchmark.describe`, with the judge's name."""
        judge = {"judge": self.require_judge().name} if self.judged else {}
        return {**super().describe(), **judge}
