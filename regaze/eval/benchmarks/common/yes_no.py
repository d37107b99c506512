"""Scoring of yes/no answers: six rules that are in use, and disagree.

`official`
    The benchmark's own script: keep the text before the first full stop, drop commas, split at single
    spaces; "no" if one of the exact words No, no, not is left, else "yes" (so is empty text). A ratio with
    nothing below the line stops that script; here it is undefined (nan, in JSON null).
`opera`
    The copy in OPERA, PAI and AvisC: full stops and commas are dropped, the whole text is read; "no" at one
    of No, no, not, NO or a word that ends in "n't", else "yes".
`vcd`
    The copy in VCD depends on the label: where it is yes, an answer with "yes" anywhere in it is right; where
    it is no, an answer with "no" anywhere ("know", "not", "nothing").
`harness`
    Exact match after lower-casing and stripping, as lmms-eval does ("Yes." is neither): any other answer is
    wrong, and counts neither for precision nor for recall. A ratio with nothing below the line is 0. Its
    yes-ratio is that of the *labels*, not of the answers: to see a yes-bias, look at another one.
`vlmevalkit`
    The words yes and no after punctuation is stripped, without its judge model. An answer with both or
    neither is wrong, but counts as "no" for precision, recall and F1.
`regaze`
    Ours: "yes" or "no" if that is the first word and the other does not follow anywhere; else unreadable.
    What is unreadable is wrong, a missed object where the label is yes, and is reported as a share.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regaze.eval.benchmarks.common import scoring
from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.common.normalise import strip_punctuation
from regaze.eval.benchmarks.common.scoring import ratio

FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
LABELS = ("yes", "no")
READINGS = ("yes", "no", "other")


def read_official(answer: str) -> str:
    """Read an answer as POPE's own script does: "yes" or "no"."""
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def read_opera(answer: str) -> str:
    """Read an answer as OPERA's copy of the script does: "yes" or "no"."""
    words = answer.replace(".", "").replace(",", "").split(" ")
    denied = any(word in ("No", "no", "not", "NO") or word.endswith("n't") for word in words)
    return "no" if denied else "yes"


def read_harness(answer: str) -> str:
    """Read an answer as lmms-eval does: "yes", "no", or "other" for all that is neither exactly."""
    word = answer.lower().strip()
    return word if word in LABELS else "other"


def read_vlmevalkit(answer: str) -> str:
    """Read an answer as VLMEvalKit does without a judge: "yes", "no", or "other" for both or neither."""
    words = strip_punctuation(answer.lower(), keep_decimal_point=True).split()
    found = [label for label in LABELS if label in words]
    return found[0] if len(found) == 1 else "other"


def read_strictly(answer: str) -> str:
    """ "yes" or "no" if the answer begins with it and never says the other, else "other"."""
    words = re.findall(r"[^\W_]+", answer.lower())
    if words[:1] == ["yes"] and "no" not in words:
        return "yes"
    return "no" if words[:1] == ["no"] and "yes" not in words else "other"


def confusion(labels: Sequence[str], readings: Sequence[str]) -> np.ndarray:
    """One count per item: [n, 2 labels, 3 readings], in the order of LABELS and READINGS."""
    counts = np.zeros((len(labels), len(LABELS), len(READINGS)), dtype=np.int64)
    rows = np.arange(len(labels))
    counts[rows, [LABELS.index(x) for x in labels], [READINGS.index(x) for x in readings]] = 1
    return counts


@dataclass(frozen=True)
class YesNo(scoring.Scorer):
    """A rule for answers to yes/no questions; references are "yes" and "no".

    Attributes:
        read: an answer as "yes", "no" or "other".
        undefined: a ratio with nothing below the line.
        unreadable_is_missed: whether "other" is a missed object where the label is yes.
    """

    name: str
    version: str
    read: Callable[[str], str]
    undefined: float = math.nan
    unreadable_is_missed: bool = False
    yes_ratio_of_labels: bool = False
    figures: tuple[str, ...] = FIGURES
    proportion = "accuracy"

    def tally(self, references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        return confusion(references, [self.read(answer) for answer in answers])

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The five figures, each [...], of summed counts [..., 2, 3]; "yes" is the positive class."""
        counts = sums.astype(np.float64)
        true_positive, false_negative = counts[..., 0, 0], counts[..., 0, 1]
        false_positive, true_negative = counts[..., 1, 0], counts[..., 1, 1]
        if self.unreadable_is_missed:
            false_negative = false_negative + counts[..., 0, 2]
        total = counts.sum((-2, -1))
        precision = ratio(true_positive, true_positive + false_positive, self.undefined)
        recall = ratio(true_positive, true_positive + false_negative, self.undefined)
        yes = counts[..., 0, :].sum(-1) if self.yes_ratio_of_labels else counts[..., :, 0].sum(-1)
        figures = {
            "accuracy": ratio(true_positive + true_negative, total, self.undefined),
            "precision": precision,
            "recall": recall,
            "f1": ratio(2 * precision * recall, precision + recall, self.undefined),
            "yes_ratio": ratio(yes, total, self.undefined),
            "unreadable": ratio(counts[..., :, 2].sum(-1), total, self.undefined),
        }
        return {name: figures[name] for name in self.figures}

    def right(self, counts: np.ndarray) -> np.ndarray:
        return (counts[:, 0, 0] + counts[:, 1, 1]).astype(bool)

    def details(self, sums: np.ndarray) -> dict[str, dict[str, int]]:
        """{"label_yes": {"yes": 1, "no": 2, "other": 0}, "label_no": ...}."""
        return {
            f"label_{label}": {reading: int(sums[i, j]) for j, reading in enumerate(READINGS)}
            for i, label in enumerate(LABELS)
        }


class LabelDependent(YesNo):
    """VCD's rule, which looks for the label in the answer."""

    def tally(self, references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        opposite = {"yes": "no", "no": "yes"}
        readings = [
            label if label in answer.lower() else opposite[label]
            for label, answer in zip(references, answers, strict=True)
        ]
        return confusion(references, readings)


OFFICIAL = YesNo("official", "AoiDragon/POPE 08d957b evaluate.py", read_official)
OPERA = YesNo("opera", "shikiw/OPERA 61426ef", read_opera)
VCD = LabelDependent("vcd", "DAMO-NLP-SG/VCD d6568ff eval_pope.py", read_official)
HARNESS = YesNo("harness", "lmms-eval 75571cf", read_harness, undefined=0.0, yes_ratio_of_labels=True)
VLMEVALKIT = YesNo(
    "vlmevalkit", "VLMEvalKit e8e78f0, no judge", read_vlmevalkit, undefined=0.0, unreadable_is_missed=True
)
OWN = YesNo("regaze", "1", read_strictly, unreadable_is_missed=True, figures=(*FIGURES, "unreadable"))
SCORERS = (OFFICIAL, HARNESS, OPERA, VCD, VLMEVALKIT, OWN)


def compare(
    scorer: YesNo, items: Sequence[Item], answers: Mapping[str, Sequence[str]], *, seed: int
) -> dict[str, Any]:
    """`scoring.compare` of answers to items, with intervals over their images."""
    references, clusters = [item.label for item in items], [str(item.image) for item in items]
    return scoring.compare(scorer, references, answers, clusters=clusters, seed=seed)
