"""The eyes of the bed: the demo's tower, tuned together with a projector that puts every patch on its target.

The demo's tower says what a patch shows but hardly where it is, so the tower goes on learning: least
squares to `regaze.bed.training.targets`, objects and background with the same weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regaze.bed.training.quick import quick_dtype
from regaze.bed.training.targets import PatchTargets
from regaze.demo.training.model import pixel_batch
from regaze.demo.training.render import GRID, Rendered, render_scene

FIRST_SCENE = 500_000_000  #: these scenes are none that conversations are about
BATCH = 32
#: Peak learning rates of the tower, of its position embeddings and of the projector.
TOWER_RATE, POSITION_RATE, PROJECTOR_RATE = 6e-4, 6e-3, 2e-3
WARMUP = 30


class Sight(nn.Module):
    """Tower and projector as one function from pixels to embeddings.

    Args:
        tower: a CLIP vision tower.
        projector: LLaVA's, a two-layer MLP.
    """

    def __init__(self, tower: Any, projector: Any) -> None:
        super().__init__()
        self.tower: Any = tower
        self.projector: Any = projector

    @torch.no_grad()
    def start(self, targets: PatchTargets, pixels: Tensor) -> None:
        """Start the projector anew, for the features of ``pixels`` and for ``targets``.

        Before that, `add_coordinates`.
        """
        add_coordinates(self.tower)
        features = self.features(pixels).flatten(0, 1)
        first, second = self.projector.linear_1, self.projector.linear_2
        for layer in (first, second):
            layer.reset_parameters()
        first.weight /= features.std(0)
        first.bias -= first.weight @ features.mean(0)
        second.weight *= targets.categories.std()
        second.bias.copy_(targets.categories.mean(0))

    def features(self, pixels: Tensor) -> Tensor:
        """[N, 3, 112, 112] to [N, 64, C], without the class token."""
        features: Tensor = self.tower(pixels).last_hidden_state[:, 1:]
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, 112, 112] to [N, 64, H]."""
        embeddings: Tensor = self.projector(self.features(pixels))
        return embeddings


@torch.no_grad()
def add_coordinates(tower: Any) -> None:
    """Add row and column to a CLIP tower's small position embeddings, each along a random direction.

    The residual stream carries them to the last layer. Their size is that of the embedded patches.
    """
    table = tower.embeddings.position_embedding.weight
    size = tower.embeddings.patch_embedding.weight.flatten(1).norm(dim=1).mean()
    steps = torch.linspace(-1, 1, GRID)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    for along in (rows, columns):
        table[1:] += along.reshape(-1, 1) * size * torch.randn(table.shape[1])


def train_sight(
    sight: Sight, image_processor: object, targets: PatchTargets, seed: int, steps: int
) -> Iterator[tuple[int, float]]:
    """Train in place; yields (step, squared error relative to the spread of the categories)."""

    def pixels(scenes: list[Rendered]) -> Tensor:
        mean, std = image_processor.image_mean, image_processor.image_std  # type: ignore[attr-defined]
        return pixel_batch([scene.pixels for scene in scenes], mean, std)

    def drawn(step: int, count: int) -> list[Rendered]:
        return [render_scene(seed, "train", FIRST_SCENE + BATCH * step + i) for i in range(count)]

    sight.start(targets, pixels(drawn(0, 8 * BATCH)))
    scale, tower = targets.categories.std(), sight.tower
    positions = [weight for name, weight in tower.named_parameters() if "position_embedding" in name]
    others = [weight for name, weight in tower.named_parameters() if "position_embedding" not in name]
    groups = [
        (others, TOWER_RATE),
        (positions, POSITION_RATE),
        (sight.projector.parameters(), PROJECTOR_RATE),
    ]
    optimiser = torch.optim.AdamW(
        [{"params": list(weights), "lr": rate} for weights, rate in groups],
        betas=(0.9, 0.97),
        weight_decay=0.01,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        scenes = drawn(step, BATCH)
        with torch.autocast("cpu", torch.bfloat16, enabled=quick_dtype() == torch.bfloat16):
            found = sight(pixels(scenes))
        error = ((found.float() - targets(scenes)) / scale).square().mean(-1)
        shown = torch.from_numpy(np.stack([scene.patch_category for scene in scenes])).flatten(1) >= 0
        loss = 0.5 * (error[shown].mean() + error[~shown].mean())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sight.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield step + 1, loss.item()
