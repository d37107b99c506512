"""HallusionBench: yes/no questions on figures and edited images (Guan et al., CVPR 2024, arXiv 2310.14566).

A question is about a figure and about edited copies of it, and a figure has several questions. So there are
accuracies per answer (aAcc), per question over all its figures (qAcc), per figure over all its questions
(fAcc). VS questions can be answered without their figure and are also put without it (178 of the 1,129
items): then "cannot tell" is correct, and there is no figure to count.

`official`
    A judge compares each answer with the reference. "easy" and "hard" are shares of groups, not of questions:
    the same question without a figure or on the original, and on edited figures. Wrong answers are attributed
    to language (LH), vision (VI) or both; this takes a second verdict, whether an answer is the same as on
    the original.
`vlmevalkit`
    The 951 items with a figure, by the words yes and no, no judge. Its headline is the mean of the three.
`lmms-eval-intern`
    A rule in lmms-eval: "yes" anywhere in the answer, else no; 951 items.
`regaze`
    Ours: the official arithmetic on all items with answers read by `yes_no_reading`; unreadable is "cannot
    tell".
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file
from regaze.eval.benchmarks.common.ids import plain_id
from regaze.eval.benchmarks.common.judged import JudgedBenchmark, JudgePrompt
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.hallusionbench.scorers import (
    CORRECT,
    INCORRECT,
    KINDS,
    LMMS_EVAL_INTERN,
    UNCLEAR,
    VLMEVALKIT,
    AnswerScorer,
    HallusionReference,
    OfficialScorer,
    Verdict,
)
from regaze.reading import StrPath

FILE = "HallusionBench.json"

CORRECTNESS = JudgePrompt(
    "You grade an answer to a question about a picture.\nQuestion: {question}\nReference: {reference}\n"
    'Answer: {answer}\nWrite "correct" if the answer agrees with the reference, "incorrect" if it '
    'contradicts it, and "unclear" if it takes no position. Write that one word only.',
    "regaze 1",
)
SAMENESS = JudgePrompt(
    "Two answers were given to the same question about two versions of a picture.\nFirst: {first}\nSecond: "
    '{second}\nWrite "same" if both can be true at once, else "different". Write that one word only.',
    "regaze 1",
)


@dataclass(frozen=True)
class HallusionBench(JudgedBenchmark):
    """All 1,129 items; with `judged` the official score, else those that need no judge.

    Attributes:
        correctness: The judge's first prompt, with {question}, {reference}, {answer}.
        sameness: The judge's second prompt, with {first}, {second}.
    """

    items: tuple[Item, ...]
    judged: bool = False
    judge: judges.Judge | None = None
    correctness: JudgePrompt = CORRECTNESS
    sameness: JudgePrompt = SAMENESS
    suffix: str = ""
    name: str = "hallusionbench"
    id_fields: ClassVar[tuple[str, ...]] = (
        *("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input"),
    )
    about: ClassVar[About] = About(
        title="HallusionBench",
        paper="Guan et al., CVPR 2024, arXiv 2310.14566",
        licence="BSD 3-Clause",
        images="charts, maps, posters, illusions and film stills collected by the authors, on Google Drive",
        home="https://github.com/tianyi-lab/HallusionBench",
        hub="lmms-lab-encoder/HallusionBench",
        files=(
            github_file(
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
        folder: StrPath,
        images: StrPath | None = None,
        *,
        images_only: bool = False,
        judge: judges.Judge | None = None,
        limit: int | None = None,
        **options: Any,
    ) -> HallusionBench:
        """HallusionBench.json in `folder`, images as it names them in `images` (`folder`/hallusion_bench).

        Args:
            images_only: Leave out the 178 items without an image, as harnesses do.
            judge: With a judge the score is the official one, unless the option `judged` is False.
            limit: Number of items; sets of related figures and questions stay together.

        Raises:
            InputError: A file is missing or malformed.
        """
        folder, image_folder = files.folders_of(folder, images, "hallusion_bench")
        path = files.find_file(folder, FILE)
        items = []
        for number, (line, record) in enumerate(files.read_records(path)):
            source = f"{path}:{line}"
            name = record.get("filename") if isinstance(record, dict) else None
            image = image_folder / str(name).removeprefix("./") if name else None
            item = _item(number, record, source, image)
            if item.image is not None or not images_only:
                items.append(item)
        return cls(_limit_sets(items, limit), judge=judge, **{"judged": judge is not None, **options})

    @classmethod
    def from_hub(
        cls, *, judge: judges.Judge | None = None, limit: int | None = None, **options: Any
    ) -> HallusionBench:
        """The 951 items with an image, from the hub's copy."""
        rows = enumerate(hub.read_rows(cls.about.hub, split="image"))
        items = [_item(number, row.values, row.source, row.image) for number, row in rows]
        return cls(_limit_sets(items, limit), judge=judge, **{"judged": judge is not None, **options})

    def verdicts(self, answers: Sequence[str]) -> list[Verdict]:
        """The judge's: whether each answer is correct, and whether it is the same as on the original."""
        judge = self.require_judge()
        references = [item.reference for item in self.items]
        originals = {
            reference.question: answer
            for reference, answer in zip(references, answers, strict=True)
            if reference.original
        }
        codes = judge.judge(
            [
                self.correctness.fill(question=item.question, reference=item.reference.details, answer=answer)
                for item, answer in zip(self.items, answers, strict=True)
            ]
        )
        edited = [i for i, reference in enumerate(references) if not reference.original]
        comparisons = judge.judge(
            [
                self.sameness.fill(first=answers[i], second=originals.get(references[i].question, answers[i]))
                for i in edited
            ]
        )
        same = {i: "same" in text.lower() for i, text in zip(edited, comparisons, strict=True)}
        return [Verdict(read_verdict(text), same.get(i)) for i, text in enumerate(codes)]

    def scorers(self) -> Sequence[Scorer]:
        if self.judged:
            prompts = f"prompts {self.correctness.name} and {self.sameness.name}"
            return (
                OfficialScorer(
                    version=f"{OfficialScorer.version}, {prompts}, judge {self.require_judge().name}"
                ),
            )
        return (VLMEVALKIT, LMMS_EVAL_INTERN, AnswerScorer())

    def groups(self) -> dict[str, list[int]]:
        return {"all": list(range(len(self.items)))}

    def cluster(self, item: Item) -> Hashable:
        """The set: its questions share figures."""
        return item.reference.set


