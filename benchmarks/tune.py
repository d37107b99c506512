"""Searches the tuning table for the GPU at hand; run it as `python benchmarks/attention.py --tune`.

The calls are those that attention.py times. Each asks the table how it is to be cut, by its facts; calls that
ask the same are tuned together. From the rule in use one number is changed at a time, for as long as that
makes these calls faster. A ratio is the time under the changed rule over the time under the one in use, both
taken in turn in each round: the median over the rounds, and the geometric mean over the calls.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unittest import mock

from triton import TritonError

from regaze.kernels.triton import tiling, tuning
from regaze.kernels.triton.tuning import DEFAULT, Rule, Table

#: Values of each number that are tried.
CHOICES: dict[str, dict[str, tuple[int, ...]]] = {
    "decode": {
        "block_n": (16, 32, 64, 128),
        "num_stages": (1, 2, 3, 4),
        "num_warps": (4, 8),
        "programs": (1, 2, 3, 4),
        "block_m": (16, 32, 64),
    },
    "prefill": {
        "block_m": (16, 32, 64, 128),
        "block_n": (16, 32, 64, 128),
        "num_stages": (1, 2, 3),
        "num_warps": (4, 8),
    },
}
#: A change counts where it makes calls faster by at least this share.
MARGIN = 0.02
ROUNDS = 5


class Timer(Protocol):
    """Seconds of calls."""

    def prepare(self, call: Any) -> Any:
        """A call to time: it is run, so that it is cut by the table in use now, and stays so."""

    def __call__(self, call: Any) -> float: ...


class Question(NamedTuple):
    """What a call asks the table: its phase, and the facts as the bounds of a rule."""

    phase: str
    when: tuple[tuple[str, int | bool], ...]

    @classmethod
    def of(cls, phase: str, facts: dict[str, int | bool]) -> Question:
        """Sizes of rows by the steps in which tiles grow; at a prefill, few or any number."""
        when, rows = dict(facts), facts["rows"]
        if phase == "decode" or rows <= 16:
            when["rows"] = max(16, tiling.power_of_two(rows))
        else:
            del when["rows"]
        return cls(phase, tuple(when.items()))

    def __str__(self) -> str:
        names = [(n if v else f"not {n}") if isinstance(v, bool) else f"{n}={v}" for n, v in self.when]
        return f"{self.phase} {' '.join(names)}"


@contextmanager
def using(table: Table) -> Iterator[None]:
    """Calls are cut by this table."""
    with mock.patch.object(tuning, "TABLE", table):
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    tiling.tiling.cache_clear()
    tiling.decode_tiling.cache_clear()


def with_rule(table: Table, architecture: str, phase: str, rule: Rule) -> Table:
    """The table with a rule of an architecture, narrow rules before wide ones."""
    own = dict(table.get(architecture, {}))
    rules = [other for other in own.get(phase, []) if other.when != rule.when]
    own[phase] = sorted((*rules, rule), key=_width)
    return {**table, architecture: own}


def _width(rule: Rule) -> tuple[float, ...]:
    """Rules that leave much out come last; among the others those of large sizes."""
    sizes = ("element_size", "width", "channels", "rows")
    missing = sum(name not in rule.when for name in ("edited", "recorded", "light", "masked", "columns"))
    return (missing, *(float(rule.when.get(name, math.inf)) for name in sizes))


def questions(make: Callable[[], Any], timer: Timer) -> list[tuple[str, Question, dict[str, int]]]:
    """Architecture, question and answer, each time that a call asks how to cut."""
    asked = []

    def cut(architecture: str, phase: str, **facts: int | bool) -> dict[str, int]:
        take = tuning.cut(architecture, phase, **facts)
        asked.append((architecture, Question.of(phase, facts), take))
        return take

    with mock.patch.object(tiling, "cut", cut), using(tuning.TABLE):
        timer.prepare(make())
    return asked


def ratio(timer: Timer, new: Sequence[Any], old: Sequence[Any]) -> float:
    """Time of new calls over that of old ones, side by side."""
    logs = []
    for pair in zip(new, old, strict=True):
        ratios = []
        for number in range(ROUNDS):
            first = number % 2  # neither is always the one that finds the GPU warm
            times = {which: timer(pair[which]) for which in (first, 1 - first)}
            ratios.append(times[0] / times[1])
        logs.append(math.log(statistics.median(ratios)))
    return math.exp(statistics.mean(logs))


class Climb:
    """The search for one question: what was tried, and the best so far."""

    def __init__(
        self,
        table: Table,
        architecture: str,
        question: Question,
        calls: Sequence[Callable[[], Any]],
        timer: Timer,
    ):
        self.table, self.architecture, self.question = table, architecture, question
        self.calls, self.timer = calls, timer

    def changed(self, take: dict[str, int]) -> Table:
        """The table with this answer to the question."""
        rule = Rule(dict(self.question.when), take)
        return with_rule(self.table, self.architecture, self.question.phase, rule)

    def prepared(self, take: dict[str, int]) -> list[Any]:
        """The calls, cut so."""
        with using(self.changed(take)):
            return [self.timer.prepare(make()) for make in self.calls]

    def run(self, take: dict[str, int], show: Callable[[str], None]) -> Table:
        """The table with the best rule found; the same table where nothing beats the rule in use."""
        first = current = self.prepared(take)
        best, tried = take, [take]
        while (found := self._better(best, current, tried, show)) is not None:
            best, current = found
        if best == take or (gain := ratio(self.timer, current, first)) > 1 - MARGIN:
            return self.table
        show(f"{self.question}: {_text(best)} takes {gain:.3f} of the time of {_text(take)}")
        return self.changed(best)

    def _better(
        self,
        best: dict[str, int],
        current: list[Any],
        tried: list[dict[str, int]],
        show: Callable[[str], None],
    ) -> tuple[dict[str, int], list[Any]] | None:
        """The first untried neighbour that is faster, with its calls."""
        for name, values in CHOICES[self.question.phase].items():
            for value in values:
                take = best | {name: value}
                if take in tried:
                    continue
                tried.append(take)
                try:
                    calls = self.prepared(take)
                except (TritonError, RuntimeError) as error:  # too large, or nothing that compiles
                    show(f"  {_text(take)}: {type(error).__name__}")
                    continue
                compared = ratio(self.timer, calls, current)
                show(f"  {_text(take)}: {compared:.3f} of {_text(best)}")
                if compared <= 1 - MARGIN:
                    return take, calls
        return None


def _text(take: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in take.items())


def tuned(
    table: Table, makers: Sequence[Callable[[], Any]], timer: Timer, show: Callable[[str], None] = print
) -> Table:
    """The table with rules for every question that the calls ask, where they make these calls faster."""
    askers: dict[tuple[str, Question], tuple[dict[str, int], list[Callable[[], Any]]]] = {}
    with using(table):
        for make in makers:
            for architecture, question, take in questions(make, timer):
                _, calls = askers.setdefault((architecture, question), (take, []))
                if make not in calls:
                    calls.append(make)
    for (architecture, question), (take, calls) in askers.items():
        show(f"{architecture} {question}: {len(calls)} calls, now {_text(take)}")
        table = Climb(table, architecture, question, calls, timer).run(take, show)
    return {DEFAULT: table[DEFAULT]} | dict(sorted((a, t) for a, t in table.items() if a != DEFAULT))


def write(table: Table, file: Path) -> None:
    """Write a table into a file, a rule per line."""
    architectures = []
    for architecture, phases in table.items():
        lists = []
        for phase, rules in phases.items():
            lines = ",\n".join(f"   {json.dumps(rule._asdict())}" for rule in rules)
            lists.append(f'  "{phase}": [\n{lines}\n  ]')
        body = ",\n".join(lists)
        architectures.append(f' "{architecture}": {{\n{body}\n }}' if body else f' "{architecture}": {{}}')
    file.write_text("{\n" + ",\n".join(architectures) + "\n}\n", encoding="utf-8")
