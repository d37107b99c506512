"""MME: two yes/no questions per image in 14 tasks (Fu et al., 2023, arXiv 2306.13394).

A task's score is 100 (acc + acc+): the share of correct answers plus the share of images with both correct,
200 at best. Ten tasks make perception (2,000), four cognition (800); papers on hallucination add up
existence, count, position and color (800). Always answering yes gives 50 per task.

`official`
    The published script: "yes" in the first four characters of the lower-case answer, else "no" in them, else
    neither, which is wrong ("The answer is yes", too). It stops when a task has no readable answer: here the
    scores are then undefined.
`lmms-eval`
    The same after stripping white space and full stops; a lone y or n is read, too.
`vlmevalkit`
    The words yes and no after punctuation is stripped, without its judge; it calls cognition reasoning.
`regaze`
    Ours: read by `yes_no_reading`; adds the share of unreadable answers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regaze.bed.scenes import BED
from regaze.demo.shipped import DEMO, SceneSet
from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.common.yes_no import LABELS, read_vlmevalkit
from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no
from regaze.eval.benchmarks.mme.scorer import (
    TASKS,
    MmeReference,
    MmeScorer,
    read_lmms_eval,
    read_official,
)
from regaze.reading import StrPath

#: What the questions end in.
ENDING = "Please answer yes or no."
SUFFIX = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Mme(BaseBenchmark):
    """MME's questions, all tasks or some.

    They end in "Please answer yes or no."; with `llava` LLaVA's suffix replaces this ending.
    """

    items: tuple[Item, ...]
    llava: bool = False
    name: str = "mme"
    splits: ClassVar[tuple[str, ...]] = ("all",)
    about: ClassVar[About] = About(
        title="MME",
        paper="Fu et al., 2023, arXiv 2306.13394",
        licence="none stated in its repository; the hub's copy is tagged apache-2.0",
        images="COCO, film posters, celebrities, landmarks, art and others, by request from the authors",
        home="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
        hub="lmms-lab-encoder/MME",
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        tasks: Sequence[str] = TASKS,
        limit: int | None = None,
        llava: bool = False,
    ) -> Mme:
        """From the evaluation tool's <task>.txt files, or from the release's folder per task.

        Args:
            images: Folder with <task>/<image> or <task>/images/<image>; `folder` by default.
            tasks: `HALLUCINATION` or any of `TASKS`.
            limit: Questions per task; the two questions of an image stay together.
            llava: Replace the questions' ending by LLaVA's suffix.

        Raises:
            InputError: Unknown task, missing file, malformed line, or an image without two questions.
        """
        folder, image_folder = files.folders_of(folder, images, "")
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            raise InputError(f"MME has the tasks {', '.join(TASKS)}; got {', '.join(unknown) or 'none'}")
        items = [item for task in tasks for item in _read_task(folder, image_folder, task)]
        return cls(_limit_pairs(items, limit), llava)

    @classmethod
    def from_hub(cls, *, limit: int | None = None, llava: bool = False) -> Mme:
        """All tasks from the hub's copy."""
        items: list[Item] = []
        for row in hub.read_rows(cls.about.hub, split="test"):
            task, pair = str(row.values.get("category")), str(row.values.get("question_id"))
            question = files.require_field(row.values, "question", str, row.source)
            items.append(
                _item(task, len(items), row.image, pair, question, row.values.get("answer"), row.source)
            )
        return cls(_limit_pairs(items, limit), llava)

    @classmethod
    def of_demo(
        cls,
        limit: int | None = None,
        tasks: Sequence[str] = ("existence", "count", "color"),
        llava: bool = True,
    ) -> Mme:
        """Questions in MME's style about the demo's scenes; `tasks` may also include position.

        The demo model was trained on yes/no questions of existence only, with LLaVA's suffix or none. It is
        near chance on count and color, answers MME's own "Please answer yes or no." with a caption, and
        questions of position with colours.
        """
        return cls._of_scenes(DEMO, tasks, limit, llava)

    @classmethod
    def of_bed(
        cls,
        limit: int | None = None,
        tasks: Sequence[str] = ("existence", "count", "position", "color"),
        llava: bool = True,
    ) -> Mme:
        """Questions in MME's style about the bed's scenes.

        It was taught existence and position as yes/no questions, counts and colors as others.
        """
        return cls._of_scenes(BED, tasks, limit, llava)

    @classmethod
    def _of_scenes(cls, shipped: SceneSet, tasks: Sequence[str], limit: int | None, llava: bool) -> Mme:
        from regaze.eval.benchmarks.mme.demo import questions

        items = [
            _item(task, number, image, image.name, f"{text} {ENDING}", label)
            for task in tasks
            for number, (image, text, label) in enumerate(questions(task, shipped.scenes()))
        ]
        return cls(_limit_pairs(items, limit), llava)

    def prompt(self, item: Item) -> str:
        if not self.llava:
            return item.question
        return item.question.removesuffix(ENDING).rstrip() + SUFFIX

    def wordings(self, item: Item) -> tuple[str, ...]:
        """Also without its ending, in the place of which harnesses put their own."""
        return (*super().wordings(item), item.question.removesuffix(ENDING).rstrip())

    def scorers(self) -> Sequence[Scorer]:
        tasks = tuple(dict.fromkeys(item.reference.task for item in self.items)) or TASKS
        return (
            MmeScorer(
                "official",
                "BradyFU dd29509 calculation.py",
                read_official,
                tasks,
                undefined_if_unreadable=True,
            ),
            MmeScorer("lmms-eval", "lmms-eval 75571cf", read_lmms_eval, tasks),
            MmeScorer("vlmevalkit", "VLMEvalKit e8e78f0, no judge", read_vlmevalkit, tasks),
            MmeScorer("regaze", "2", read_yes_no, tasks, report_unreadable=True),
        )

    def groups(self) -> dict[str, list[int]]:
        """One group, with a metric per task."""
        return {"all": list(range(len(self.items)))}

    def cluster(self, item: Item) -> tuple[str, str]:
        return item.reference.task, item.reference.pair


