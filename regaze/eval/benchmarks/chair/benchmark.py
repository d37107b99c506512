"""CHAIR: objects in captions that are not in the image (Rohrbach et al., EMNLP 2018, arXiv 1809.02156).

CHAIR_s is the share of captions with at least one hallucinated object, CHAIR_i the share of mentions that are
hallucinated. Three scorers are in use and differ by up to three points (`regaze.eval.benchmarks.chair.words`
explains how):

`original`
    The paper's script: Pattern's singulars.
`standalone`
    Its stand-alone port, the same words; adds recall, the share of present objects that are named.
`opera`
    OPERA's copy, which HALC, PAI, lmms-eval and most papers on large models use: tags and lemmas; adds
    recall and length.

`chair` finds the words of a closed list; the demo has no other words for objects, the bed was taught none.

The same model goes from CHAIR_s 46 to 21 with 64 tokens in place of 512, so the limit is part of the
benchmark. Papers hardly ever publish which images were captioned: give `ids`, or say how they were drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regaze.bed.scenes import BED
from regaze.demo.shipped import DEMO, SceneSet
from regaze.demo.world import CATEGORIES
from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.chair.ground_truth import GroundTruth, read_ground_truth, require_categories
from regaze.eval.benchmarks.chair.scorers import (
    ChairScorer,
    closed_scorer,
    official_scorers,
    scorers_with,
)
from regaze.eval.benchmarks.chair.selection import IMAGE_NAME, PREFIX, choose_images
from regaze.eval.benchmarks.chair.words import read_synonyms
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import benchmark_folder, github_file
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.reading import StrPath

PROMPT = "Please describe this image in detail."
SYNONYMS = "synonyms.txt"
MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Chair(BaseBenchmark):
    """Captions of images whose objects are known; each item's reference is a `GroundTruth`."""

    items: tuple[Item, ...]
    rules: tuple[ChairScorer, ...]
    drawn: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    suffix: str = ""
    name: str = "chair"
    splits: ClassVar[tuple[str, ...]] = ("captions",)
    image_prefix: ClassVar[str] = PREFIX + r"|scene_"
    about: ClassVar[About] = About(
        title="CHAIR",
        paper="Rohrbach et al., EMNLP 2018, arXiv 1809.02156",
        licence="scorer's synonyms: BSD 2-Clause by its README; COCO annotations: CC BY 4.0",
        images="COCO val2014 (Flickr photographs, a licence each), cocodataset.org",
        home="https://github.com/LisaAnne/Hallucination",
        hub="tsunghanwu/mscoco_chair",
        files=(
            github_file(
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
        folder: StrPath,
        images: StrPath | None = None,
        *,
        ids: Sequence[int] | StrPath | None = None,
        sample: int = 500,
        seed: int = 0,
        prompt: str = PROMPT,
        max_new_tokens: int = MAX_NEW_TOKENS,
        limit: int | None = None,
    ) -> Chair:
        """Photographs, with ground truth (`read_ground_truth`) and synonyms.txt from `folder`.

        They are COCO val2014's, or a set of your own whose annotations in COCO's format name the files.

        Args:
            images: Folder of the photographs; `folder`/val2014 by default.
            ids: Ids of images, or a file of them (`choose_images`). By default `sample` of the photographs of
                COCO val2014 in `images` are drawn with `seed`.
            max_new_tokens: Limit of the captions; 512 and 64 are in use.

        Raises:
            InputError: A file is missing or malformed, or an image has no ground truth.
        """
        folder, image_folder = files.folders_of(folder, images, "val2014")
        chosen, drawn = choose_images(ids, image_folder, sample, seed)
        truth = read_ground_truth(folder, chosen)
        absent = [image_id for image_id in chosen if image_id not in truth]
        if absent:
            raise InputError(
                f"{len(absent)} images have no ground truth in {folder}, the first is {absent[0]}"
            )
        synonyms = _find_synonyms(folder)
        require_categories(truth, set(read_synonyms(synonyms).values()), folder, SYNONYMS)
        items = []
        for image_id in chosen:
            image = image_folder / (truth[image_id].file or IMAGE_NAME.format(image_id))
            items.append(_item(str(image_id), image, truth[image_id], prompt, max_new_tokens))
        rules = official_scorers(synonyms)
        return cls(limit_items(items, limit), rules, drawn, max_new_tokens)

    @classmethod
    def from_hub(
        cls,
        *,
        synonyms: StrPath | None = None,
        prompt: str = PROMPT,
        max_new_tokens: int = MAX_NEW_TOKENS,
        limit: int | None = None,
    ) -> Chair:
        """The images of lmms-eval's coco_cap_chair, with the objects that it lists.

        Raises:
            InputError: synonyms.txt is neither given nor downloaded, `datasets` is not installed, or the hub
                cannot be reached.
        """
        items: list[Item] = []
        for row in hub.read_rows(cls.about.hub, split="test", limit=limit):
            objects = files.require_field(row.values, "gt_object", list, row.source)
            key = str(row.values.get("question_id", len(items)))
            truth = GroundTruth(frozenset(objects))
            items.append(_item(key, row.image, truth, prompt, max_new_tokens, row.source))
        rules = official_scorers(synonyms or _find_synonyms(benchmark_folder("chair")))
        return cls(limit_items(items, None), rules, "hub", max_new_tokens)

    @classmethod
    def of_demo(cls, limit: int | None = None, prompt: str = PROMPT, max_new_tokens: int = 96) -> Chair:
        """The demo's scenes; objects are the words of the closed list of COCO categories."""
        return cls._of_scenes(DEMO, limit, prompt, max_new_tokens)

    @classmethod
    def of_bed(cls, limit: int | None = None, prompt: str = PROMPT, max_new_tokens: int = 192) -> Chair:
        """The bed's scenes, whose captions are long; objects are found as in the demo's captions."""
        return cls._of_scenes(BED, limit, prompt, max_new_tokens)

    @classmethod
    def _of_scenes(cls, shipped: SceneSet, limit: int | None, prompt: str, max_new_tokens: int) -> Chair:
        items = []
        for scene in shipped.scenes():
            truth = GroundTruth(frozenset(thing.category for thing in scene.objects))
            items.append(_item(scene.name, scene.path, truth, prompt, max_new_tokens))
        rule = closed_scorer(tuple(CATEGORIES))
        return cls(limit_items(items, limit), (rule,), shipped.name, max_new_tokens, name="captions")

    @classmethod
    def known_figures(cls) -> dict[str, tuple[str, ...]]:
        return {rule.name: rule.metrics for rule in (*scorers_with({}), closed_scorer(()))}

    def scorers(self) -> Sequence[Scorer]:
        return self.rules

    def describe(self) -> dict[str, Any]:
        """As `BaseBenchmark.describe`, with the prompt, the limit of tokens, and the choice of images."""
        return {
            **super().describe(),
            "prompt": self.items[0].question,
            "max_new_tokens": self.max_new_tokens,
            "drawn": self.drawn,
            "images": [item.key for item in self.items],
        }


def _item(
    key: str, image: Path | None, truth: GroundTruth, prompt: str, max_new_tokens: int, source: str = ""
) -> Item:
    return Item(key, "captions", image, prompt, "", source, truth, max_new_tokens=max_new_tokens, id=key)


def _find_synonyms(folder: Path) -> Path:
    """synonyms.txt in the folder, else the downloaded one."""
    place = folder if os.path.isfile(folder / SYNONYMS) else benchmark_folder("chair")
    if not os.path.isfile(place / SYNONYMS):
        raise InputError(
            f"{folder} has no {SYNONYMS}: copy it there, or get it by `regaze benchmarks get chair`"
        )
    return place / SYNONYMS
