"""CARVE: contrastive attention refinement."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from scipy import ndimage
from torch import Tensor

from regaze.display import short_repr
from regaze.errors import BadParameterError, InputError
from regaze.interventions.base import Method, MultiPassMethod
from regaze.interventions.carve.contrast import contrast
from regaze.interventions.carve.crop import Mask, PixelBox, bounding_box, mask_image, top_share, zoom
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, resolve_range
from regaze.interventions.parameters import PositiveFraction
from regaze.toolkit.analysis.row_measures import visual_entropy
from regaze.toolkit.model import compat
from regaze.toolkit.prompts.geometry import Geometry, geometry_of
from regaze.toolkit.record.trace import Trace
from regaze.toolkit.wrap import Gaze

#: The general instruction whose attention is divided out; its wording is a hyper-parameter.
DESCRIBE = "Write a general description of the image."
#: The line that the release appends to every prompt.
SHORT_ANSWER = "Answer the question using a single word or phrase."
#: First and last layer of the paper, for models of 28 to 40 layers.
_LAYERS = (20, 25)
#: A region below this share of the kept pixels is a speck.
_SPECK = 0.001


@dataclass(frozen=True, eq=False)
class Refinement:
    """How CARVE chose a part of an image.

    Attributes:
        image: masked, cropped and enlarged.
        question, general: [layers, steps, rows, columns], attention on the image's cells in the row that
            predicts each token, mean over heads, not renormalised. `general` has at most as many steps.
        fused: [rows, columns], their contrast, fused over layers and steps.
        geometry: maps cells to pixels of the original image.
        mask: [H, W], the visible pixels. box: the part that was enlarged.
    """

    image: Image.Image
    question: Tensor
    general: Tensor
    fused: Tensor
    geometry: Geometry
    mask: Mask
    box: PixelBox

    __repr__ = short_repr

    def map(self) -> Tensor:
        """The fused contrast over the pixels of the original image, [H, W]; 0 where the model sees none."""
        return self.geometry.to_pixels(self.fused)

    def entropy(self) -> float:
        """Visual entropy of the question's attention at its last step, in nats, mean over the layers."""
        return float(visual_entropy(self.question[:, -1].flatten(1)).mean())


@dataclass(frozen=True, eq=False)
class CarveAnswer:
    """The answer about the refined image (given by `str`), the plain answer, and the refinement."""

    answer: str
    plain_answer: str
    refinement: Refinement

    def __str__(self) -> str:
        return self.answer


