"""MME: two yes/no questions per image in 14 tasks (Fu et al., 2023, arXiv 2306.13394).

A task's score is 100 (acc + acc+): the share of right answers and the share of images with both right, 200 at
best. Ten tasks make perception (2,000), four cognition (800); papers on hallucination add up existence,
count, position and color (800). Who always says yes has 50 per task.

`official`
    The published script: "yes" in the first four characters of the lower-case answer, else "no" in them, else
    neither, which is wrong ("The answer is yes", too). It stops when a task has no readable answer: here its
    figures are then undefined.
`lmms-eval`
    The same after stripping white space and full stops; a lone y or n is read, too.
`vlmevalkit`
    The words yes and no after punctuation is stripped, without its judge; calls cognition reasoning.
`regaze`
    Ours: the first word, if the other does not follow; adds the share of unreadable answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, Item, Scored, first
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import LABELS, READINGS, confusion, read_strictly, read_vlmevalkit

PERCEPTION = (
    *(
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
HALLUCINATION = PERCEPTION[:4]
TASKS = (*PERCEPTION, *COGNITION)
TOTALS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": HALLUCINATION}

TAIL = "Please answer yes or no."
SUFFIX = "\nAnswer the question using a single word or phrase."


def read_official(answer: str) -> str:
    """Read an answer as MME's calculation.py does: "yes", "no" or "other"."""
    return next((label for label in LABELS if label in answer.lower()[:4]), "other")


def read_lmms_eval(answer: str) -> str:
    """Read an answer as lmms-eval does for MME: "yes", "no" or "other"."""
    text = answer.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or read_official(text)


@dataclass(frozen=True)
class Asked:
    """A question's reference: its task, the right answer, and the image that it shares with another one."""

    task: str
    label: str
    pair: str


@dataclass(frozen=True)
class MmeScorer(Scorer):
    """MME's scores with one way of reading answers; references are `Asked`, pairs next to each other or not.

    Attributes:
        tasks: those that are there; totals are given where all of their tasks are.
        stops: a task without a readable answer leaves its figures undefined.
    """

    shares = ("unreadable",)
    name: str
    version: str
    read: Callable[[str], str]
    tasks: tuple[str, ...] = TASKS
    stops: bool = False
    own: bool = False

    @property
    def figures(self) -> tuple[str, ...]:  # type: ignore[override]
        """Totals, then the score of each task."""
        totals = [name for name, tasks in TOTALS.items() if set(tasks) <= set(self.tasks)]
        return (*totals, *self.tasks, *(("unreadable",) if self.own else ()))

    def tally(self, references: Sequence[Asked], answers: Sequence[str]) -> np.ndarray:
        """[n, tasks, 8]: readings by label (2 x 3), then both right and pairs, once per image.

        Raises:
            InputError: an image without exactly two questions.
        """
        readings = confusion([each.label for each in references], [self.read(answer) for answer in answers])
        right = readings[:, 0, 0] + readings[:, 1, 1]
        pairs: dict[tuple[str, str], list[int]] = {}
        for row, reference in enumerate(references):
            pairs.setdefault((reference.task, reference.pair), []).append(row)
        counts = np.zeros((len(answers), len(self.tasks), 8), dtype=np.int64)
        for (task, pair), rows in pairs.items():
            if len(rows) != 2:
                raise InputError(f"MME {task}: {len(rows)} questions about {pair}, expected 2")
            place = self.tasks.index(task)
            counts[rows, place, :6] = readings[rows].reshape(-1, 6)
            counts[rows[0], place, 6:] = right[rows].all(), 1
        return counts

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, asked = sums[..., 0] + sums[..., 4], sums[..., :6].sum(-1)
        unreadable = sums[..., 2] + sums[..., 5]
        score = (ratio(right, asked) + ratio(sums[..., 6], sums[..., 7])) * 100
        if self.stops:
            score = np.where(unreadable == asked, np.nan, score)
        every = dict(zip(self.tasks, np.moveaxis(score, -1, 0), strict=True))
        for name, tasks in TOTALS.items():
            if set(tasks) <= set(self.tasks):
                every[name] = sum((every[task] for task in tasks), np.zeros(()))
        every["unreadable"] = ratio(unreadable.sum(-1), asked.sum(-1))
        return {figure: every[figure] for figure in self.figures}

    def right(self, counts: np.ndarray) -> np.ndarray:
        return (counts[:, :, 0] + counts[:, :, 4]).sum(1) > 0

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """{task: {"acc", "acc_plus", "precision", "recall", "TP", "FN", "FP", "TN", "other"}}.

        Precision and recall are of the readable answers, as the official script has them.
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


@dataclass(frozen=True)
class Mme(Scored):
    """MME's questions, all tasks or some.

    They end in "Please answer yes or no."; with `llava` this tail gives way to LLaVA's suffix.
    """

    items: tuple[Item, ...]
    llava: bool = False
    name: str = "mme"
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
        folder: Path,
        images: Path | None = None,
        *,
        tasks: Sequence[str] = TASKS,
        limit: int | None = None,
        llava: bool = False,
    ) -> Mme:
        """From the evaluation tool's <task>.txt files, or from the release's folder per task.

        Args:
            images: holds <task>/<image> or <task>/images/<image>; without it `folder` does.
            tasks: `HALLUCINATION` or any others of `TASKS`.
            limit: questions per task; an image's two questions stay together.

        Raises:
            InputError: an unknown task, a missing file, a malformed line, an image without two questions.
        """
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            raise InputError(f"MME has the tasks {', '.join(TASKS)}; got {', '.join(unknown) or 'none'}")
        items = [item for task in tasks for item in _paired(_task(folder, images or folder, task), task)]
        return cls(_first_pairs(items, limit), llava)

    @classmethod
    def from_hub(cls, *, limit: int | None = None, llava: bool = False) -> Mme:
        """All tasks from the hub's copy."""
        items: list[Item] = []
        for row in hub.rows(cls.about.hub, split="test"):
            task, pair = str(row.values.get("category")), str(row.values.get("question_id"))
            question = files.field(row.values, "question", str, row.source)
            items.append(
                _item(task, len(items), row.image, pair, question, row.values.get("answer"), row.source)
            )
        return cls(_first_pairs(items, limit), llava)

    @classmethod
    def of_demo(
        cls,
        limit: int | None = None,
        tasks: Sequence[str] = ("existence", "count", "color"),
        llava: bool = True,
    ) -> Mme:
        """Questions in MME's manner about the shipped scenes; `tasks` may also be position.

        The demo model was taught yes and no for existence only, with LLaVA's suffix or none. It is near
        chance on count and color, answers MME's own "Please answer yes or no." with a caption, and questions
        of position with colours.
        """
        from regaze.eval.benchmarks.mme.demo import questions

        items = [
            _item(task, number, image, image.name, f"{text} {TAIL}", label)
            for task in tasks
            for number, (image, text, label) in enumerate(questions(task))
        ]
        return cls(_first_pairs(items, limit), llava)

    def prompt(self, item: Item) -> str:
        if not self.llava:
            return item.question
        return item.question.removesuffix(TAIL).rstrip() + SUFFIX

    def scorers(self) -> Sequence[Scorer]:
        tasks = tuple(dict.fromkeys(item.reference.task for item in self.items))
        return (
            MmeScorer("official", "BradyFU dd29509 calculation.py", read_official, tasks, stops=True),
            MmeScorer("lmms-eval", "lmms-eval 75571cf", read_lmms_eval, tasks),
            MmeScorer("vlmevalkit", "VLMEvalKit e8e78f0, no judge", read_vlmevalkit, tasks),
            MmeScorer("regaze", "1", read_strictly, tasks, own=True),
        )

    def groups(self) -> dict[str, list[int]]:
        """One block, with a figure per task."""
        return {"all": list(range(len(self.items)))}

    def cluster(self, item: Item) -> tuple[str, str]:
        return item.reference.task, item.reference.pair


