"""Scoring of yes/no answers: six rules in use, which disagree.

`official`
    POPE's own script: keep the text before the first full stop, drop commas, split at single spaces; "no" if
    one of the exact words No, no, not is left, else "yes" (also for empty text). A ratio with a zero
    denominator stops that script; here it is undefined (nan, in JSON null).
`opera`
    The copy in OPERA, PAI and AvisC: full stops and commas are dropped and the whole text is read; "no" at
    one of No, no, not, NO or a word that ends in "n't", else "yes".
`vcd`
    The copy in VCD depends on the label: if it is yes, an answer with "yes" anywhere in it is correct; if it
    is no, an answer with "no" anywhere ("know", "not", "nothing").
`harness`
    Exact match after lower-casing and stripping, as in lmms-eval ("Yes." is neither). Any other answer is
    wrong, and counts neither for precision nor for recall. A ratio with a zero denominator is 0. Its
    yes-ratio is that of the *labels*, not of the answers, so it cannot show a yes-bias.
`vlmevalkit`
    The words yes and no after punctuation is stripped, without its judge model. An answer with both or
    neither is wrong, but counts as "no" for precision, recall and F1.
`regaze`
    Ours: what a careful person takes the answer for (`yes_no_reading`), without thinking and markup. An
    unreadable answer is wrong, and a missed object if the label is yes; the share of unreadable answers is
    reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from regaze.eval.benchmarks.common.normalise import strip_punctuation
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no

METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
LABELS = ("yes", "no")
READINGS = ("yes", "no", "other")


def read_pope(answer: str) -> str:
    """Read an answer as POPE's own script does: "yes" or "no"."""
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def read_opera(answer: str) -> str:
    """Read an answer as OPERA's copy of the script does: "yes" or "no"."""
    words = answer.replace(".", "").replace(",", "").split(" ")
    negated = any(word in ("No", "no", "not", "NO") or word.endswith("n't") for word in words)
    return "no" if negated else "yes"


def read_harness(answer: str) -> str:
    """Read an answer as lmms-eval does: "yes" or "no" if it is exactly that, else "other"."""
    word = answer.lower().strip()
    return word if word in LABELS else "other"


def read_vlmevalkit(answer: str) -> str:
    """Read an answer as VLMEvalKit does without a judge: "yes", "no", or "other" for both or neither."""
    words = strip_punctuation(answer.lower(), keep_decimal_point=True).split()
    found = [label for label in LABELS if label in words]
    return found[0] if len(found) == 1 else "other"


def read_anywhere(answer: str) -> str:
    """Read an answer as RePOPE and DASH-B do: "yes" if it holds these letters ("eyes"), else "no" likewise.

    One with neither, such as "There is a dog.", is "other".
    """
    text = answer.lower()
    return next((label for label in LABELS if label in text), "other")


def confusion(labels: Sequence[str], readings: Sequence[str]) -> np.ndarray:
    """One count per item: [n, 2 labels, 3 readings], in the order of `LABELS` and `READINGS`."""
    counts = np.zeros((len(labels), len(LABELS), len(READINGS)), dtype=np.int64)
    rows = np.arange(len(labels))
    counts[rows, [LABELS.index(x) for x in labels], [READINGS.index(x) for x in readings]] = 1
    return counts


@dataclass(frozen=True)
class YesNoScorer(Scorer):
    """Accuracy, precision, recall, F1 and yes-ratio under one reading; references are "yes" and "no".

    Attributes:
        read: Reads an answer as "yes", "no" or "other".
        undefined: Value of a ratio with a zero denominator.
        unreadable_is_missed: Count "other" as a missed object where the label is yes.
        yes_ratio_of_labels: Report the share of yes among the labels, not the answers.
    """

    name: str
    version: str
    read: Callable[[str], str]
    undefined: float = math.nan
    unreadable_is_missed: bool = False
    yes_ratio_of_labels: bool = False
    metrics: tuple[str, ...] = METRICS
    accuracy_metric = "accuracy"

    def count(self, references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        return confusion(references, self.readings(references, answers))

    def readings(self, references: Sequence[str], answers: Sequence[str]) -> list[str]:
        return [self.read(answer) for answer in answers]

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics, each [...], of summed counts [..., 2, 3]; "yes" is the positive class."""
        counts = sums.astype(np.float64)
        true_positive, false_negative = counts[..., 0, 0], counts[..., 0, 1]
        false_positive, true_negative = counts[..., 1, 0], counts[..., 1, 1]
        if self.unreadable_is_missed:
            false_negative = false_negative + counts[..., 0, 2]
        total = counts.sum((-2, -1))
        precision = ratio(true_positive, true_positive + false_positive, self.undefined)
        recall = ratio(true_positive, true_positive + false_negative, self.undefined)
        yes = counts[..., 0, :].sum(-1) if self.yes_ratio_of_labels else counts[..., :, 0].sum(-1)
        metrics = {
            "accuracy": ratio(true_positive + true_negative, total, self.undefined),
            "precision": precision,
            "recall": recall,
            "f1": ratio(2 * precision * recall, precision + recall, self.undefined),
            "yes_ratio": ratio(yes, total, self.undefined),
            "unreadable": ratio(counts[..., :, 2].sum(-1), total, self.undefined),
        }
        return {name: metrics[name] for name in self.metrics}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return (counts[:, 0, 0] + counts[:, 1, 1]).astype(bool)

    def details(self, sums: np.ndarray) -> dict[str, dict[str, int]]:
        """{"label_yes": {"yes": 1, "no": 2, "other": 0}, "label_no": ...}."""
        return {
            f"label_{label}": {reading: int(sums[i, j]) for j, reading in enumerate(READINGS)}
            for i, label in enumerate(LABELS)
        }


class VcdScorer(YesNoScorer):
    """VCD's rule, which looks for the label in the answer."""

    def readings(self, references: Sequence[str], answers: Sequence[str]) -> list[str]:
        opposite = {"yes": "no", "no": "yes"}
        return [
            label if label in answer.lower() else opposite[label]
            for label, answer in zip(references, answers, strict=True)
        ]


OFFICIAL = YesNoScorer("official", "AoiDragon/POPE 08d957b evaluate.py", read_pope)
OPERA = YesNoScorer("opera", "shikiw/OPERA 61426ef", read_opera)
VCD = VcdScorer("vcd", "DAMO-NLP-SG/VCD d6568ff eval_pope.py", read_pope)
HARNESS = YesNoScorer("harness", "lmms-eval 75571cf", read_harness, undefined=0.0, yes_ratio_of_labels=True)
VLMEVALKIT = YesNoScorer(
    "vlmevalkit", "VLMEvalKit e8e78f0, no judge", read_vlmevalkit, undefined=0.0, unreadable_is_missed=True
)
REGAZE = YesNoScorer("regaze", "2", read_yes_no, unreadable_is_missed=True, metrics=(*METRICS, "unreadable"))
SCORERS = (OFFICIAL, HARNESS, OPERA, VCD, VLMEVALKIT, REGAZE)