@dataclass(frozen=True)
class CARVE(MultiPassMethod):
    """Answer again about the part of the image that the question attends to more than a description does.

    Source: Ge et al., "Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning"
    (arXiv:2509.06461).

    Two passes, with the question Q and with a general instruction G, record how much the row that predicts
    each token attends to each cell of the image, mean over heads. The contrast A^Q / (A^G + lam) is summed
    over `layers` and over the steps that both answers have, and mapped to the image's pixels. The top `share`
    of the pixels that the model sees stay visible, and of their 4-connected regions the best `regions_kept`.
    The rest turns black, the box around the visible pixels is enlarged, and the question is asked about it
    alone. If nothing is masked, the image is unchanged.

    The paper gives no lam, and recommends a `share` (p) of 0.2 to 0.6 and at most 2 or 3 regions (K). The
    defaults are the best of its grid on TextVQA and the release's lam, which is negligible beside attention
    of 1e-4 to 1e-3. The layers are the paper's 20 to 25, scaled from 32 layers in a model with fewer.

    With `as_released=True` (`YuyaoGe/CARVE`) K is the least number of regions, more if `share` times their
    number is more; the last pass also sees the original image, before the refined one; and every prompt, the
    general one included, ends in the short-answer line. Its defects are not reproduced (see `release`).
    """

    name: ClassVar[str] = "carve"
    summary: ClassVar[str] = "zoom to where a question attends more than a description, and answer again"
    source: ClassVar[str] = "arXiv:2509.06461"
    edits: ClassVar[str] = "nothing inside the model; the image, before the last of three generations"
    cost: ClassVar[str] = "three generations per question; attention on the image is recorded in two of them"
    facts: ClassVar[Facts] = Facts(
        edits=("image",),
        when=("before",),
        cost="several answers",
        graphs="outside",
        needs=("attention rows",),
    )
    release: ClassVar[str] = (
        "No licence. Grids of 256, 576 ... tokens are treated as squares, maps are stretched over what a "
        "centre crop removed, layers beyond the depth are skipped silently, and the whole sequence runs "
        "again at every step. Here grid and geometry are the model's, layers are checked, and the cache is "
        "used."
    )

    share: PositiveFraction = field(
        default=0.4, metadata={"help": "p, share of the pixels above the threshold"}
    )
    regions_kept: PositiveInt = field(default=2, metadata={"help": "K, how many regions stay at most"})
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last layer; default 20-25, scaled where there are fewer"}
    )
    steps: Literal["all", "first", "last"] = field(
        default="all", metadata={"help": "all steps, weighted 1, 2, 3 ..., or the first or last common one"}
    )
    lam: NonNegativeFloat = field(default=1e-8, metadata={"help": "lambda, added to the general attention"})
    rank: Literal["contrast", "area", "large"] = field(
        default="contrast", metadata={"help": "best regions: most contrast, most area, or all but specks"}
    )
    general: str = field(default=DESCRIBE, metadata={"help": "the general instruction"})
    seed: NonNegativeInt | None = field(
        default=None, metadata={"help": "control: move the map to a random place, drawn with this seed"}
    )
    as_released: bool = field(
        default=False, metadata={"help": "behave as the released code where it differs from the paper"}
    )

    @classmethod
    def from_released(cls, version: int = 4, **changes: Any) -> CARVE:
        """CARVE with the release's settings.

        Version 1 keeps all but the smallest regions, 2 the largest, 3 those with most contrast, each from the
        first step; version 4, its default, is 3 over all steps.
        """
        if version not in (1, 2, 3, 4):
            raise BadParameterError(f"the release has versions 1 to 4, got {version}")
        rank = {1: "large", 2: "area"}.get(version, "contrast")
        steps = "all" if version == 4 else "first"
        released = {"share": 0.2, "regions_kept": 3, "rank": rank, "steps": steps, "as_released": True}
        return cls(**{**released, **changes})

    @property
    def is_identity(self) -> bool:
        return self.share == 1.0 and not self.as_released

    def controls(self) -> Sequence[Method]:
        """Itself with its map moved elsewhere: as much of the image, enlarged as much."""
        return () if self.is_identity or self.seed is not None else (replace(self, seed=0),)

    # Answering ----------------------------------------------------------------------------------------

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[CarveAnswer]:
        """Three generations about the image of each question.

        Raises:
            InputError: a question without an image, or with several.
            BadParameterError: layers that the model does not have; beam search.
            UnsupportedModelError: the position of the image's cells is not known.
        """
        if options.get("num_beams", 1) > 1:
            raise BadParameterError("CARVE follows the attention of one answer; use it without beam search")
        if any(len(entry) != 1 for entry in images):
            raise InputError("CARVE zooms into one image per question; ask about each image by itself")
        if self.as_released:
            questions = [f"{question} {SHORT_ANSWER}" for question in questions]
            options = {"max_new_tokens": 32, **options}
        options = {**options, "batch_size": len(questions)}
        general = f"{self.general} {SHORT_ANSWER}" if self.as_released else self.general
        plain, question_trace = self._record(gaze, images, questions, options)
        # Only as many steps of a description are used as the longest answer has.
        short = {**options, "max_new_tokens": len(question_trace.answer_rows())}
        _, general_trace = self._record(gaze, images, [general] * len(images), short)
        ends, refined = _ends(gaze, options), []
        for sample, (image,) in enumerate(images):
            question = _attention(question_trace, sample, ends)
            description = _attention(general_trace, sample, ends)[:, : question.shape[1]]
            geometry = geometry_of(gaze.processor.image_processor, image.size, gaze.family.pixels)
            refined.append(self.refine(image, question, description, geometry))
        before = images if self.as_released else [[] for _ in images]
        shown = [[*entry, found.image] for entry, found in zip(before, refined, strict=True)]
        again = gaze.ask(shown, questions, **options)
        return [CarveAnswer(*each) for each in zip(again, plain, refined, strict=True)]

    def _record(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> tuple[list[str], Trace]:
        depth = compat.text_config(gaze.model).num_hidden_layers
        first, last = resolve_range(self.layers, _LAYERS, 32 if depth <= _LAYERS[1] else depth, depth)
        layers = range(first, last + 1)
        with gaze.recording(slices="image", masses=False, layers=layers) as record:
            answers = gaze.ask(images, questions, **options)
        return answers, record[0]

    # Refining -----------------------------------------------------------------------------------------

    def refine(self, image: Image.Image, question: Tensor, general: Tensor, geometry: Geometry) -> Refinement:
        """Mask and zoom `image` by the attention of both passes, [layers, steps, rows, columns] each."""
        fused = self.fuse(question, general)
        visible = geometry.visible((fused.shape[0], fused.shape[1])).numpy()
        mask = self.region_mask(geometry.to_pixels(fused).numpy(), visible)
        box = bounding_box(mask)
        if (mask == visible).all():
            return Refinement(image, question, general, fused, geometry, mask, box)
        return Refinement(zoom(mask_image(image, mask), box), question, general, fused, geometry, mask, box)

    def fuse(self, question: Tensor, general: Tensor) -> Tensor:
        """Contrast [rows, columns], summed over layers and common steps.

        Mapping to pixels is linear, so that it is done once, after the sum. With a `seed` the result is
        rolled by rows and columns that are drawn with it, the same for all images.
        """
        fused = contrast(question, general, lam=self.lam, steps=self.steps)
        if self.seed is None:
            return fused
        rng = random.Random(self.seed)
        return fused.roll([rng.randrange(1, size) if size > 1 else 0 for size in fused.shape], (0, 1))

    def region_mask(self, values: NDArray[Any], visible: Mask) -> Mask:
        """The best regions of the top `share` of `values` [H, W] among the visible pixels."""
        mask = top_share(values, self.share, visible)
        labels, number = ndimage.label(mask)  # neighbours share a side
        regions = np.arange(1, number + 1)
        area = ndimage.sum_labels(mask, labels, regions)
        if self.rank == "large":
            return np.isin(labels, regions[area >= int(area.sum() * _SPECK)])
        score = area if self.rank == "area" else ndimage.sum_labels(values, labels, regions)
        kept = max(self.regions_kept, int(number * self.share)) if self.as_released else self.regions_kept
        return np.isin(labels, regions[np.argsort(-score, kind="stable")[:kept]])


def _ends(gaze: Gaze, options: dict[str, Any]) -> Tensor:
    """Ids of the tokens that end an answer."""
    ends = options.get("eos_token_id", gaze.model.generation_config.eos_token_id)
    return torch.tensor([] if ends is None else ends).flatten()


def _attention(trace: Trace, sample: int, ends: Tensor) -> Tensor:
    """A sample's attention on its image up to the end of its answer, [layers, steps, rows, columns]."""
    maps = trace.image_maps(sample)[:, :, trace.answer_rows(sample)].mean(1)
    assert trace.output_ids is not None
    ended = torch.isin(trace.output_ids[sample], ends).nonzero()
    return maps[:, : int(ended[0]) + 1] if len(ended) else maps
