"""Pictures of a record: where an answer token looked, and how attention divides among the roles.

Every function returns a matplotlib Figure (no pyplot state) and writes it when given a `path` (.png, .pdf,
.svg). Colours are safe for colour-blind readers: "inferno" for maps, the Okabe-Ito palette for roles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from regaze.errors import BadParameterError, RecordingError
from regaze.toolkit.record import Record, Trace
from regaze.toolkit.tokens import Role

#: Okabe-Ito colours, in the order in which roles are stacked.
ROLE_COLOURS = {
    Role.IMAGE: "#E69F00",
    Role.QUERY: "#0072B2",
    Role.OUTPUT: "#009E73",
    Role.SYSTEM: "#999999",
    Role.SEPARATOR: "#CC79A7",
    Role.TAIL: "#56B4E9",
    Role.PAD: "#000000",
}
_STYLE: dict[str, Any] = {"fontsize": 9}


def heatmap(
    record: Record | Trace,
    image: Image.Image,
    *,
    token: int | str = 0,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    number: int = 0,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Where one token looked: the image, and the map over it.

    Args:
        record: recorded with slices="image" (a Record means its first trace).
        image: the picture as the model saw it (`gaze.seen(image)`), so that cells fall on their pixels.
        token: number of an answer token (0 is the first; the row that predicts it is shown), or a word of the
            answer or the question (see `Trace.row_of`).
        layers, heads: whose mean is shown; None: all that were recorded.
        sample: row of the batch. number: which of its images.
        title: default: the token's text and what was averaged.
        path: where to write the figure.

    Raises:
        RecordingError: slices were not recorded. BadParameterError: a token, layer or head that is not there.
    """
    trace = _trace(record)
    grid = answer_map(trace, token=token, layers=layers, heads=heads, sample=sample, number=number)
    figure = Figure(figsize=(7.4, 3.5), layout="constrained")
    picture, overlay = figure.subplots(1, 2)
    picture.imshow(image)
    picture.set_axis_off()
    shown = _overlay(overlay, image, grid, grid.max())
    bar = figure.colorbar(shown, ax=overlay, shrink=0.9)
    bar.set_label("attention weight per image token", **_STYLE)
    overlay.set_title(title if title is not None else _caption(trace, token, layers, heads, sample), **_STYLE)
    return _finish(figure, path)


def token_layer_grid(
    record: Record | Trace,
    image: Image.Image,
    *,
    tokens: Sequence[int | str] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    number: int = 0,
    path: str | Path | None = None,
) -> Figure:
    """Maps of several tokens or words (rows) in several layers (columns), on one colour scale per token.

    Arguments and errors as for `heatmap`; `tokens` None is every answer token.
    """
    trace = _trace(record)
    tokens = range(len(trace.answer_rows())) if tokens is None else tokens
    layers = list(trace.layers) if layers is None else list(layers)
    text = trace.answer_text(sample)
    figure = Figure(figsize=(1.5 * len(layers) + 0.6, 1.55 * len(tokens) + 0.3), layout="constrained")
    axes = figure.subplots(len(tokens), len(layers), squeeze=False)
    for row, token in enumerate(tokens):
        maps = [
            answer_map(trace, token=token, layers=[layer], heads=heads, sample=sample, number=number)
            for layer in layers
        ]
        for column, (layer, grid) in enumerate(zip(layers, maps, strict=True)):
            _overlay(axes[row, column], image, grid, max(m.max() for m in maps))
            if row == 0:
                axes[row, column].set_title(f"layer {layer}", **_STYLE)
        word = token if isinstance(token, str) else text[token].strip()
        axes[row, 0].set_ylabel(word or f"token {token}", **_STYLE)
    return _finish(figure, path)


