"""HallusionBench's scoring rules: the official arithmetic on verdicts, and rules on the words of answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import read_vlmevalkit
from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no

#: A judge's verdict on an answer, in the order of the official codes.
INCORRECT, CORRECT, UNCLEAR = range(3)
KINDS = (
    *(f"VD_{kind}" for kind in ("illusion", "math", "video", "figure", "ocr")),
    *(f"VS_{kind}" for kind in ("chart", "table", "map", "ocr")),
)


@dataclass(frozen=True)
class HallusionReference:
    """The official keys of an item; `positive` if the correct answer is yes."""

    category: str
    subcategory: str
    set_id: str
    figure_id: str
    question_id: str
    visual_input: str
    positive: bool
    details: str = ""

    @property
    def kind(self) -> str:
        return f"{self.category}_{self.subcategory}"

    @property
    def set(self) -> tuple[str, str]:
        return self.kind, self.set_id

    @property
    def question(self) -> tuple[str, str, str]:
        return *self.set, self.question_id

    @property
    def figure(self) -> tuple[str, str, str]:
        return *self.set, self.figure_id

    @property
    def original(self) -> bool:
        """Whether the question is about the original figure or, of a VS question, without a figure."""
        return self.figure_id == "0"

    @property
    def edited_figure(self) -> bool:
        return self.visual_input == "2"

    @property
    def without_image(self) -> bool:
        return self.visual_input == "0"

    @property
    def without_figure(self) -> bool:
        """Whether "cannot tell" is a correct answer."""
        return self.category == "VS" and self.original


@dataclass(frozen=True)
class Verdict:
    """INCORRECT, CORRECT or UNCLEAR, and whether the answer is the same as on the original figure."""

    code: int
    same: bool | None = None


@dataclass(frozen=True)
class OfficialScorer(Scorer):
    """The official arithmetic, in percent where the script has percent; "answers" are `Verdict`.

    Attributes:
        causes: Also report the causes of wrong verdicts, which need `Verdict.same`.
    """

    fractions = ("yes_difference", "false_positive_ratio")
    name: str = "official"
    version: str = "tianyi-lab/HallusionBench 744007c evaluation.py"
    causes: bool = True

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """The leaderboard's five, yes/no bias, consistency per figure; with `causes` LH, VI and mixed."""
        leaderboard = ("aAcc", "qAcc", "fAcc", "easy", "hard")
        rest = ("yes_difference", "false_positive_ratio", "inconsistent", "wrong")
        return (*leaderboard, *rest, *(("LH", "VI", "mixed") if self.causes else ()))

    def count(self, references: Sequence[HallusionReference], answers: Sequence[Verdict]) -> np.ndarray:
        """[n, 19]: per answer [0:6] and [16:19]; per group, in the row of its first item, [6:16]."""
        correct = [_is_correct(*pair) for pair in zip(references, answers, strict=True)]
        counts = np.zeros((len(answers), 19))
        originals = {r.question: v.code for r, v in zip(references, answers, strict=True) if r.original}
        for row, reference, verdict, good in zip(counts, references, answers, correct, strict=True):
            yes = reference.positive == good  # an unclear answer counts as the wrong one
            row[:6] = good, 1, yes, reference.positive, not good, not good and not reference.positive
            language, vision = _causes(reference, verdict, originals.get(reference.question, CORRECT))
            row[16:] = language and not vision, vision and not language, language and vision
        everything = range(len(references))
        easy = [i for i in everything if not references[i].edited_figure]
        hard = [i for i in everything if references[i].edited_figure]
        for column, indices in ((6, everything), (8, easy), (10, hard)):
            for group in _group(references, lambda each: each.question, indices):
                counts[group[0], column : column + 2] = all(correct[i] for i in group), 1
        with_figure = [i for i in everything if not references[i].without_figure]
        for group in _group(references, lambda each: each.figure, with_figure):
            n = sum(correct[i] for i in group)
            counts[group[0], 12:16] = n == len(group), 0 < n < len(group), n == 0, 1
        return counts

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        at = np.moveaxis(sums, -1, 0)
        metrics = {
            "aAcc": 100 * ratio(at[0], at[1]),
            "qAcc": 100 * ratio(at[6], at[7]),
            "fAcc": 100 * ratio(at[12], at[15]),
            "easy": 100 * ratio(at[8], at[9]),
            "hard": 100 * ratio(at[10], at[11]),
            "yes_difference": ratio(at[2], at[1]) - ratio(at[3], at[1]),
            "false_positive_ratio": ratio(at[5], at[4]),
            "inconsistent": 100 * ratio(at[13], at[15]),
            "wrong": 100 * ratio(at[14], at[15]),
            **{name: 100 * ratio(at[16 + i], at[4]) for i, name in enumerate(("LH", "VI", "mixed"))},
        }
        return {metric: metrics[metric] for metric in self.metrics}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0

    def details(self, sums: np.ndarray) -> dict[str, int]:
        """Numbers of items, question groups, figures, and question groups on original and edited figures."""
        columns = {"items": 1, "questions": 7, "figures": 15, "easy": 9, "hard": 11}
        return {name: int(sums[column]) for name, column in columns.items()}


