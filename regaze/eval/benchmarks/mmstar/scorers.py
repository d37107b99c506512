"""MMStar's scoring rules: the official one, two harnesses', and ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regaze.caching import cached_property
from regaze.eval.benchmarks.common import choice_readers, multiple_choice
from regaze.eval.benchmarks.common.scoring import Scorer, ratio

#: category -> its sub-categories, of the 1,500 published questions
CATEGORIES: dict[str, tuple[str, ...]] = {
    "coarse perception": ("image scene and topic", "image style & quality", "image emotion"),
    "fine-grained perception": ("object counting", "recognition", "localization"),
    "instance reasoning": (
        "single-instance reasoning",
        "cross-instance attribute reasoning",
        "cross-instance relation reasoning",
    ),
    "logical reasoning": ("code & sequence reasoning", "diagram reasoning", "common reasoning"),
    "science & technology": (
        "biology & chemistry & physics",
        "electronics & energy & mechanical eng.",
        "geography & earth science & agriculture",
    ),
    "math": ("geometry", "numeric commonsense and calculation", "statistical reasoning"),
}
QUESTIONS_PER_CATEGORY = 250
_OFFICIAL_PREFIXES = ("", "(", "option ", "the answer is ")


@dataclass(frozen=True)
class MmstarReference:
    """A question: category and sub-category, the options as published, the right one's letter."""

    category: str
    subcategory: str
    options: tuple[str, ...]
    letter: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.category, self.subcategory


def read_official(answer: str) -> str:
    """The letter for which the official script counts an answer as right, "" for none.

    The first character after nothing, "(", "option " or "the answer is " in lower case, so that "Because" is
    B and "**B**" nothing.
    """
    text = answer.lower().strip().replace("\n", " ")
    for prefix in reversed(_OFFICIAL_PREFIXES):  # at most one of them is followed by a letter of A to D
        following = text[len(prefix) : len(prefix) + 1]
        if text.startswith(prefix) and following and following in "abcd":
            return following.upper()
    return ""


@dataclass(frozen=True)
class MmstarScorer(Scorer):
    """Base of the scorers: the share of right answers, and a figure per category.

    Attributes:
        kinds: (category, sub-category) of the questions, each once.
    """

    name: str
    version: str
    kinds: tuple[tuple[str, str], ...]
    accuracy_metric = "accuracy"

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories in the order of the questions."""
        return tuple(dict.fromkeys(category for category, _ in self.kinds))

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("accuracy", *self.categories)

    @cached_property
    def _of_category(self) -> np.ndarray:
        """bool [categories, kinds]."""
        return np.array([[kind[0] == each for kind in self.kinds] for each in self.categories])

    def read(self, reference: MmstarReference, answer: str) -> str:
        """The letter that an answer chooses, "" for none."""
        raise NotImplementedError

    def count(self, references: Sequence[MmstarReference], answers: Sequence[str]) -> np.ndarray:
        """[n, kinds, 3]: right, unreadable, 1, in the column of the question's kind."""
        counts = np.zeros((len(references), len(self.kinds), 3), dtype=np.int64)
        for row, (reference, answer) in enumerate(zip(references, answers, strict=True)):
            letter = self.read(reference, answer)
            column = self.kinds.index(reference.kind)
            counts[row, column] = letter == reference.letter, not letter, 1
        return counts

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, :, 0].sum(1) > 0

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, questions = sums[..., 0], sums[..., 2]
        shares = ratio(right @ self._of_category.T, questions @ self._of_category.T)
        figures = {"accuracy": ratio(right.sum(-1), questions.sum(-1))}
        return {**figures, **dict(zip(self.categories, np.moveaxis(shares, -1, 0), strict=True))}

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """{"category(sub-category)": share of right answers}."""
        shares = ratio(sums[:, 0], sums[:, 2]).tolist()
        return {f"{a}({b})": share for (a, b), share in zip(self.kinds, shares, strict=True)}


@dataclass(frozen=True)
class OfficialScorer(MmstarScorer):
    """The script's rule.

    The script divides by 250 per category and by 1,500, and a sub-category without questions stops it: on
    anything but the whole benchmark its figures are undefined here.

    Attributes:
        is_whole: Whether these are the 1,500 questions.
    """

    is_whole: bool = True

    def read(self, reference: MmstarReference, answer: str) -> str:
        return read_official(answer)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        figures = super().compute(sums)
        return figures if self.is_whole else {name: value * np.nan for name, value in figures.items()}


@dataclass(frozen=True)
class LmmsEvalScorer(MmstarScorer):
    """lmms-eval's: `average` and the categories are means over sub-categories, not over questions."""

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("average", *self.categories, "accuracy")

    def read(self, reference: MmstarReference, answer: str) -> str:
        return choice_readers.read_lmms_eval(choice_readers.strip_lmms_eval(answer))

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        shares = ratio(sums[..., 0], sums[..., 2])
        there = ~np.isnan(shares)  # a bootstrap draw may lack a sub-category
        filled = np.where(there, shares, 0.0)
        means = ratio(filled @ self._of_category.T, there @ self._of_category.T.astype(int))
        return {
            "average": ratio(filled.sum(-1), there.sum(-1)),
            **dict(zip(self.categories, np.moveaxis(means, -1, 0), strict=True)),
            "accuracy": super().compute(sums)["accuracy"],
        }


@dataclass(frozen=True)
class VlmEvalKitScorer(MmstarScorer):
    """VLMEvalKit's without a judge: what it cannot read is wrong."""

    def read(self, reference: MmstarReference, answer: str) -> str:
        return choice_readers.read_vlmevalkit(answer, reference.options)


@dataclass(frozen=True)
class ChoiceScorer(MmstarScorer):
    """Ours: `multiple_choice.read_choice`; unreadable answers are wrong and counted."""

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("accuracy", *self.categories, "unreadable")

    def read(self, reference: MmstarReference, answer: str) -> str:
        return multiple_choice.read_choice(answer, reference.options)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        unreadable = ratio(sums[..., 1].sum(-1), sums[..., 2].sum(-1))
        return {**super().compute(sums), "unreadable": unreadable}


def scorers(references: Sequence[MmstarReference]) -> tuple[MmstarScorer, ...]:
    """All rules for these questions; the official one leads where it is defined."""
    numbers = Counter(reference.kind for reference in references)
    kinds = tuple(numbers)
    whole = {(a, b) for a, names in CATEGORIES.items() for b in names} == set(kinds) and all(
        sum(n for (a, _), n in numbers.items() if a == category) == QUESTIONS_PER_CATEGORY
        for category in CATEGORIES
    )
    official = OfficialScorer("official", "MMStar-Benchmark/MMStar 88f243a mmstar.py", kinds, whole)
    rest = (
        LmmsEvalScorer("lmms-eval", "lmms-eval 75571cf", kinds),
        VlmEvalKitScorer("vlmevalkit", "VLMEvalKit e8e78f0, no judge", kinds),
    )
    ours = ChoiceScorer("regaze", "2", kinds)
    return (official, *rest, ours) if whole else (ours, official, *rest)
