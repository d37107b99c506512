"""AMBER's scoring rules, for descriptions (`AnnotatedObjects`) and for answers (`YesNoReference`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from regaze.errors import InputError
from regaze.eval.benchmarks.amber.words import AnnotatedObjects, NounMatcher
from regaze.eval.benchmarks.common.final_answer import without_thinking
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import read_vlmevalkit
from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no

KINDS = ("existence", "state", "number", "action", "relation")
ATTRIBUTES = KINDS[1:4]
GENERATIVE_METRICS = ("chair", "cover", "hal", "cog")
LOWER_IS_BETTER = ("chair", "hal", "cog")
#: Evaluation type -> the parts of the questions that the official script prints metrics of; "" is all.
_PRINTED_PARTS = {
    "a": ("", "existence", "attribute", *ATTRIBUTES, "relation"),
    "g": (),
    "d": ("", "existence", "attribute", *ATTRIBUTES, "relation"),
    "de": ("existence",),
    "da": ("attribute", *ATTRIBUTES),
    "dr": ("relation",),
}
#: The official evaluation types: all, generative, discriminative, and the three parts of the latter.
TASKS = tuple(_PRINTED_PARTS)
# Every denominator of the official script starts at this.
_EPSILON = 0.001
# Counts per description, and per answer.
_DESCRIPTION_COUNTS, _ANSWER_COUNTS = 8, 6

_round = np.vectorize(lambda value: round(float(value), 1), otypes=[np.float64])


@dataclass(frozen=True)
class YesNoReference:
    """A yes/no question: its kind, and whether the correct answer is "no"."""

    kind: str
    negative: bool


Reference = AnnotatedObjects | YesNoReference


@dataclass(frozen=True)
class AmberScorer(Scorer):
    """The official rule. Descriptions are scored without the model's thinking, which describes nothing.

    Attributes:
        matcher: Finds the objects of descriptions; may be None if there are only questions.
        task: The official evaluation type, which decides what is reported.
        read: Reads an answer as "Yes", "No" or anything else.
    """

    fractions = ()
    lower_is_better = LOWER_IS_BETTER
    name: str
    version: str
    matcher: NounMatcher | None
    task: str = "a"
    read: Callable[[str], str] = str

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """The metrics that the official script prints for the task, under unique names."""
        of_answers = [
            _metric_name(part, metric)
            for part in _PRINTED_PARTS[self.task]
            for metric in ("accuracy", "precision", "recall", "f1")
        ]
        score = ("amber_score",) if self.task == "a" else ()
        of_descriptions = GENERATIVE_METRICS if self.task in ("a", "g") else ()
        unreadable = ("unreadable",) if self.task != "g" and self.read is not str else ()
        return (*score, *of_descriptions, *of_answers, *unreadable)

    def count(self, references: Sequence[Reference], answers: Sequence[str]) -> np.ndarray:
        """[n, 8 + 5 kinds x 6]: counts of descriptions, then of answers."""
        return np.stack([self._count_one(*pair) for pair in zip(references, answers, strict=True)])

    def _count_one(self, reference: Reference, answer: str) -> np.ndarray:
        description, by_kind = np.zeros(_DESCRIPTION_COUNTS), np.zeros((len(KINDS), _ANSWER_COUNTS))
        if isinstance(reference, AnnotatedObjects):
            if self.matcher is None:
                raise InputError("AMBER's descriptions were loaded without the words to score them by")
            found = self.matcher.match(reference, without_thinking(answer))
            description[:] = (
                *(len(found.wrong), len(found.nouns), sum(found.covered), len(found.covered)),
                *(sum(found.claimed), len(found.claimed), not found.wrong, 1),
            )
        else:
            reading = self.read(answer)
            correct = reading == ("No" if reference.negative else "Yes")
            by_kind[KINDS.index(reference.kind)] = (
                *(correct, 1, reference.negative, reading == "No"),
                *(reading == "No" and reference.negative, reading not in ("Yes", "No")),
            )
        return np.concatenate([description, by_kind.ravel()])

    def readings(self, references: Sequence[Reference], answers: Sequence[str]) -> list[str] | None:
        if not all(isinstance(reference, YesNoReference) for reference in references):
            return None
        return [{"Yes": "yes", "No": "no"}.get(self.read(answer), "other") for answer in answers]

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        description, by_kind = _split_counts(sums)
        of_descriptions = map(_round, _generative_metrics(description, _EPSILON))
        metrics = dict(zip(GENERATIVE_METRICS, of_descriptions, strict=True))
        parts = {"": KINDS, "attribute": ATTRIBUTES, **{kind: (kind,) for kind in KINDS}}
        for part, kinds in parts.items():
            counts = by_kind[..., [KINDS.index(kind) for kind in kinds], :].sum(-2)
            # The script adds up the denominators of the attributes, but has one of its own for all questions.
            epsilon = _EPSILON * (3 if part == "attribute" else 1)
            f1_epsilon = 0.001 if part == "existence" else 0.0001
            for metric, value in _answer_metrics(counts, epsilon, f1_epsilon).items():
                metrics[_metric_name(part, metric)] = value
        metrics["amber_score"] = (100 - metrics["chair"] + metrics["f1"]) / 2
        metrics["unreadable"] = 100 * ratio(by_kind[..., 5].sum(-1), by_kind[..., 1].sum(-1))
        return {metric: metrics[metric] for metric in self.metrics}

    def correct(self, counts: np.ndarray) -> np.ndarray | None:
        """Descriptions without a wrong noun, or correct answers; None where both are mixed."""
        description, by_kind = _split_counts(counts)
        correct = by_kind[:, :, 0].sum(1) > 0
        return {"a": None, "g": description[:, 6] > 0}.get(self.task, correct)


@dataclass(frozen=True)
class LmmsEvalScorer(Scorer):
    """lmms-eval's amber_g; references are `AnnotatedObjects` only."""

    fractions = ()
    lower_is_better = LOWER_IS_BETTER
    matcher: NounMatcher
    name: str = "lmms-eval"
    version: str = "lmms-eval 75571cf amber_g"
    metrics: tuple[str, ...] = GENERATIVE_METRICS

    def count(self, references: Sequence[AnnotatedObjects], answers: Sequence[str]) -> np.ndarray:
        return AmberScorer("", "", self.matcher).count(references, answers)[:, :_DESCRIPTION_COUNTS]

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        descriptions = sums[..., 7]
        return dict(zip(GENERATIVE_METRICS, _generative_metrics(sums, _EPSILON * descriptions), strict=True))


