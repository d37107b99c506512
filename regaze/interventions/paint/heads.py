"""Head weights for PAINT: which heads look at the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regaze.kernels import AttentionEdit, Channels, RowSelection, Stats, StatsRequest
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.wrap import Gaze, Images


def head_sensitivity(
    gaze: Gaze, images: Sequence[Images], questions: Sequence[str], batch_size: int = 8
) -> tuple[tuple[float, ...], ...]:
    """`head_weights` from some questions: how much a head looks at the image, relative to its layer.

    Ours: the mean attention on the image of the row that predicts the first answer token, divided by its mean
    over the layer's heads, clipped to [0, 2].
    """
    meter = _ImageMass()
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        inputs = gaze.inputs(images[part], questions[part])
        with gaze.using(meter), torch.no_grad():
            gaze.model(**inputs)
    mass = torch.stack([torch.cat(meter.masses[layer]).mean(0) for layer in sorted(meter.masses)])
    relative = (mass / mass.mean(1, keepdim=True)).clamp(0.0, 2.0)
    return tuple(map(tuple, relative.tolist()))


class _ImageMass(Callback):
    """Measures every head's attention on the image in the last row of prompts."""

    def __init__(self) -> None:
        self.masses: dict[int, list[Tensor]] = {}

    def prepare(self, context: Context) -> None:
        last, groups = context.tokens.last(), context.tokens.mask(Role.IMAGE).to(torch.uint8)
        channels = Channels(groups=groups.to(context.device), num_groups=2)
        request = StatsRequest(rows=RowSelection.where(last).to(context.device), channels=channels)
        context.state(self)["request"] = request

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return context.state(self)["request"].as_edit if step == 0 else None

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        assert stats.masses is not None
        self.masses.setdefault(layer, []).append(stats.masses[..., 1].sum(2).cpu())
