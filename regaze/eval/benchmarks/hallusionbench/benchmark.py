"""HallusionBench: yes/no questions on figures and edited images (Guan et al., CVPR 2024, arXiv 2310.14566).

A question is asked about a figure and about edited copies of it, and a figure is asked several questions. So
there are accuracies per answer (aAcc), per question over all its figures (qAcc), per figure over all its
questions (fAcc). VS questions can be answered without their figure and are asked without it, too (178 of the
1,129 items): there "cannot tell" is right, and there is no figure to count.

`official`
    A judge compares each answer with the reference. "easy" and "hard" are shares of groups, not of questions:
    of all that is asked of one question without a figure or on the original, and on edited figures. Wrong
    answers are put down to language (LH), vision (VI) or both, for which a second verdict says whether an
    answer stayed the same as on the original.
`vlmevalkit`
    The 951 items with a figure, by the words yes and no, no judge. Its headline is the mean of the three.
`lmms-eval-intern`
    A rule in lmms-eval: "yes" anywhere in the answer, else no; 951 items.
`regaze`
    Ours: the official arithmetic on all items with answers read by their first word; unreadable is "cannot
    tell".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, Item, first
from regaze.eval.benchmarks.common.download import github
from regaze.eval.benchmarks.common.judged import Judged, Template
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import read_strictly, read_vlmevalkit

FILE = "HallusionBench.json"
#: What a judge makes of an answer, in the order of the official codes.
INCORRECT, CORRECT, UNCLEAR = range(3)

CORRECTNESS = Template(
    "You grade an answer to a question about a picture.\nQuestion: {question}\nReference: {reference}\n"
    'Answer: {answer}\nWrite "correct" if the answer agrees with the reference, "incorrect" if it '
    'contradicts it, and "unclear" if it takes no position. Write that one word only.',
    "regaze 1",
)
SAMENESS = Template(
    "Two answers were given to the same question about two versions of a picture.\nFirst: {first}\nSecond: "
    '{second}\nWrite "same" if both can be true at once, else "different". Write that one word only.',
    "regaze 1",
)


@dataclass(frozen=True)
class Asked:
    """Where a question belongs: the official keys of an item, `positive` when the right answer is yes."""

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
        """Asked about the original figure or, of a VS question, without one."""
        return self.figure_id == "0"

    @property
    def without_image(self) -> bool:
        return self.visual_input == "0"


@dataclass(frozen=True)
class Verdict:
    """INCORRECT, CORRECT or UNCLEAR, and whether the answer is the same as on the original figure."""

    code: int
    same: bool | None = None


@dataclass(frozen=True)
class Official(Scorer):
    """The official arithmetic, in percent where it is; "answers" are `Verdict`, references `Asked`."""

    shares = ("yes_difference", "false_positive_ratio")
    name: str = "official"
    version: str = "tianyi-lab/HallusionBench 744007c evaluation.py"
    causes: bool = True

    @property
    def figures(self) -> tuple[str, ...]:  # type: ignore[override]
        """The leaderboard's five, the yes/no bias, consistency per figure, with `causes` LH, VI and mixed."""
        five = ("aAcc", "qAcc", "fAcc", "easy", "hard")
        rest = ("yes_difference", "false_positive_ratio", "inconsistent", "wrong")
        return (*five, *rest, *(("LH", "VI", "mixed") if self.causes else ()))

    def tally(self, references: Sequence[Asked], answers: Sequence[Verdict]) -> np.ndarray:
        """[n, 19]; what is counted per group stands in the row of its first item."""
        right = [_is_right(*pair) for pair in zip(references, answers, strict=True)]
        counts = np.zeros((len(answers), 19))
        originals = {r.question: v.code for r, v in zip(references, answers, strict=True) if r.original}
        for row, reference, verdict, good in zip(counts, references, answers, right, strict=True):
            said_yes = reference.positive == good  # unclear counts as the wrong polarity
            row[:6] = good, 1, said_yes, reference.positive, not good, not good and not reference.positive
            language, vision = _blame(reference, verdict, originals.get(reference.question, CORRECT))
            row[16:] = language and not vision, vision and not language, language and vision
        every = range(len(references))
        easy = [i for i in every if references[i].visual_input != "2"]
        hard = [i for i in every if references[i].visual_input == "2"]
        for place, chosen in ((6, every), (8, easy), (10, hard)):
            for group in _grouped(references, lambda each: each.question, chosen):
                counts[group[0], place : place + 2] = all(right[i] for i in group), 1
        shown = [i for i in every if not _no_figure(references[i])]
        for group in _grouped(references, lambda each: each.figure, shown):
            many = sum(right[i] for i in group)
            counts[group[0], 12:16] = many == len(group), 0 < many < len(group), many == 0, 1
        return counts

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        at = np.moveaxis(sums, -1, 0)
        every = {
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
        return {figure: every[figure] for figure in self.figures}

    def right(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0

    def details(self, sums: np.ndarray) -> dict[str, int]:
        """Items, question groups, figures; the question groups on original and on edited figures."""
        names = {"items": 1, "questions": 7, "figures": 15, "easy": 9, "hard": 11}
        return {name: int(sums[place]) for name, place in names.items()}


def _no_figure(reference: Asked) -> bool:
    return reference.category == "VS" and reference.original


def _is_right(reference: Asked, verdict: Verdict) -> bool:
    return verdict.code == CORRECT or (verdict.code == UNCLEAR and _no_figure(reference))


def _grouped(
    references: Sequence[Asked], key: Callable[[Asked], Hashable], chosen: Iterable[int]
) -> list[list[int]]:
    """The chosen items by their key, as lists of their numbers."""
    groups: dict[Hashable, list[int]] = {}
    for index in chosen:
        groups.setdefault(key(references[index]), []).append(index)
    return list(groups.values())


def _blame(reference: Asked, verdict: Verdict, original: int) -> tuple[bool, bool]:
    """(language, vision) may have caused this verdict, given the one on the original figure."""
    language, vision, both, none = (True, False), (False, True), (True, True), (False, False)
    if verdict.code == CORRECT or (verdict.code == UNCLEAR and _no_figure(reference)):
        return none
    if reference.original:
        return language if reference.category == "VS" else vision
    wrong = verdict.code == INCORRECT
    if reference.category == "VD":
        # Right on the original, and the same answer on an edited figure where it is wrong: either may be it.
        return both if wrong and original == CORRECT and verdict.same else vision
    if original == INCORRECT:
        return language if wrong and verdict.same else both
    repeated = wrong and original == CORRECT and reference.visual_input == "2" and verdict.same
    return language if repeated else vision


@dataclass(frozen=True)
class WordRule(Scorer):
    """aAcc, fAcc, qAcc of the items with an image, by the words of the answer; references are `Asked`."""

    shares = ()
    name: str
    version: str
    read: Callable[[str], str]
    figures: tuple[str, ...] = ("mean", "aAcc", "fAcc", "qAcc")

    def tally(self, references: Sequence[Asked], answers: Sequence[str]) -> np.ndarray:
        """[n, kinds, 6]: right and all answers, figures, questions."""
        kinds = _KINDS
        counts = np.zeros((len(answers), len(kinds), 6))
        right = [
            self.read(answer) == ("yes" if reference.positive else "no")
            for reference, answer in zip(references, answers, strict=True)
        ]
        keys: tuple[Callable[[Asked], Hashable], ...] = (
            lambda each: (each.figure, each.question_id),
            lambda each: each.figure,
            lambda each: each.question,
        )
        shown = [i for i, reference in enumerate(references) if not reference.without_image]
        for place, key in enumerate(keys):
            for group in _grouped(references, key, shown):
                kind = kinds.index(references[group[0]].kind)
                counts[group[0], kind, 2 * place : 2 * place + 2] = all(right[i] for i in group), 1
        return counts

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return self._of(sums.sum(-2))

    def _of(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        three = [100 * ratio(sums[..., i], sums[..., i + 1]) for i in (0, 2, 4)]
        return {"mean": sum(three[1:], three[0]) / 3, **dict(zip(self.figures[1:], three, strict=True))}

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """The figures of VD, VS and each kind that occurs."""
        parts = {
            **{category: [k for k in _KINDS if k.startswith(category)] for category in ("VD", "VS")},
            **{kind: [kind] for kind in _KINDS},
        }
        chosen = {name: sums[[_KINDS.index(kind) for kind in kinds]].sum(0) for name, kinds in parts.items()}
        return {
            name: {figure: float(value) for figure, value in self._of(part).items()}
            for name, part in chosen.items()
            if part[1]
        }

    def right(self, counts: np.ndarray) -> np.ndarray | None:
        """None: items without an image are neither right nor wrong here."""
        return None


_KINDS = (
    *(f"VD_{kind}" for kind in ("illusion", "math", "video", "figure", "ocr")),
    *(f"VS_{kind}" for kind in ("chart", "table", "map", "ocr")),
)
VLMEVALKIT = WordRule("vlmevalkit", "VLMEvalKit e8e78f0, no judge", read_vlmevalkit)
INTERN = WordRule(
    "lmms-eval-intern", "lmms-eval 75571cf", lambda answer: "yes" if "yes" in answer.lower() else "no"
)


@dataclass(frozen=True)
class ByFirstWord(Official):
    """The official arithmetic on readings of the answers themselves; references are `Asked`."""

    name: str = "regaze"
    version: str = "1"
    causes: bool = False

    def tally(self, references: Sequence[Asked], answers: Sequence[Any]) -> np.ndarray:
        return super().tally(references, [_read(*pair) for pair in zip(references, answers, strict=True)])


def _read(reference: Asked, answer: str) -> Verdict:
    reading = read_strictly(answer)
    if reading == "other":
        return Verdict(UNCLEAR)
    return Verdict(CORRECT if (reading == "yes") == reference.positive else INCORRECT)


@dataclass(frozen=True)
class HallusionBench(Judged):
    """All 1,129 items; with `judged` the official score, else those that need no judge.

    Attributes:
        correctness, sameness: the judge's prompts, with {question}, {reference}, {answer}; {first}, {second}.
    """

    items: tuple[Item, ...]
    judged: bool = False
    judge: judges.Judge | None = None
    correctness: Template = CORRECTNESS
    sameness: Template = SAMENESS
    suffix: str = ""
    name: str = "hallusionbench"
    about: ClassVar[About] = About(
        title="HallusionBench",
        paper="Guan et al., CVPR 2024, arXiv 2310.14566",
        licence="BSD 3-Clause",
        images="charts, maps, posters, illusions and film stills collected by the authors, on Google Drive",
        home="https://github.com/tianyi-lab/HallusionBench",
        hub="lmms-lab-encoder/HallusionBench",
        files=(
            github(
                "tianyi-lab/HallusionBench",
                "744007c232c292942c7f80eb61edb2465482da31",
                FILE,
                "ca6e0fb677dd56e5fb0e2700d06c58d01f8a6ae66e0f1773b2ac48c0a095d051",
            ),
        ),
    )

    @classmethod
    def load(
        cls,
        folder: Path,
        images: Path | None = None,
        *,
        images_only: bool = False,
        judge: judges.Judge | None = None,
        limit: int | None = None,
        **options: Any,
    ) -> HallusionBench:
        """HallusionBench.json in `folder`, pictures as it names them in `images` (`folder`/hallusion_bench).

        Args:
            images_only: leave out the 178 items without an image, as harnesses do.
            judge: with one the official score is taken, unless the option `judged` is False.
            limit: items; sets of figures and questions that belong together stay together.

        Raises:
            InputError: a missing or malformed file.
        """
        path = files.find_file(folder, FILE)
        pictures = images or folder / "hallusion_bench"
        items = []
        for number, (line, record) in enumerate(files.read_records(path)):
            source = f"{path}:{line}"
            name = record.get("filename") if isinstance(record, dict) else None
            item = _item(number, record, source, pictures / str(name).removeprefix("./") if name else None)
            if item.image is not None or not images_only:
                items.append(item)
        return cls(
            first(items, limit, {item.key: item.reference.set for item in items}),
            judge=judge,
            **{"judged": judge is not None, **options},
        )

    @classmethod
    def from_hub(
        cls, *, judge: judges.Judge | None = None, limit: int | None = None, **options: Any
    ) -> HallusionBench:
        """The 951 items with an image, from the hub's copy."""
        items = []
        for number, row in enumerate(hub.rows(cls.about.hub, split="image")):
            items.append(_item(number, row.values, row.source, row.image))
        return cls(
            first(items, limit, {item.key: item.reference.set for item in items}),
            judge=judge,
            **{"judged": judge is not None, **options},
        )

    def verdicts(self, answers: Sequence[str]) -> list[Verdict]:
        """The judge's: whether each answer is right, and whether it stayed the same as on the original."""
        judge = self.configured()
        references = [item.reference for item in self.items]
        original = {
            ref.question: answer for ref, answer in zip(references, answers, strict=True) if ref.original
        }
        prompts = [
            self.correctness.fill(question=item.question, reference=item.reference.details, answer=answer)
            for item, answer in zip(self.items, answers, strict=True)
        ]
        codes = [read_verdict(text) for text in judge.judge(prompts)]
        edited = [i for i, reference in enumerate(references) if not reference.original]
        told = judge.judge(
            [
                self.sameness.fill(first=answers[i], second=original.get(references[i].question, answers[i]))
                for i in edited
            ]
        )
        same = {i: "same" in text.lower() for i, text in zip(edited, told, strict=True)}
        return [Verdict(code, same.get(i)) for i, code in enumerate(codes)]

    def scorers(self) -> Sequence[Scorer]:
        if self.judged:
            prompts = f"prompts {self.correctness.name} and {self.sameness.name}"
            return (Official(version=f"{Official.version}, {prompts}, judge {self.configured().name}"),)
        return (VLMEVALKIT, INTERN, ByFirstWord())

    def groups(self) -> dict[str, list[int]]:
        return {"all": list(range(len(self.items)))}

    def cluster(self, item: Item) -> Hashable:
        """A set: its questions and figures overlap."""
        return item.reference.set


def read_verdict(text: str) -> int:
    """The judge's words as the official script reads them: "incorrect" before "correct", else unclear."""
    text = text.lower()
    if "incorrect" in text:
        return INCORRECT
    return CORRECT if "correct" in text else UNCLEAR


def _item(number: int, record: Any, source: str, image: Path | None) -> Item:
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input", "gt_answer")
    values = {key: str(files.field(record, key, (str, int), source)) for key in keys}
    if f"{values['category']}_{values['subcategory']}" not in _KINDS or values["gt_answer"] not in "01":
        raise InputError(f"{source}: unknown category or gt_answer in {values}")
    positive = values.pop("gt_answer") == "1"
    details = str(record.get("gt_answer_details") or "")
    if (image is None) != (values["visual_input"] == "0"):
        raise InputError(f"{source}: visual_input {values['visual_input']} does not fit filename {image}")
    reference = Asked(**values, positive=positive, details=details)
    label = "yes" if positive else "no"
    question = files.field(record, "question", str, source)
    return Item(str(number), values["category"], image, question, label, source, reference)