@dataclass(frozen=True)
class VlmEvalKitScorer(Scorer):
    """VLMEvalKit's accuracy per kind (attributes together) and their mean, on `YesNoReference`."""

    fractions = ()
    name: str = "vlmevalkit"
    version: str = "VLMEvalKit e8e78f0, no judge"
    metrics: tuple[str, ...] = ("mean_accuracy", "existence", "attribute", "relation")

    def count(self, references: Sequence[YesNoReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 3 kinds, 2]: correct, and 1."""
        counts = np.zeros((len(answers), 3, 2))
        for row, reference, answer in zip(counts, references, answers, strict=True):
            kind = {"existence": 0, "relation": 2}.get(reference.kind, 1)
            row[kind] = (read_vlmevalkit(answer) == ("no" if reference.negative else "yes"), 1)
        return counts

    def readings(self, references: Sequence[YesNoReference], answers: Sequence[str]) -> list[str]:
        return [read_vlmevalkit(answer) for answer in answers]

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        accuracy = 100 * ratio(sums[..., 0], sums[..., 1])
        kinds = (sums[..., 1] > 0).sum(-1)
        mean = ratio(np.nansum(accuracy, axis=-1), kinds)
        by_kind = zip(self.metrics[1:], np.moveaxis(accuracy, -1, 0), strict=True)
        return {"mean_accuracy": mean, **dict(by_kind)}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, :, 0].sum(1).astype(bool)


def read_own(answer: str) -> str:
    """Read an answer as "Yes", "No" or "" by `yes_no_reading.read_yes_no`."""
    return {"yes": "Yes", "no": "No"}.get(read_yes_no(answer), "")


def _metric_name(part: str, metric: str) -> str:
    return f"{part}_{metric}".lstrip("_")


def _split_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(counts of descriptions [..., 8], counts of answers [..., 5 kinds, 6])."""
    by_kind = counts[..., _DESCRIPTION_COUNTS:].reshape(*counts.shape[:-1], len(KINDS), _ANSWER_COUNTS)
    return counts[..., :_DESCRIPTION_COUNTS], by_kind


def _generative_metrics(counts: np.ndarray, epsilon: float | np.ndarray) -> tuple[np.ndarray, ...]:
    """CHAIR, cover, hal and cog in percent, of summed counts [..., 8]."""
    wrong, nouns, covered, objects, claimed, claims, clean, captions = np.moveaxis(counts, -1, 0)
    pairs = ((wrong, nouns), (covered, objects), (clean, captions), (claimed, claims))
    chair, cover, clean, cog = (ratio(above, below + epsilon) * 100 for above, below in pairs)
    return chair, cover, 100 - clean, cog


def _answer_metrics(counts: np.ndarray, epsilon: float, f1_epsilon: float) -> dict[str, np.ndarray]:
    """Accuracy, precision, recall and F1 of "No" in percent, rounded, of summed counts [..., 6]."""
    correct, total, negative, read_no, correct_no, _ = np.moveaxis(counts, -1, 0)
    precision = _round(correct_no / (read_no + epsilon) * 100)
    recall = _round(correct_no / (negative + epsilon) * 100)
    f1 = 2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + f1_epsilon)
    accuracy = _round(correct / (total + epsilon) * 100)
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": _round(f1 * 100)}
