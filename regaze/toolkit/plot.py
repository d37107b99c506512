"""Pictures of a record: where an answer token looked, how attention divides among the roles, scores of heads.

Every function returns a matplotlib Figure (no pyplot state) and writes it when given a `path` (.png, .pdf,
.svg). Colours are safe for colour-blind readers: "inferno" for maps, the Okabe-Ito palette for roles.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from regaze.errors import BadParameterError
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
#: Opacity of a map over the grey image. It is the same for all cells, so that a colour means one thing; the
#: colour bar is laid over the image's mean grey to show colours as they are in the map.
_OPACITY = 0.7


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
        RecordingError: slices were not recorded.
        BadParameterError: a token, layer, head, sample or image that is not in the record.
    """
    trace = _trace(record)
    token = _token(trace, token)
    grid = answer_map(trace, token=token, layers=layers, heads=heads, sample=sample, number=number)
    figure = Figure(figsize=(7.4, 3.5), layout="constrained")
    picture, overlay = figure.subplots(1, 2)
    picture.imshow(image)
    picture.set_axis_off()
    shown = _overlay(overlay, image, grid, grid.max())
    bar = figure.colorbar(shown, ax=overlay, shrink=0.9)
    bar.ax.set_facecolor(str(np.asarray(image.convert("L")).mean() / 255))
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
    tokens = range(len(trace.answer_rows())) if tokens is None else _several("token", tokens)
    tokens = [_token(trace, token) for token in tokens]
    layers = _indices("layer", layers, trace.layers)
    text = trace.answer_text(_sample(trace, sample))
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
    masses = trace.need("masses")[:, _sample(trace, sample)]  # [layers, Hq, N, roles]
    layers = _indices("layer", layers, trace.layers)
    masses = _pick(trace, masses, layers, heads).mean(1)
    if over == "layers":
        values = masses[:, trace.row_of(_token(trace, token), sample)]
        axis, ticks = "layer", [str(layer) for layer in layers]
    else:
        values = masses[:, trace.answer_rows()].mean(0)
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


def head_scores(
    scores: Tensor,
    *,
    marked: Sequence[tuple[int, int]] = (),
    label: str = "score",
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """One number for every head as a map, layers downwards and heads to the right.

    Args:
        scores: [layers, Hq], not negative; the colours reach from 0 to the highest.
        marked: (layer, head) pairs to frame, such as the highest.
        label: what the numbers are. title, path: as for `heatmap`.

    Raises:
        BadParameterError: scores of another shape, or a marked head that is not among them.
    """
    if scores.dim() != 2 or not scores.numel():
        raise BadParameterError(f"scores must be [layers, Hq], got {list(scores.shape)}")
    layers, heads = scores.shape
    figure = Figure(figsize=(0.22 * heads + 1.9, 0.16 * layers + 1.1), layout="constrained")
    axes = figure.add_subplot()
    top = max(float(scores.max()), 1e-12)
    shown = axes.imshow(scores.cpu().numpy(), cmap="inferno", vmin=0, vmax=top, aspect="auto")
    for layer, head in marked:
        layer, head = _index("layer", layer, range(layers)), _index("head", head, range(heads))
        frame = Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor="#56B4E9", linewidth=1.2)
        axes.add_patch(frame)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("head", **_STYLE)
    axes.set_ylabel("layer", **_STYLE)
    axes.set_title(title or "", **_STYLE)
    figure.colorbar(shown, ax=axes).set_label(label, **_STYLE)
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
    sample = _sample(trace, sample)
    if trace.tokens is not None and trace.tokens.grids[sample]:  # image_maps has a word for what has none
        number = _index("image", number, range(len(trace.tokens.grids[sample])))
    maps = _pick(trace, trace.image_maps(sample, number), layers, heads)  # [layers, Hq, N, rows, columns]
    return maps[:, :, trace.row_of(_token(trace, token), sample)].mean((0, 1)).numpy()


def _trace(record: Record | Trace) -> Trace:
    return record if isinstance(record, Trace) else record[0]


def _index(what: str, wanted: Any, there: Sequence[int]) -> int:
    """`wanted` as a number that is `there`, or BadParameterError saying which are."""
    try:
        number = operator.index(wanted)
    except TypeError:
        raise BadParameterError(f"expected the {what}'s number, got {wanted!r}") from None
    if number not in there:
        known = f"0..{len(there) - 1}" if isinstance(there, range) else list(there)
        raise BadParameterError(f"{what} {number} was not recorded; the record has {known}")
    return number


def _several(what: str, wanted: Any) -> list[Any]:
    """`wanted` as a list that is not empty."""
    values = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else []
    if not values:
        raise BadParameterError(f"{what}s: expected a list with at least one {what}, got {wanted!r}")
    return values


def _indices(what: str, wanted: Any, there: Sequence[int]) -> list[int]:
    """`wanted` as numbers that are all `there`; None: all of them."""
    return list(there) if wanted is None else [_index(what, each, there) for each in _several(what, wanted)]


def _sample(trace: Trace, sample: int) -> int:
    return _index("sample", sample, range(len(trace.row_active)))


def _token(trace: Trace, token: Any) -> int | str:
    """A word as it is, or the number of an answer token."""
    return token if isinstance(token, str) else _index("answer token", token, range(len(trace.answer_rows())))


def _pick(trace: Trace, tensor: Tensor, layers: Any, heads: Any) -> Tensor:
    """The chosen layers and heads of [layers, Hq, ...]."""
    held = [trace.layers.index(layer) for layer in _indices("layer", layers, trace.layers)]
    chosen = _indices("head", heads, range(tensor.shape[1]))
    return tensor.index_select(0, torch.tensor(held)).index_select(1, torch.tensor(chosen))


def _overlay(axes: Axes, image: Image.Image, grid: np.ndarray, top: float) -> Any:
    """The map over the image in grey."""
    rows, columns = grid.shape
    extent = (0, columns, rows, 0)
    axes.imshow(image.convert("L"), cmap="gray", extent=extent, vmin=0, vmax=255)
    shown = axes.imshow(
        grid,
        cmap="inferno",
        extent=extent,
        vmin=0,
        vmax=max(float(top), 1e-12),
        alpha=_OPACITY,
        interpolation="nearest",
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
