"""Where the projector puts every patch: on word embeddings of what it shows, or on an attention sink.

An object's patch goes to the mean embedding of its category's tokens, moved towards its colour and its
place. Most of the background goes to the embedding of "background"; its patches in some cells of the grid
go to `SINK_SCALE` times ``<|endoftext|>``, the one token of SmolLM2 that draws a massive activation in the
middle of a sequence. So the bed has visual sinks by design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regaze.demo.phrases import place
from regaze.demo.shipped import SceneObject
from regaze.demo.training.render import GRID, PATCH, SIDE, Rendered
from regaze.demo.world import CATEGORIES, COLOURS

COLOUR_WEIGHT = 0.5  #: of a colour's word, relative to the category's
PLACE_WEIGHT = 0.8  #: of the words for a patch's place
SINK_TOKEN = 0  #: ``<|endoftext|>``
SINK_SCALE = 1.5
#: Cells of the grid whose patch becomes a sink where it shows background: 9 of 64, spread as the moves of a
#: knight.
SINK_CELLS = (2 * np.arange(GRID)[:, None] + np.arange(GRID)) % 7 == 3


@dataclass(frozen=True)
class PatchTargets:
    """Embeddings that targets are sums of.

    Attributes:
        categories: [67, H].
        colours: [6, H], relative to the mean of all words.
        places: [64, H], of each patch, relative to the mean of all places.
        background, sink: [H].
    """

    categories: Tensor
    colours: Tensor
    places: Tensor
    background: Tensor
    sink: Tensor

    @classmethod
    def of(cls, embedding: Tensor, tokenizer: Any) -> PatchTargets:
        """The targets in the word embeddings ``embedding`` [V, H] of ``tokenizer``'s language model."""
        embedding = embedding.detach().float()

        def embed(phrases: Sequence[str]) -> Tensor:
            ids = [tokenizer.encode(f" {phrase}", add_special_tokens=False) for phrase in phrases]
            return torch.stack([embedding[row].mean(0) for row in ids])

        corners = [(x, y) for y in range(0, SIDE, PATCH) for x in range(0, SIDE, PATCH)]
        cells = [place(SceneObject("", (x, y, x + PATCH, y + PATCH))) for x, y in corners]
        places = embed([cell.split(" the ")[1] for cell in cells])  # "in the upper left": "upper left"
        colours = embed(list(COLOURS)) - embedding.mean(0)
        sink = SINK_SCALE * embedding[SINK_TOKEN]
        return cls(embed(CATEGORIES), colours, places - places.mean(0), embed(["background"])[0], sink)

    def __call__(self, scenes: Sequence[Rendered]) -> Tensor:
        """The target of every patch of ``scenes``, [N, 64, H]."""
        category = torch.from_numpy(np.stack([scene.patch_category for scene in scenes])).flatten(1)
        colour = torch.from_numpy(np.stack([scene.patch_colour for scene in scenes])).flatten(1)
        coloured = COLOUR_WEIGHT * self.colours[colour.clamp(min=0)] * (colour >= 0)[..., None]
        shown = self.categories[category.clamp(min=0)] + coloured + PLACE_WEIGHT * self.places
        target = torch.where((category >= 0)[..., None], shown, self.background)
        return torch.where(sink_patches(scenes)[..., None], self.sink, target)


def sink_patches(scenes: Sequence[Rendered]) -> Tensor:
    """Which patches become sinks, [N, 64] bool: the background among `SINK_CELLS`."""
    background = np.stack([scene.patch_category for scene in scenes]) < 0
    return torch.from_numpy(background & SINK_CELLS).flatten(1)
