"""VLind-Bench's figures: four tests in stages, under the official reading and under ours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from regaze.eval.benchmarks.common import yes_no
from regaze.eval.benchmarks.common.final_answer import final_answer
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no_reading import is_hedged

#: Common sense, perception, bias of the context, language prior.
TESTS = ("CK", "VP", "CB", "LP")
_VERDICT = re.compile(
    r"(?P<negated>(?:\bnot |n't )(?:\w+ly )?)?(?<![\w-])(?P<word>true|untrue|false)(?![\w-])"
)


@dataclass(frozen=True)
class VlindReference:
    """One of the two statements of a test.

    Attributes:
        instance: What the statement belongs to.
        test: One of `TESTS`.
        image: The picture's id; of LP there are several.
        truth: Whether the right answer is True.
    """

    instance: Hashable
    test: str
    image: str
    truth: bool


def read_official(answer: str) -> bool | None:
    """The first word that is true or false between single spaces, without commas and full stops."""
    words = answer.lower().replace("\n", " ").replace(",", "").replace(".", "").split(" ")
    return next((word == "true" for word in words if word in ("true", "false")), None)


def read_truth(answer: str) -> bool | None:
    """What a careful person reads: what the decisive part of the answer calls the statement, else yes or no.

    "The statement is not true" is false; "true or false" and "it could be true" say nothing.
    """
    text = final_answer(answer).lower().replace("true or false", " ")  # the request, or no decision
    matches = list(_VERDICT.finditer(text))
    found = {(match["word"] == "true") != bool(match["negated"]) for match in matches}
    if found:
        return found.pop() if len(found) == 1 and not is_hedged(text[: matches[0].end()]) else None
    verdict = yes_no.REGAZE.read(answer)
    return verdict == "yes" if verdict in yes_no.LABELS else None


@dataclass(frozen=True)
class StagedScorer(Scorer):
    """Shares of instances with both statements of a test right, each among those that passed before.

    S_CK and S_VP are of all instances, S_CB of those that passed CK, S_LP the mean share of right pictures of
    those that passed the three others; acc_CB and acc_LP are of all. Conditional figures of two models are
    about different instances: "all_tests", the mean of S_LP's share with 0 for an instance that did not pass,
    is about the same ones.

    Attributes:
        read: Reads an answer as true, false or neither.
        undefined: A conditional figure if nothing passed.
        careful: Also report "all_tests" and the share of unreadable answers.
    """

    name: str
    version: str
    read: Callable[[str], bool | None]
    undefined: float = math.nan
    careful: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        staged = ("S_LP", "S_CB", "S_VP", "S_CK", "acc_CB", "acc_LP")
        return (*staged, "all_tests", "unreadable") if self.careful else staged

    def readings(self, references: Sequence[VlindReference], answers: Sequence[str]) -> list[str]:
        """True as yes, and false as no."""
        names = {True: "yes", False: "no", None: "other"}
        return [names[self.read(answer)] for answer in answers]

    def count(self, references: Sequence[VlindReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 9]: in an instance's first row 1, CK, VP, CB, CK and CB, the first three, LP, LP of those that
        passed; in every row whether it is unreadable.
        """
        readings = [self.read(answer) for answer in answers]
        instances: dict[Hashable, list[int]] = {}
        for row, reference in enumerate(references):
            instances.setdefault(reference.instance, []).append(row)
        counts = np.zeros((len(references), 10))
        for rows in instances.values():
            right: dict[tuple[str, str], bool] = {}
            for row in rows:
                reference = references[row]
                key = reference.test, reference.image
                right[key] = right.get(key, True) and readings[row] == reference.truth
            share = {test: np.mean([good for (of, _), good in right.items() if of == test]) for test in TESTS}
            common, perceived, bias = (share[test] for test in TESTS[:3])
            passed = common * perceived * bias
            figures = (1, common, perceived, bias, common * bias, passed, share["LP"], passed * share["LP"])
            counts[rows[0], :8] = figures
        counts[:, 8] = [reading is None for reading in readings]
        counts[:, 9] = 1
        return counts

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        instances, common, perceived, bias, both, passed, prior, prior_passed, unreadable, rows = np.moveaxis(
            sums, -1, 0
        )
        figures = {
            "S_LP": ratio(prior_passed, passed, self.undefined),
            "S_CB": ratio(both, common, self.undefined),
            "S_VP": ratio(perceived, instances),
            "S_CK": ratio(common, instances),
            "acc_CB": ratio(bias, instances),
            "acc_LP": ratio(prior, instances),
            "all_tests": ratio(prior_passed, instances),
            "unreadable": ratio(unreadable, rows),
        }
        return {name: figures[name] for name in self.metrics}


OFFICIAL = StagedScorer(
    "official", "klee972/VLind-Bench 9083efe score_pipeline.py", read_official, undefined=0.0
)
REGAZE = StagedScorer("regaze", "1", read_truth, careful=True)
