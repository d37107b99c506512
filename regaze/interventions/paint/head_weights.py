"""Head weights for PAINT: how much each head attends to the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from regaze.toolkit.analysis.heads import head_table
from regaze.toolkit.prompts.pairs import Images
from regaze.toolkit.wrap import Gaze


def head_sensitivity(
    gaze: Gaze, images: Sequence[Images], questions: Sequence[str], batch_size: int = 8
) -> tuple[tuple[float, ...], ...]:
    """`head_weights` measured on some questions: a head's attention on the image, relative to its layer.

    This rule is ours: the mean attention on the image in the row that predicts the first answer token,
    divided by its mean over the layer's heads, clipped to [0, 2].
    """
    with gaze.recording() as record, torch.no_grad():
        for start in range(0, len(questions), batch_size):
            part = slice(start, start + batch_size)
            gaze.model(**gaze.inputs(images[part], questions[part]))
    mass = head_table(record).grid("mass")
    relative = (mass / mass.mean(1, keepdim=True)).clamp(0.0, 2.0)
    return tuple(map(tuple, relative.tolist()))
