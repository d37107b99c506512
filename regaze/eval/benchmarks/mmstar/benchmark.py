"""MMStar: questions that need the image (Chen et al., NeurIPS 2024, arXiv 2403.20330).

1,500 single-choice questions of six older benchmarks, 250 in each of six categories. It says nothing of
hallucination: `regaze compare` asks it beside hallucination benchmarks to see whether a method broke the
model.

`official`
    The first character of the answer, also after "(", "option " or "the answer is "; undefined on anything
    but all questions.
`lmms-eval`
    Letters by a list of formats, without blocks of reasoning; means over 18 sub-categories.
`vlmevalkit`
    Letters among the last words, else the text of an option; without its judge.
`regaze`
    Ours: a letter or an option's text (`multiple_choice.read_choice`); unreadable answers are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from regaze.bed.scenes import BED
from regaze.demo.shipped import DEMO, SceneSet
from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import IMAGE_TOKEN, About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import hub_file
from regaze.eval.benchmarks.common.embedded import save_embedded
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.mmstar.questions import LETTERS, split_options
from regaze.eval.benchmarks.mmstar.scorers import MmstarReference, scorers
from regaze.reading import StrPath

FILES = ("mmstar.parquet", "MMStar.tsv", "MMStar.jsonl")
_COLUMNS = ("index", "question", "answer", "category", "l2_category")
#: style -> (before the question, after it)
PROMPTS = {
    "official": ("Question: ", "\n"),
    "lmms-eval": ("", "\nAnswer with the option's letter from the given choices directly"),
}
MAX_NEW_TOKENS = 32
#: Bytes of a picture in a table.
_MAX_PICTURE = 16 * 2**20


@dataclass(frozen=True)
class Mmstar(BaseBenchmark):
    """The questions.

    Attributes:
        style: The official prompt ("Question: ...", nothing else), or lmms-eval's, which requests a letter.
        likelihood: Do not show the options: the answer is the likeliest of them behind the bare question.
    """

    items: tuple[Item, ...]
    style: Literal["official", "lmms-eval"] = "official"
    likelihood: bool = False
    name: str = "mmstar"
    splits: ClassVar[tuple[str, ...]] = ("all",)
    about: ClassVar[About] = About(
        title="MMStar",
        paper="Chen et al., NeurIPS 2024, arXiv 2403.20330",
        licence="none stated; the questions come from six other benchmarks",
        images="those of SEED-Bench, MMBench, MathVista, AI2D, MMMU and ScienceQA, on the hub",
        home="https://github.com/MMStar-Benchmark/MMStar",
        hub="Lin-Chen/MMStar",
        files=(hub_file("Lin-Chen/MMStar", "mmstar.parquet"),),
    )

    def __post_init__(self) -> None:
        if self.likelihood:
            ranked = (replace(item, options=_existing(item), max_new_tokens=None) for item in self.items)
            object.__setattr__(self, "items", tuple(ranked))

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        blind: bool = False,
        limit: int | None = None,
        **options: Any,
    ) -> Mmstar:
        """mmstar.parquet, MMStar.tsv (pictures in base64) or MMStar.jsonl in `folder`.

        Args:
            images: Folder of <index>.jpg, for a file without pictures; `folder`/images by default.
            blind: Ask without the images, for the leaderboard's multimodal gain.
            limit: Questions per category.

        Raises:
            InputError: A file is missing or malformed; names file and line.
        """
        folder, image_folder = files.folders_of(folder, images, "images")
        path = files.find_file(folder, *FILES)
        return cls._of_rows(_read_rows(path, image_folder), blind, limit, options)

    @classmethod
    def from_hub(cls, *, blind: bool = False, limit: int | None = None, **options: Any) -> Mmstar:
        """The published questions."""
        return cls._of_rows(hub.read_rows(cls.about.hub, split="val"), blind, limit, options)

    @classmethod
    def of_demo(cls, limit: int | None = None, *, likelihood: bool = True) -> Mmstar:
        """A question about each scene of the demo: an object, its colour, its side, the number of objects.

        The demo model knows no letters: by default the likeliest of four options is its answer.
        """
        return cls._of_scenes(DEMO, limit, likelihood)

    @classmethod
    def of_bed(cls, limit: int | None = None, *, likelihood: bool = True) -> Mmstar:
        """As `of_demo`, about the bed's scenes; letters it was taught behind options in another shape."""
        return cls._of_scenes(BED, limit, likelihood)

    @classmethod
    def _of_scenes(cls, shipped: SceneSet, limit: int | None, likelihood: bool) -> Mmstar:
        from regaze.eval.benchmarks.mmstar.demo import questions

        items = [
            _item(record, path, f"{shipped.name}:{number}", split=shipped.name)
            for number, (path, record) in enumerate(questions(shipped.scenes()), start=1)
        ]
        return cls(limit_items(items, limit), likelihood=likelihood)

    @classmethod
    def _of_rows(
        cls, rows: Iterator[hub.HubRow], blind: bool, limit: int | None, options: Mapping[str, Any]
    ) -> Mmstar:
        limit_items((), limit)  # refuse a bad limit before pictures are written
        items = [_item(row.values, None if blind else row.image, row.source) for row in rows]
        return cls(limit_items(items, limit), **options)

    def prompt(self, item: Item) -> str:
        if self.likelihood:
            return split_options(item.question, item.source)[0]
        before, after = PROMPTS[self.style]
        return f"{before}{item.question.strip() if self.style == 'lmms-eval' else item.question}{after}"

    def scorers(self) -> Sequence[Scorer]:
        """All rules; of likelihoods, whose answers are texts of options, our own alone."""
        rules = scorers([item.reference for item in self.items])
        return [rule for rule in rules if rule.name == "regaze"] if self.likelihood else rules

    def groups(self) -> dict[str, list[int]]:
        """One group, with a figure per category."""
        return {"all": list(range(len(self.items)))}