def role_masses(
    record: Record | Trace,
    *,
    over: Literal["layers", "steps"] = "layers",
    token: int | str = 0,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    path: str | Path | None = None,
) -> Figure:
    """Attention mass by role as a stacked area, over the layers or over the answer's tokens.

    Args:
        record: recorded with masses (the default). Other arguments as for `heatmap`; over="steps" averages
            the layers.
    """
    if over not in ("layers", "steps"):
        raise BadParameterError(f'over must be "layers" or "steps", got {over!r}')
    trace = _trace(record)
    masses = trace.need("masses")[:, sample]  # [layers, Hq, N, roles]
    masses = _pick(
        _pick(masses, 0, _layer_indices(trace, layers)), 1, _head_indices(masses.shape[1], heads)
    ).mean(1)
    rows = trace.answer_rows()
    if over == "layers":
        values, labels = masses[:, trace.row_of(token, sample)], layers or trace.layers
        axis, ticks = "layer", [str(layer) for layer in labels]
    else:
        values = masses[:, rows].mean(0)
        axis, ticks = (
            "answer token",
            [text.strip() or str(i) for i, text in enumerate(trace.answer_text(sample))],
        )
    figure = Figure(figsize=(max(4.6, 0.32 * len(values) + 1.8), 3.2), layout="constrained")
    axes = figure.add_subplot()
    _stack_roles(axes, values)
    axes.set_xticks(
        range(len(values)),
        ticks,
        rotation=0 if over == "layers" else 60,
        ha="center" if over == "layers" else "right",
    )
    axes.set_xlabel(axis, **_STYLE)
    axes.set_ylabel("attention mass (mean over heads)", **_STYLE)
    return _finish(figure, path)


def answer_map(
    trace: Trace,
    *,
    token: int | str = 0,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    number: int = 0,
) -> np.ndarray:
    """The numbers behind `heatmap`: mean attention of a token's row on each cell, [rows, columns]."""
    maps = trace.image_maps(sample, number)  # [layers, Hq, N, rows, columns]
    maps = _pick(_pick(maps, 0, _layer_indices(trace, layers)), 1, _head_indices(maps.shape[1], heads))
    return maps[:, :, trace.row_of(token, sample)].mean((0, 1)).numpy()


def _trace(record: Record | Trace) -> Trace:
    return record if isinstance(record, Trace) else record[0]


def _layer_indices(trace: Trace, layers: Sequence[int] | None) -> list[int] | None:
    if layers is None:
        return None
    missing = [layer for layer in layers if layer not in trace.layers]
    if missing:
        raise RecordingError(f"layers {missing} were not recorded; the record has {list(trace.layers)}")
    return [trace.layers.index(layer) for layer in layers]


def _head_indices(count: int, heads: Sequence[int] | None) -> list[int] | None:
    if heads is not None and any(not 0 <= head < count for head in heads):
        raise BadParameterError(f"heads {list(heads)} are not all among 0..{count - 1}")
    return None if heads is None else list(heads)


def _pick(tensor: Tensor, dim: int, index: list[int] | None) -> Tensor:
    return tensor if index is None else tensor.index_select(dim, torch.tensor(index))


def _overlay(axes: Axes, image: Image.Image, grid: np.ndarray, top: float) -> Any:
    """The image in grey under the map; the less attention, the more of the image shows."""
    rows, columns = grid.shape
    extent = (0, columns, rows, 0)
    axes.imshow(image.convert("L"), cmap="gray", extent=extent, vmin=0, vmax=255, alpha=0.9)
    scale = max(float(top), 1e-12)
    alpha = np.clip(0.15 + 0.65 * grid / scale, 0, 1)
    shown = axes.imshow(
        grid, cmap="inferno", extent=extent, vmin=0, vmax=scale, alpha=alpha, interpolation="nearest"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    return shown


def _stack_roles(axes: Axes, values: Tensor) -> None:
    """Stacked areas of [n, roles]; a single point becomes a bar."""
    x, base = np.arange(len(values)), np.zeros(len(values))
    for role, colour in ROLE_COLOURS.items():
        part = values[:, int(role)].numpy()
        if not part.any():
            continue
        if len(x) == 1:
            axes.bar(x, part, bottom=base, color=colour, label=role.name.lower())
        else:
            axes.fill_between(x, base, base + part, color=colour, label=role.name.lower(), linewidth=0)
        base = base + part
    axes.set_ylim(0, 1)
    if len(x) > 1:
        axes.set_xlim(0, len(x) - 1)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)


def _caption(
    trace: Trace, token: int | str, layers: Sequence[int] | None, heads: Sequence[int] | None, sample: int
) -> str:
    word = token if isinstance(token, str) else trace.answer_text(sample)[token].strip()
    where = "all layers" if layers is None else _plural("layer", layers)
    which = "mean over heads" if heads is None else _plural("head", heads)
    return f"{f'“{word}”' if word else f'answer token {token}'} · {where} · {which}"


def _plural(noun: str, numbers: Sequence[int]) -> str:
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        try:
            figure.savefig(path, dpi=160)
        except (ValueError, OSError) as error:
            raise BadParameterError(f"cannot write the figure to {str(path)!r}: {error}") from None
    return figure