@dataclass(frozen=True)
class AnswerScorer(OfficialScorer):
    """The official arithmetic on the answers themselves, read by `yes_no_reading.read_yes_no`."""

    name: str = "regaze"
    version: str = "2"
    causes: bool = False

    def count(self, references: Sequence[HallusionReference], answers: Sequence[Any]) -> np.ndarray:
        verdicts = [_read_answer(*pair) for pair in zip(references, answers, strict=True)]
        return super().count(references, verdicts)

    def readings(self, references: Sequence[HallusionReference], answers: Sequence[str]) -> list[str]:
        return [read_yes_no(answer) for answer in answers]


@dataclass(frozen=True)
class KeywordScorer(Scorer):
    """aAcc, fAcc, qAcc of the items with an image, by the words of the answers."""

    fractions = ()
    name: str
    version: str
    read: Callable[[str], str]
    metrics: tuple[str, ...] = ("mean", "aAcc", "fAcc", "qAcc")

    def count(self, references: Sequence[HallusionReference], answers: Sequence[str]) -> np.ndarray:
        """[n, kinds, 6]: correct and all answers, figures, questions."""
        counts = np.zeros((len(answers), len(KINDS), 6))
        correct = [
            reading == ("yes" if reference.positive else "no")
            for reference, reading in zip(references, self.readings(references, answers), strict=True)
        ]
        group_keys: tuple[Callable[[HallusionReference], Hashable], ...] = (
            lambda each: (each.figure, each.question_id),
            lambda each: each.figure,
            lambda each: each.question,
        )
        with_image = [i for i, reference in enumerate(references) if not reference.without_image]
        for column, key in enumerate(group_keys):
            for group in _group(references, key, with_image):
                kind = KINDS.index(references[group[0]].kind)
                counts[group[0], kind, 2 * column : 2 * column + 2] = all(correct[i] for i in group), 1
        return counts

    def readings(self, references: Sequence[HallusionReference], answers: Sequence[str]) -> list[str]:
        return [self.read(answer) for answer in answers]

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return self._accuracies(sums.sum(-2))

    def _accuracies(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of summed counts [..., 6]."""
        three = [100 * ratio(sums[..., i], sums[..., i + 1]) for i in (0, 2, 4)]
        return {"mean": sum(three[1:], three[0]) / 3, **dict(zip(self.metrics[1:], three, strict=True))}

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """The metrics of VD, VS and each kind that occurs."""
        parts = {
            **{category: [k for k in KINDS if k.startswith(category)] for category in ("VD", "VS")},
            **{kind: [kind] for kind in KINDS},
        }
        part_sums = {
            name: sums[[KINDS.index(kind) for kind in kinds]].sum(0) for name, kinds in parts.items()
        }
        return {
            name: {metric: float(value) for metric, value in self._accuracies(part).items()}
            for name, part in part_sums.items()
            if part[1]
        }

    def correct(self, counts: np.ndarray) -> np.ndarray | None:
        """None: items without an image are neither correct nor wrong here."""
        return None


VLMEVALKIT = KeywordScorer("vlmevalkit", "VLMEvalKit e8e78f0, no judge", read_vlmevalkit)
LMMS_EVAL_INTERN = KeywordScorer(
    "lmms-eval-intern", "lmms-eval 75571cf", lambda answer: "yes" if "yes" in answer.lower() else "no"
)


def _is_correct(reference: HallusionReference, verdict: Verdict) -> bool:
    return verdict.code == CORRECT or (verdict.code == UNCLEAR and reference.without_figure)


def _group(
    references: Sequence[HallusionReference],
    key: Callable[[HallusionReference], Hashable],
    indices: Iterable[int],
) -> list[list[int]]:
    """`indices` grouped by the key of their items."""
    groups: dict[Hashable, list[int]] = {}
    for index in indices:
        groups.setdefault(key(references[index]), []).append(index)
    return list(groups.values())


def _causes(reference: HallusionReference, verdict: Verdict, original: int) -> tuple[bool, bool]:
    """(language, vision): possible causes of this verdict, given the one on the original figure."""
    language, vision, both, none = (True, False), (False, True), (True, True), (False, False)
    if _is_correct(reference, verdict):
        return none
    if reference.original:
        return language if reference.category == "VS" else vision
    wrong = verdict.code == INCORRECT
    if reference.category == "VD":
        # Correct on the original, and the same answer on an edited figure where it is wrong: either cause.
        return both if wrong and original == CORRECT and verdict.same else vision
    if original == INCORRECT:
        return language if wrong and verdict.same else both
    repeated = wrong and original == CORRECT and reference.edited_figure and verdict.same
    return language if repeated else vision


def _read_answer(reference: HallusionReference, answer: str) -> Verdict:
    reading = read_yes_no(answer)
    if reading == "other":
        return Verdict(UNCLEAR)
    return Verdict(CORRECT if (reading == "yes") == reference.positive else INCORRECT)
