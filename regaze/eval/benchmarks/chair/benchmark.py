"""CHAIR: objects in captions that are not in the image (Rohrbach et al., EMNLP 2018, arXiv 1809.02156).

CHAIR_s is the share of captions with at least one hallucinated object, CHAIR_i the share of mentions that are
hallucinated. Three scorers are in circulation and disagree by up to three points (`words` says how):

`original`
    The paper's script: Pattern's singulars.
`standalone`
    Its stand-alone port, the same words; adds recall, the share of the objects there that are named.
`opera`
    OPERA's copy, which HALC, PAI, lmms-eval and most papers on large models use: tags and lemmas; adds
    recall and length.

`chair` looks for the words of a closed list, which is all that captions of the demo have.

The same model goes from CHAIR_s 46 to 21 with 64 tokens in place of 512, so the limit is part of the
benchmark. Which images are captioned is hardly ever published: give `ids`, or say how they were drawn.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.chair.ground_truth import Truth, read_truth
from regaze.eval.benchmarks.chair.words import (
    ClosedVocabulary,
    Mention,
    ObjectWords,
    Reader,
    pattern_forms,
    read_synonyms,
    wordnet_forms,
)
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, Item, Scored, first
from regaze.eval.benchmarks.common.download import benchmark_folder, github
from regaze.eval.benchmarks.common.scoring import Scorer, ratio

PROMPT = "Please describe this image in detail."
SYNONYMS = "synonyms.txt"
IMAGE_NAME = "COCO_val2014_{:012d}.jpg"
TOKENS = 512

_FIGURES = ("chair_s", "chair_i", "recall", "length", "chair_distinct", "words", "repeated_4grams")


@dataclass(frozen=True)
class ChairScorer(Scorer):
    """CHAIR with one way of finding objects in text; a reference is a `Truth`.

    Beside the scorer's own figures stand what can feign a gain: `chair_distinct`, where an object counts once
    however often it is named; `words` per caption; the share of 4-grams that repeat an earlier one.
    """

    shares = ("chair_s", "chair_i", "recall", "chair_distinct", "repeated_4grams")
    name: str
    version: str
    reader: Reader
    figures: tuple[str, ...] = _FIGURES

    def caption(self, truth: Truth, caption: str) -> tuple[list[Mention], list[Mention], set[str], int]:
        """(objects named, those hallucinated, the categories that are there, number of base forms)."""
        there = set(truth.objects)
        for told in truth.captions:
            there |= {mention.category for mention in _read(self.reader, told)[0]}
        named, words = _read(self.reader, caption)
        return named, [mention for mention in named if mention.category not in there], there, len(words)

    def tally(self, references: Sequence[Truth], answers: Sequence[str]) -> np.ndarray:
        """[n, 11], in the order in which `ratios` takes them."""
        return np.array([self._count(*pair) for pair in zip(references, answers, strict=True)])

    def _count(self, truth: Truth, caption: str) -> tuple[int, ...]:
        named, wrong, there, length = self.caption(truth, caption)
        distinct = {mention.category for mention in named}
        words = caption.lower().split()
        grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
        return (
            int(bool(wrong)),
            len(wrong),
            len(named),
            len(distinct & there),
            len(there),
            length,
            len(distinct),
            len(words),
            len(grams) - len(set(grams)),
            len(grams),
            1,
        )

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        bad, wrong, named, found, there, length, distinct, words, repeated, grams, captions = np.moveaxis(
            sums, -1, 0
        )
        every = {
            "chair_s": ratio(bad, captions),
            "chair_i": ratio(wrong, named),
            "recall": ratio(found, there),
            "length": ratio(length, captions),
            "chair_distinct": ratio(distinct - found, distinct),
            "words": ratio(words, captions),
            "repeated_4grams": ratio(repeated, grams),
        }
        return {figure: every[figure] for figure in self.figures}

    def right(self, counts: np.ndarray) -> np.ndarray:
        """Captions without a hallucination."""
        return counts[:, 0] == 0


@lru_cache(maxsize=1 << 17)
def _read(reader: Reader, caption: str) -> tuple[list[Mention], list[str]]:
    """The same captions are read again and again: the plain model's, and those of the annotators."""
    return reader.read(caption)