def _item(
    task: str, number: int, image: Path | None, pair: str, question: str, label: Any, source: str = ""
) -> Item:
    answer = label.lower() if isinstance(label, str) else label
    if answer not in LABELS:
        raise InputError(f"{source}: the right answer must be Yes or No, got {label!r}")
    if task not in TASKS:
        raise InputError(f"{source}: MME has no task {task!r}")
    return Item(f"{task}/{number}", task, image, question, answer, source, Asked(task, answer, pair))


def _task(folder: Path, images: Path, task: str) -> Iterator[Item]:
    """The questions of one task, in either layout."""
    place = images / task / "images" if (images / task / "images").is_dir() else images / task
    single = [path for path in (folder / f"{task}.txt", folder / f"{task}.txt.gz") if path.is_file()]
    if single:
        lines = list(_lines(single[0], (3, 4)))
    elif (folder / task).is_dir():
        lines = list(_release(folder / task, place))
    else:
        raise InputError(f"{folder} has neither {task}.txt nor a folder {task}")
    for number, (source, fields) in enumerate(lines):
        yield _item(task, number, place / fields[0], fields[0], fields[1], fields[2], source)


def _lines(path: Path, count: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """(source, fields between tabs) of every line."""
    for line, text in enumerate(files.read_text(path).rstrip("\n").split("\n"), start=1):
        fields = text.split("\t")
        if len(fields) not in count:
            wanted = " or ".join(map(str, count))
            raise InputError(f"{path}:{line}: {len(fields)} fields between tabs, expected {wanted}")
        yield f"{path}:{line}", fields


def _release(folder: Path, images: Path) -> Iterator[tuple[str, list[str]]]:
    """As `_lines` gives them, of a folder with a text file of two questions beside each image."""
    texts = folder / "questions_answers_YN" if (folder / "questions_answers_YN").is_dir() else folder
    names = {path.stem: path.name for path in images.iterdir() if path.suffix in (".jpg", ".png", ".jpeg")}
    for path in sorted(texts.glob("*.txt")):
        if path.stem not in names:
            raise InputError(f"{path}: {images} has no image of that name")
        for source, fields in _lines(path, (2,)):
            yield source, [names[path.stem], *fields]


def _paired(items: Iterator[Item], task: str) -> list[Item]:
    """The items, checked to come in pairs about one image.

    Raises:
        InputError: an odd number of questions, or two neighbours about different images (named).
    """
    listed = list(items)
    for one, other in zip(listed[::2], [*listed[1::2], None], strict=False):
        if other is None or one.reference.pair != other.reference.pair:
            raise InputError(
                f"{one.source}: {task} must have two questions in a row about {one.reference.pair}"
            )
    return listed


def _first_pairs(items: Sequence[Item], limit: int | None) -> tuple[Item, ...]:
    return first(items, limit, {item.key: (item.reference.task, item.reference.pair) for item in items})