def _item(
    task: str, number: int, image: Path | None, pair: str, question: str, label: Any, source: str = ""
) -> Item:
    if not pair.strip() or not question.strip():
        raise InputError(f"{source}: expected an image and a question, got {pair!r} and {question!r}")
    answer = label.lower() if isinstance(label, str) else label
    if answer not in LABELS:
        raise InputError(f"{source}: the right answer must be Yes or No, got {label!r}")
    if task not in TASKS:
        raise InputError(f"{source}: MME has no task {task!r}")
    return Item(f"{task}/{number}", task, image, question, answer, source, MmeReference(task, answer, pair))


def _read_task(folder: Path, images: Path, task: str) -> list[Item]:
    """The questions of one task, in either layout. Raises InputError unless they come in pairs per image."""
    place = images / task / "images" if os.path.isdir(images / task / "images") else images / task
    single = [path for path in (folder / f"{task}.txt", folder / f"{task}.txt.gz") if os.path.isfile(path)]
    if single:
        rows = _read_single_file(single[0])
    elif os.path.isdir(folder / task):
        rows = _read_release(folder / task, place)
    else:
        raise InputError(f"{folder} has neither {task}.txt nor a folder {task}")
    items = [
        _item(task, number, place / image, image, question, label, source)
        for number, (source, image, question, label) in enumerate(rows)
    ]
    for one, other in zip(items[::2], [*items[1::2], None], strict=False):
        if other is None or one.reference.pair != other.reference.pair:
            raise InputError(
                f"{one.source}: {task} must have two questions in a row about {one.reference.pair}"
            )
        if one.question == other.question:
            raise InputError(
                f"{other.source}: the same question about {one.reference.pair} as the one before"
            )
    return items


#: (source, image name, question, label)
Row = tuple[str, str, str, str]


def _read_single_file(path: Path) -> list[Row]:
    """The evaluation tool's layout: image, question, label and, in result files, an answer."""
    return [
        (f"{path}:{line}", fields[0], fields[1], fields[2])
        for line, fields in files.read_tab_separated(path, (3, 4))
    ]


def _read_release(folder: Path, images: Path) -> list[Row]:
    """The release's layout: a text file of two questions per image."""
    texts = folder / "questions_answers_YN" if os.path.isdir(folder / "questions_answers_YN") else folder
    names = {path.stem: path.name for path in images.iterdir() if path.suffix in (".jpg", ".png", ".jpeg")}
    rows = []
    for path in sorted(texts.glob("*.txt")):
        if path.stem not in names:
            raise InputError(f"{path}: {images} has no image of that name")
        for line, (question, label) in files.read_tab_separated(path, (2,)):
            rows.append((f"{path}:{line}", names[path.stem], question, label))
    return rows


def _limit_pairs(items: Sequence[Item], limit: int | None) -> tuple[Item, ...]:
    return limit_items(items, limit, {item.key: (item.reference.task, item.reference.pair) for item in items})