def chair_scorers(synonyms: Path) -> tuple[ChairScorer, ...]:
    """The three scorers in circulation, with the words of the official synonyms.txt."""
    table = read_synonyms(synonyms)
    pattern, wordnet = ObjectWords(table, pattern_forms), ObjectWords(table, wordnet_forms)
    own = ("chair_distinct", "words", "repeated_4grams")
    return (
        ChairScorer("opera", "shikiw/OPERA 61426ef chair.py", wordnet, _FIGURES),
        ChairScorer(
            "original", "LisaAnne/Hallucination 6e4d33c chair.py", pattern, ("chair_s", "chair_i", *own)
        ),
        ChairScorer(
            "standalone",
            "Maxlinn/CHAIR-metric-standalone 640c507",
            pattern,
            ("chair_s", "chair_i", "recall", *own),
        ),
    )


@dataclass(frozen=True)
class Chair(Scored):
    """Captions of images whose objects are known; each item's reference is a `Truth`."""

    items: tuple[Item, ...]
    rules: tuple[ChairScorer, ...]
    drawn: str = ""
    max_new_tokens: int = TOKENS
    suffix: str = ""
    name: str = "chair"
    about: ClassVar[About] = About(
        title="CHAIR",
        paper="Rohrbach et al., EMNLP 2018, arXiv 1809.02156",
        licence="scorer's synonyms: BSD 2-Clause by its README; COCO annotations: CC BY 4.0",
        images="COCO val2014 (Flickr photographs, a licence each), cocodataset.org",
        home="https://github.com/LisaAnne/Hallucination",
        hub="tsunghanwu/mscoco_chair",
        files=(
            github(
                "LisaAnne/Hallucination",
                "6e4d33c4bedf6dfcd24c61bf527f40714717be47",
                "data/synonyms.txt",
                "b685537b36fe21b791c87151b96a991ceb582edff19f3da204dcc7a7905502f2",
            ),
        ),
    )

    def __post_init__(self) -> None:
        if not self.items:
            raise InputError(f"{self.name}: no images to describe")

    @classmethod
    def load(
        cls,
        folder: Path,
        images: Path | None = None,
        *,
        ids: Collection[int] | Path | None = None,
        sample: int = 500,
        seed: int = 0,
        prompt: str = PROMPT,
        max_new_tokens: int = TOKENS,
        limit: int | None = None,
    ) -> Chair:
        """COCO val2014 photographs, with ground truth (`coco.read_truth`) and synonyms.txt from `folder`.

        Args:
            images: the folder val2014; without it `folder`/val2014.
            ids: image ids, or a file with one per line; without them `sample` of the photographs that are
                there are drawn with `seed`.
            max_new_tokens: 512 and 64 are the settings in use.

        Raises:
            InputError: something is missing or malformed, or an image has no ground truth.
        """
        pictures = images or folder / "val2014"
        chosen, drawn = _choose(ids, pictures, sample, seed)
        truth = read_truth(folder, chosen)
        absent = [number for number in chosen if number not in truth]
        if absent:
            raise InputError(
                f"{len(absent)} images have no ground truth in {folder}, the first is {absent[0]}"
            )
        items = [
            _item(str(number), pictures / IMAGE_NAME.format(number), truth[number], prompt, max_new_tokens)
            for number in chosen
        ]
        rules = chair_scorers(_synonyms(folder))
        return cls(first(items, limit), rules, drawn, max_new_tokens)

    @classmethod
    def from_hub(
        cls,
        *,
        synonyms: Path | None = None,
        prompt: str = PROMPT,
        max_new_tokens: int = TOKENS,
        limit: int | None = None,
    ) -> Chair:
        """The images of lmms-eval's coco_cap_chair, with the objects that it lists.

        Raises:
            InputError: no synonyms.txt (given or downloaded), no `datasets`, or the hub cannot be reached.
        """
        items: list[Item] = []
        for row in hub.rows(cls.about.hub, split="test", limit=limit):
            objects = Truth(frozenset(files.field(row.values, "gt_object", list, row.source)))
            key = str(row.values.get("question_id", len(items)))
            items.append(_item(key, row.image, objects, prompt, max_new_tokens, row.source))
        rules = chair_scorers(synonyms or _synonyms(benchmark_folder("chair")))
        return cls(tuple(items), rules, "hub", max_new_tokens)

    @classmethod
    def of_demo(cls, limit: int | None = None, prompt: str = PROMPT, max_new_tokens: int = 96) -> Chair:
        """The shipped scenes; objects are found as words of the closed list of COCO categories."""
        from regaze.demo import scenes
        from regaze.demo.world import CATEGORIES

        items = [
            _item(scene.name, scene.path, _scene_truth(scene), prompt, max_new_tokens) for scene in scenes()
        ]
        rule = ChairScorer("chair", "regaze closed vocabulary, 1", ClosedVocabulary(tuple(CATEGORIES)))
        return cls(first(items, limit), (rule,), "demo", max_new_tokens, name="captions")

    def scorers(self) -> Sequence[Scorer]:
        return self.rules

    def describe(self) -> dict[str, Any]:
        """The prompt, the limit of tokens, and which images: without them a figure means nothing."""
        return {
            **super().describe(),
            "prompt": self.items[0].question,
            "max_new_tokens": self.max_new_tokens,
            "drawn": self.drawn,
            "images": [item.key for item in self.items],
        }


