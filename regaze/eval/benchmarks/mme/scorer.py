"""MME's score of a task: 100 (acc + acc+), with one way of reading answers per scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regaze.errors import InputError
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import LABELS, READINGS, confusion

PERCEPTION = (
    *("existence", "count", "position", "color"),
    *("posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
HALLUCINATION = PERCEPTION[:4]
TASKS = (*PERCEPTION, *COGNITION)
TOTALS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": HALLUCINATION}


def read_official(answer: str) -> str:
    """Read an answer as MME's calculation.py does: "yes", "no" or "other"."""
    return next((label for label in LABELS if label in answer.lower()[:4]), "other")


def read_lmms_eval(answer: str) -> str:
    """Read an answer as lmms-eval does for MME: "yes", "no" or "other"."""
    text = answer.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or read_official(text)


@dataclass(frozen=True)
class MmeReference:
    """A question: its task, the correct answer, and the image that it shares with another question."""

    task: str
    label: str
    pair: str


@dataclass(frozen=True)
class MmeScorer(Scorer):
    """MME's scores with one way of reading answers; references are `MmeReference`.

    Attributes:
        read: Reads an answer as "yes", "no" or "other".
        tasks: The tasks of the questions; a total is given if all of its tasks are among them.
        undefined_if_unreadable: A task without a readable answer has no score (the official script stops).
        report_unreadable: Also report the share of unreadable answers.
    """

    fractions = ("unreadable",)
    name: str
    version: str
    read: Callable[[str], str]
    tasks: tuple[str, ...] = TASKS
    undefined_if_unreadable: bool = False
    report_unreadable: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """Totals, then the score of each task."""
        return (*self._totals(), *self.tasks, *(("unreadable",) if self.report_unreadable else ()))

    def _totals(self) -> dict[str, tuple[str, ...]]:
        return {name: tasks for name, tasks in TOTALS.items() if set(tasks) <= set(self.tasks)}

    def count(self, references: Sequence[MmeReference], answers: Sequence[str]) -> np.ndarray:
        """[n, tasks, 8]: readings by label (2 x 3), then both correct and pairs, once per image.

        Raises:
            InputError: An image does not have exactly two questions.
        """
        readings = confusion([each.label for each in references], self.readings(references, answers))
        correct = readings[:, 0, 0] + readings[:, 1, 1]
        pairs: dict[tuple[str, str], list[int]] = {}
        for row, reference in enumerate(references):
            pairs.setdefault((reference.task, reference.pair), []).append(row)
        counts = np.zeros((len(answers), len(self.tasks), 8), dtype=np.int64)
        for (task, pair), rows in pairs.items():
            if len(rows) != 2:
                raise InputError(f"MME {task}: {len(rows)} questions about {pair}, expected 2")
            column = self.tasks.index(task)
            counts[rows, column, :6] = readings[rows].reshape(-1, 6)
            counts[rows[0], column, 6:] = correct[rows].all(), 1
        return counts

    def readings(self, references: Sequence[MmeReference], answers: Sequence[str]) -> list[str]:
        return [self.read(answer) for answer in answers]

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        correct, questions = sums[..., 0] + sums[..., 4], sums[..., :6].sum(-1)
        unreadable = sums[..., 2] + sums[..., 5]
        score = (ratio(correct, questions) + ratio(sums[..., 6], sums[..., 7])) * 100
        if self.undefined_if_unreadable:
            score = np.where(unreadable == questions, np.nan, score)
        metrics = dict(zip(self.tasks, np.moveaxis(score, -1, 0), strict=True))
        for name, tasks in self._totals().items():
            metrics[name] = sum((metrics[task] for task in tasks), np.zeros(()))
        metrics["unreadable"] = ratio(unreadable.sum(-1), questions.sum(-1))
        return {metric: metrics[metric] for metric in self.metrics}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return (counts[:, :, 0] + counts[:, :, 4]).sum(1) > 0

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """{task: {"acc", "acc_plus", "precision", "recall", "TP", "FN", "FP", "TN", "other"}}.

        Precision and recall are those of the readable answers, as in the official script.
        """
        return {task: _details(row) for task, row in zip(self.tasks, sums, strict=True)}


def _details(row: np.ndarray) -> dict[str, float]:
    readings = row[:6].reshape(len(LABELS), len(READINGS))
    (true_positive, false_negative, _), (false_positive, true_negative, _) = readings.tolist()
    return {
        "acc": float(ratio(true_positive + true_negative, readings.sum())),
        "acc_plus": float(ratio(row[6], row[7])),
        "precision": float(ratio(true_positive, true_positive + false_positive)),
        "recall": float(ratio(true_positive, true_positive + false_negative)),
        "TP": true_positive,
        "FN": false_negative,
        "FP": false_positive,
        "TN": true_negative,
        "other": int(readings[:, 2].sum()),
    }