def _existing(item: Item) -> tuple[str, ...]:
    """The options without the last ones that do not exist, which are "nan"."""
    options = list(item.reference.options)
    while options[-1] == "nan" and item.reference.letter != LETTERS[len(options) - 1]:
        options.pop()
    return tuple(options)


def _item(record: Mapping[str, Any], image: Path | None, source: str, split: str | None = None) -> Item:
    number = str(files.require_field(record, "index", (int, str), source)).strip()
    question = files.require_field(record, "question", str, source)
    letter = files.require_field(record, "answer", str, source).strip().upper()
    category = files.require_field(record, "category", str, source).strip()
    subcategory = files.require_field(record, "l2_category", str, source).strip()
    _, options = split_options(question, source)
    if len(letter) != 1 or letter not in LETTERS[: len(options)] or not number.isdigit():
        raise InputError(
            f"{source}: expected a number as index and the letter of one of the {len(options)} options as "
            f"answer, got {number!r} and {letter!r}"
        )
    if IMAGE_TOKEN in question:
        raise InputError(f"{source}: {IMAGE_TOKEN} cannot be part of a question, got {question!r}")
    reference = MmstarReference(category, subcategory, options, letter)
    return Item(
        number,
        split or category,
        image,
        question,
        letter,
        source,
        reference,
        max_new_tokens=MAX_NEW_TOKENS,
        id=number,
    )


def _read_rows(path: Path, image_folder: Path) -> Iterator[hub.HubRow]:
    """The rows of a file of any kind, with their pictures on disk."""
    if path.name == "mmstar.parquet":
        yield from hub.read_parquet(path)
        return
    if ".tsv" in path.name:
        headings = [heading.strip().lower() for heading in files.read_headings(path, "\t", _MAX_PICTURE)]
        columns = (*_COLUMNS, *(["image"] if "image" in headings else []))
        table: list[tuple[int, Any]] = list(
            files.read_table(path, columns, delimiter="\t", max_field=_MAX_PICTURE)
        )
    else:
        table = files.read_records(path)
    pictures = files.cache_folder() / "benchmarks" / "mmstar" / "images"
    for line, record in table:
        source = f"{path}:{line}"
        if isinstance(record, dict) and record.get("image"):
            encoded = files.require_field(record, "image", str, source)
            image = save_embedded(encoded, pictures, source)
        else:
            number = files.require_field(record, "index", (int, str), source)
            image = image_folder / f"{Path(str(number)).name}.jpg"
        yield hub.HubRow(record, image, source)