def read_captions(path: Path) -> dict[int, str]:
    """{image id: caption} of JSON lines or a JSON list with `image_id` and `caption`, or of the original's
    dictionary with `imgToEval`.

    Raises:
        InputError: no such file, or a malformed entry; names the file and the line.
    """
    text = files.read_text(path)
    if text.lstrip().startswith("{") and '"imgToEval"' in text:
        entries = files.field(files.read_json(path), "imgToEval", dict, str(path))
        records = [(f"{path}: imgToEval[{key}]", entry) for key, entry in entries.items()]
    else:
        records = [(f"{path}:{line}", record) for line, record in files.read_records(path)]
    captions: dict[int, str] = {}
    for source, record in records:
        number = files.field(record, "image_id", int, source)
        if number in captions:
            raise InputError(f"{source}: a second caption of image {number}")
        caption = record.get("caption")
        if not isinstance(caption, str):
            raise InputError(f"{source}: 'caption' must be a text, got {caption!r}")
        captions[number] = caption
    return captions


def _item(key: str, image: Path | None, truth: Truth, prompt: str, tokens: int, source: str = "") -> Item:
    return Item(key, "captions", image, prompt, "", source, reference=truth, max_new_tokens=tokens)


def _scene_truth(scene: Any) -> Truth:
    return Truth(frozenset(thing.category for thing in scene.objects))


def _synonyms(folder: Path) -> Path:
    """synonyms.txt of the folder, else of the download."""
    place = folder if (folder / SYNONYMS).is_file() else benchmark_folder("chair")
    if not (place / SYNONYMS).is_file():
        raise InputError(f"{folder} has no {SYNONYMS}: copy it there, or get it by `download('chair')`")
    return place / SYNONYMS


def _choose(
    ids: Collection[int] | Path | None, pictures: Path, sample: int, seed: int
) -> tuple[list[int], str]:
    """(image ids, how they were chosen)."""
    if isinstance(ids, Path):
        lines = files.read_text(ids).split()
        wrong = [line for line in lines if not line.isdigit()]
        if wrong:
            raise InputError(f"{ids}: expected one image id per line, got {wrong[0]!r}")
        return [int(line) for line in lines], f"ids of {ids.name}"
    if ids is not None:
        return list(ids), "given ids"
    files.need_folder(pictures, "image folder")
    there = sorted(int(path.stem[-12:]) for path in pictures.glob("COCO_val2014_*.jpg"))
    if not there:
        raise InputError(f"{pictures} has no photographs named {IMAGE_NAME.format(0)}")
    count = min(sample, len(there))
    return random.Random(seed).sample(there, count), f"{count} of {len(there)} with seed {seed}"