def read_verdict(text: str) -> int:
    """Read the judge's words as the official script does: "incorrect" before "correct", else unclear."""
    text = text.lower()
    if "incorrect" in text:
        return INCORRECT
    return CORRECT if "correct" in text else UNCLEAR


def _item(number: int, record: Any, source: str, image: Path | None) -> Item:
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input", "gt_answer")
    values = {key: str(files.require_field(record, key, (str, int), source)) for key in keys}
    if f"{values['category']}_{values['subcategory']}" not in KINDS or values["gt_answer"] not in ("0", "1"):
        raise InputError(f"{source}: unknown category or gt_answer in {values}")
    positive = values.pop("gt_answer") == "1"
    given = record.get("gt_answer_details") or ""
    details = str(given and files.require_field(record, "gt_answer_details", str, source))
    if values["visual_input"] not in ("0", "1", "2") or (image is None) != (values["visual_input"] == "0"):
        raise InputError(f"{source}: visual_input {values['visual_input']} does not fit filename {image}")
    reference = HallusionReference(**values, positive=positive, details=details)
    label = "yes" if positive else "no"
    question = files.require_field(record, "question", str, source)
    own_id = "/".join(plain_id(values[name]) for name in HallusionBench.id_fields)
    return Item(str(number), values["category"], image, question, label, source, reference, id=own_id)


def _limit_sets(items: Sequence[Item], limit: int | None) -> tuple[Item, ...]:
    return limit_items(items, limit, {item.key: item.reference.set for item in items})
