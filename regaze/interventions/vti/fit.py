"""How VTI's directions are fitted on pairs of captions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from regaze.errors import InputError, UnsupportedModelError
from regaze.interventions.common.components import mean_and_components
from regaze.interventions.fitting.base import Fit, Fitted
from regaze.interventions.fitting.caption_pairs import CaptionPair
from regaze.interventions.fitting.hidden_states import (
    answered_inputs,
    prompt_of,
    residual_states,
    tiles_of,
    tower_states,
)
from regaze.interventions.fitting.parts import Parts
from regaze.interventions.parameters import PositiveFraction
from regaze.interventions.vti.groups import grouped_rows, ungrouped
from regaze.interventions.vti.steering import SteeredTower
from regaze.progress import Progress
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.vision import tower_mlps, vision_tower
from regaze.toolkit.wrap import Gaze

QUESTION = "Describe this image in detail."
#: Pictures in one pass of the tower, and tokens whose components are computed together.
_AT_ONCE, _TOKENS_AT_ONCE = 10, 8


@dataclass(frozen=True)
class VTIFit(Fit):
    """Text and vision directions from pairs of captions.

    Text: X_i is the residual stream after every layer (and before the first) at the last token of the true
    caption minus that of the invented one; the direction is the mean of X plus the unit principal components
    of X around it, all layers together. Vision: the same per token of the tower, where X_i is the mean over
    masked copies of an image minus the image itself. With vision directions, text ones are fitted on the
    steered tower, as in the release.
    """

    method: ClassVar[str] = "vti"
    least: ClassVar[int] = 3  # with two, rounding decides about the sign of the component

    pairs: PositiveInt | None = field(
        default=50, metadata={"help": "how many pairs are used, the first of the data; None: all"}
    )
    rank: PositiveInt = field(default=1, metadata={"help": "principal components that are added to the mean"})
    vision: bool = field(default=True, metadata={"help": "also fit directions for the vision tower"})
    copies: PositiveInt = field(default=50, metadata={"help": "masked copies of each image"})
    masked: PositiveFraction = field(default=0.99, metadata={"help": "share of the patches that is masked"})
    strength: NonNegativeFloat = field(
        default=0.9, metadata={"help": "of the vision directions while those of the text are fitted"}
    )
    seed: NonNegativeInt = field(default=0, metadata={"help": "of the masks"})
    as_released: bool = field(
        default=False,
        metadata={"help": "group the tower's features, and choose signs, as the released code does"},
    )

    def compute(self, gaze: Gaze, pairs: tuple[CaptionPair, ...], parts: Parts, progress: Progress) -> Fitted:
        found: dict[str, Any] = {}
        report: dict[str, Any] = {}
        tower: list[Callback] = []
        if self.vision:
            try:
                vision = self._vision(gaze, pairs, parts, progress)
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"{error}. Text alone can be fitted: vision=false") from error
            found["vision"] = "vectors", vision
            tower = [SteeredTower(vision, self.strength)]
        for done, pair in enumerate(pairs):
            progress("captions", done, len(pairs))
            parts.get_or_make(f"text_{done}", partial(self._text_difference, gaze, pair, tower))
        progress("captions", len(pairs), len(pairs))
        differences = torch.stack([parts.rows(f"text_{i}", slice(None)) for i in range(len(pairs))])
        _, layers, width = differences.shape
        mean, direction = (
            x.view(layers, width)[1:]
            for x in mean_and_components(differences.flatten(1)[:, None], self.rank, self.as_released)
        )
        found["text"] = "vectors", direction.float()
        report["length of the mean"] = mean.norm(dim=-1).tolist()
        report["cosine with the mean"] = F.cosine_similarity(direction, mean, dim=-1).tolist()
        return Fitted(found, prompt_of(gaze, pairs[0].question or QUESTION), report)

    def _text_difference(self, gaze: Gaze, pair: CaptionPair, tower: list[Callback]) -> Tensor:
        """[L + 1, D], true minus invented, at the last token of the caption."""
        prompt = prompt_of(gaze, pair.question or QUESTION)
        true, invented = (
            residual_states(gaze, answered_inputs(gaze, pair.image, prompt + text), _last, *tower)
            for text in (pair.true, pair.invented)
        )
        return true - invented

    def _vision(self, gaze: Gaze, pairs: tuple[CaptionPair, ...], parts: Parts, progress: Progress) -> Tensor:
        """[Lv, T, Dv] the tower's directions."""
        tower_mlps(gaze.host)  # raises where they could not be used
        for done, pair in enumerate(pairs):
            progress("images", done, len(pairs))
            parts.get_or_make(f"vision_{done}", partial(self._vision_difference, gaze, pair, done))
        progress("images", len(pairs), len(pairs))
        shapes = {parts.shape(f"vision_{number}") for number in range(len(pairs))}
        if len(shapes) > 1:
            raise UnsupportedModelError(
                "the vision tower has another number of tokens for each image, so that its directions have "
                "no fixed places"
            )
        tokens, group, _ = shapes.pop()
        directions = []
        for start in range(0, tokens, _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            x = torch.stack([parts.rows(f"vision_{number}", rows) for number in range(len(pairs))])
            direction = mean_and_components(x.flatten(2), self.rank, self.as_released)[1]
            directions.append(direction.view(-1, group, x.shape[-1]).float())
        return ungrouped(torch.cat(directions), self.as_released)[1:]

    def _vision_difference(self, gaze: Gaze, pair: CaptionPair, number: int) -> Tensor:
        """[T, Lv + 1, Dv] in groups, masked minus clean, mean over the masks and the image's tiles."""
        tiles = tiles_of(gaze, pair)
        patch = _patch_size(gaze)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        total = None
        for tile in tiles:
            copies = [
                mask_patches(tile, draw_patches(tile, patch, self.masked, generator), patch)
                for _ in range(self.copies)
            ]
            masked = sum(
                tower_states(gaze, torch.stack(copies[i : i + _AT_ONCE])).sum(0)
                for i in range(0, self.copies, _AT_ONCE)
            )
            difference = masked / self.copies - tower_states(gaze, tile[None])[0]
            total = difference if total is None else total + difference
        if total is None:
            raise InputError(f"image {pair.name} gives the vision tower nothing to see")
        return grouped_rows((total / len(tiles)).cpu(), self.as_released)


def _patch_size(gaze: Gaze) -> int:
    """Pixels of a side of the tower's patches. Raises UnsupportedModelError where they are no squares."""
    given = getattr(vision_tower(gaze.model).config, "patch_size", None)
    sides = {given} if isinstance(given, int) else set(given or ())
    if len(sides) != 1:
        raise UnsupportedModelError(f"{type(gaze.model).__name__} has no square patches to mask")
    return int(sides.pop())


def _last(hidden: Tensor) -> Tensor:
    return hidden[-1]


def draw_patches(image: Tensor, patch: int, share: float, generator: torch.Generator) -> Tensor:
    """Numbers of different patches of an image [C, H, W], row by row: floor(share * all) of them."""
    count = (image.shape[-2] // patch) * (image.shape[-1] // patch)
    return torch.randperm(count, generator=generator)[: int(share * count + 1e-9)]


def mask_patches(image: Tensor, patches: Tensor, size: int) -> Tensor:
    """The image [C, H, W] with these patches set to the mean over all of its pixels, per channel."""
    columns = image.shape[-1] // size
    hidden = torch.zeros(image.shape[-2] // size, columns, dtype=torch.bool)
    hidden.view(-1)[patches] = True
    shown = torch.zeros(image.shape[-2:], dtype=torch.bool)
    pixels = hidden.repeat_interleave(size, 0).repeat_interleave(size, 1)
    shown[: len(pixels), : pixels.shape[1]] = pixels
    return torch.where(shown.to(image.device), image.mean((-2, -1), keepdim=True), image)
