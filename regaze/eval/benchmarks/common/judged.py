"""Benchmarks whose answers a judge grades: prompts to the judge, and what its verdicts come to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.common.base import Scored


@dataclass(frozen=True)
class Template:
    """A prompt to the judge with places like {question}.

    The wording decides the verdicts. Ours asks for the same form of verdict as the official one; figures to
    be set beside published ones need the official text, read from a file by `from_file`, and the judge that
    they were made with.
    """

    text: str
    name: str

    @classmethod
    def from_file(cls, path: Path, places: Sequence[str]) -> Template:
        """A template of one's own, or the official one.

        Raises:
            InputError: the file cannot be read or lacks a place.
        """
        text = files.read_text(path)
        absent = [place for place in places if f"{{{place}}}" not in text]
        if absent:
            raise InputError(f"{path} lacks {{{absent[0]}}}; a template has {', '.join(places)} in braces")
        return cls(text, f"{path.name} {hashlib.sha256(text.encode()).hexdigest()[:8]}")

    def fill(self, **values: str) -> str:
        """The prompt; braces that are no place stay as they are, also those in the values."""
        places = re.compile("|".join(f"{{{name}}}" for name in values))
        return places.sub(lambda found: values[found[0][1:-1]], self.text)


class Judged(Scored):
    """Base of the judged benchmarks: verdicts on the answers are scored in the answers' place.

    A subclass has a field `judge`; without one it refuses to be made, before anything is generated. Where
    rules without a judge exist, too, it has a field `judged` that is False by default.
    """

    judge: judges.Judge | None
    judged: bool = True

    def __post_init__(self) -> None:
        if self.judged:
            self.configured()

    def configured(self) -> judges.Judge:
        """The judge. Raises InputError when there is none."""
        return judges.need(self.judge, self.about.title)

    def verdicts(self, answers: Sequence[str]) -> list[Any]:
        """What the judge makes of the answers to all items, in the form that the scorers take."""
        raise NotImplementedError

    def score(self, answers: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, Any]:
        """As `Scored.score`, of the judge's verdicts.

        Raises:
            InputError: not one answer per item, or the judge cannot be asked.
        """
        if not self.judged:
            return super().score(answers, seed=seed)
        for name, given in answers.items():
            if len(given) != len(self.items):
                raise InputError(f"{self.name}: {len(given)} answers ({name}) to {len(self.items)} questions")
        return self._score({name: self.verdicts(given) for name, given in answers.items()}, seed)

    def describe(self) -> dict[str, Any]:
        """Also names the judge."""
        judge = {"judge": self.configured().name} if self.judged else {}
        return {**super().describe(), **judge}
