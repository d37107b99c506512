"""Maps over an image from recorded attention: raw, mean, largest, one per row.

They are [..., rows, columns] over the cells of an image's grid; `Geometry.to_pixels` lays them over pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from regaze.errors import BadParameterError, ShapeError
from regaze.toolkit.analysis.selection import (
    check_choice,
    check_choices,
    check_sample,
    first_trace,
    select_heads,
    token_row,
)
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace


def image_map(
    record: Record | Trace,
    *,
    token: int | str = 0,
    over: Literal["mean", "max", "none"] = "mean",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    image: int = 0,
) -> Tensor:
    """Attention of one token's row over an image.

    Args:
        record: recorded with slices="image" or "all".
        token: number of an answer token (its row is the one that predicts it), or a word (`Trace.row_of`).
        over: reduction over the chosen layers and heads: their "mean", the largest weight in each cell
            ("max"), or "none" for one map per layer and head, [layers, heads, rows, columns].
        layers, heads: numbers; None: all. sample: row of the batch. image: number of the image's view.

    Returns:
        [rows, columns] fp32 weights, not renormalised over the image.

    Raises:
        RecordingError: slices were not recorded. BadParameterError: a choice that was not recorded.
    """
    if over not in ("mean", "max", "none"):
        raise BadParameterError(f'over must be "mean", "max" or "none", got {over!r}')
    trace = first_trace(record)
    maps = layer_maps(trace, layers, heads, sample, image)[:, :, token_row(trace, token, sample)]
    if over == "none":
        return maps
    return maps.mean((0, 1)) if over == "mean" else maps.amax((0, 1))


def layer_maps(trace: Trace, layers: object, heads: object, sample: int, image: int) -> Tensor:
    """Maps of all recorded rows in the chosen layers and heads, [layers, heads, N, rows, columns]."""
    sample = check_sample(trace, sample)
    if trace.tokens is not None and trace.tokens.grids[sample]:  # image_maps raises where there is none
        image = check_choice("image", image, range(len(trace.tokens.grids[sample])))
    return select_heads(trace, trace.image_maps(sample, image), layers, heads)


def cross_attention_maps(
    attentions: Sequence[Tensor],
    grid: tuple[int, int],
    *,
    prefix: int = 0,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    over: Literal["mean", "max", "none"] = "mean",
) -> Tensor:
    """Maps over an image from the cross-attention of a model whose image is not part of the prompt.

    Args:
        attentions: per layer [B, Hq, T, prefix + rows * columns], as from `output_attentions`.
        grid: (rows, columns) of the image's cells. prefix: number of keys before the cells (class token).
        layers: indices into `attentions`; heads: numbers; None: all. over: as for `image_map`.

    Returns:
        [B, T, rows, columns]; with over="none" [layers, B, heads, T, rows, columns].

    Raises:
        ShapeError: keys that do not fill the grid. BadParameterError: a layer or head that does not exist.
    """
    if over not in ("mean", "max", "none"):
        raise BadParameterError(f'over must be "mean", "max" or "none", got {over!r}')
    chosen = [attentions[i] for i in check_choices("layer", layers, range(len(attentions)))]
    cells = grid[0] * grid[1]
    for each in chosen:
        if each.dim() != 4 or each.shape[-1] != prefix + cells:
            raise ShapeError(
                f"cross-attention must be [B, Hq, T, {prefix} + {grid[0]} * {grid[1]}], "
                f"got {list(each.shape)}"
            )
    weights = [each[:, check_choices("head", heads, range(each.shape[1]))] for each in chosen]
    maps = torch.stack(weights).float()[..., prefix:].unflatten(-1, grid)
    if over == "none":
        return maps
    return maps.mean((0, 2)) if over == "mean" else maps.amax((0, 2))
