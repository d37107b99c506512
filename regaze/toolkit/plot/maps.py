"""Maps over an image: heatmaps of tokens, attention sinks, several maps side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from regaze.errors import BadParameterError, RecordingError
from regaze.reading import StrPath
from regaze.toolkit.analysis.maps import image_map
from regaze.toolkit.analysis.selection import (
    asked_word,
    check_choice,
    check_choices,
    check_sample,
    first_trace,
    select_rows,
)
from regaze.toolkit.analysis.token_sinks import SinkTokens
from regaze.toolkit.plot.style import SKY, colour_scale, figure_text, new_figure, style_and_save
from regaze.toolkit.plot.views import Panel, Part, Views, map_of_seen, map_on, panels_of, read_parts
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.prompts.picture import WHOLE, Shares, within
from regaze.toolkit.prompts.token_map import View, boxes_on
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace

#: Opacity of a map over the grey image, the same for all cells, so that a colour has one meaning. The colour
#: bar has the image's mean grey as its background, so that it shows the colours of the map.
_OPACITY = 0.7
#: Pictures are drawn with at most so many pixels.
_LARGEST = (2048, 2048)


def heatmap(
    record: Record | Trace,
    image: ImageLike,
    *,
    token: int | str | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    number: int = 0,
    views: Views = "sum",
    title: str | None = None,
    path: StrPath | None = None,
) -> Figure:
    """Attention of one token over an image: the image, and beside it the map over the grey image.

    Args:
        record: recorded with slices="image" (a Record means its first trace; for a model with cross-attention
            give `record[0].cross`).
        image: the picture that was asked about, in any size, or as the model received it (`gaze.seen`).
        token: number of an answer token (0 is the first; the row that predicts it is drawn), or a word of the
            answer or the question (see `Trace.row_of`). None: the word that the question asks about
            (`analysis.asked_word`) if its row was recorded, with rows="text", else the first answer token.
        layers, heads: numbers, averaged; None: all that were recorded.
        sample: row of the batch. number: which of its images.
        views: what to show of an image that the model sees as tiles, with or without an overview (`Views`).
        title: default: the methods that acted, the token's text and what was averaged.
        path: where to write the figure.

    Raises:
        RecordingError: slices were not recorded, or the places of the image's tokens are not known.
        BadParameterError: a token, layer, head, sample or image that is not in the record.
        InputError: the picture cannot be opened, or has another shape than that of the record.
    """
    image = open_image(image)
    image.thumbnail(_LARGEST)
    trace = first_trace(record)
    if token is None:
        token = asked_word(trace, check_sample(trace, sample)) or 0
    parts = _parts(trace, token, layers, heads, sample, number)
    what = "weight per image token" if len(parts) > 1 else "attention weight per image token"
    panels = panels_of(parts, views, what)
    high = min(max(3.1 * image.height / image.width, 1.6), 9.0) + 0.4
    figure = new_figure(0.6 + 3.4 * (1 + len(panels)), high)
    picture, *overlays = figure.subplots(1, 1 + len(panels))
    picture.imshow(image, interpolation="none")
    picture.set_axis_off()
    for overlay, panel in zip(overlays, panels, strict=True):
        grid, box = map_on(panel.parts, image, mean=views == "mean")
        _colour_bar(figure, _overlay(overlay, image, grid, box=box), overlay, image, panel.label)
    overlays[0].set_title(
        figure_text(_caption(trace, token, layers, heads, sample) if title is None else title)
    )
    return style_and_save(figure, path)


def token_layer_grid(
    record: Record | Trace,
    image: ImageLike,
    *,
    tokens: Sequence[int | str] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    number: int = 0,
    views: Literal["sum", "mean", "tiles", "overview"] = "sum",
    path: StrPath | None = None,
) -> Figure:
    """Maps of several tokens or words (rows) in several layers (columns), on one colour scale per token.

    Args:
        tokens: numbers of answer tokens, or words; None: every answer token.

    Other arguments and errors as for `heatmap`.
    """
    image = open_image(image)
    image.thumbnail(_LARGEST)
    trace = first_trace(record)
    chosen = _tokens(trace, tokens, sample)
    layers = check_choices("layer", layers, trace.layers)
    text = trace.answer_text(check_sample(trace, sample))
    figure = new_figure(1.5 * len(layers) + 1.3, 1.55 * len(chosen) + 0.3)
    axes = figure.subplots(len(chosen), len(layers), squeeze=False)
    for row, token in enumerate(chosen):
        drawn = []
        for layer in layers:
            (panel,) = _one_panel(_parts(trace, token, [layer], heads, sample, number), views)
            drawn.append(map_on(panel.parts, image, mean=views == "mean"))
        for column, (layer, (grid, box)) in enumerate(zip(layers, drawn, strict=True)):
            mappable = _overlay(axes[row, column], image, grid, max(each.max() for each, _ in drawn), box)
            if row == 0:
                axes[row, column].set_title(f"layer {layer}")
        word = token if isinstance(token, str) else text[token].strip()
        axes[row, 0].set_ylabel(figure_text(word) or f"token {token}")
        _colour_bar(figure, mappable, axes[row], image, "weight")
    return style_and_save(figure, path)


def maps(
    named: Mapping[str, Tensor],
    image: ImageLike,
    *,
    boxes: Sequence[Sequence[float]] = (),
    columns: int = 4,
    path: StrPath | None = None,
) -> Figure:
    """Several maps over one image side by side, each with its own colour scale (see `colour_scale`).

    Args:
        named: title -> [rows, columns], such as the result of `analysis.image_map`.
        image: the picture as the model received it (`gaze.seen`): the cells of maps are taken to be square.
        boxes: left, upper, right and lower edge in pixels of the image, framed in the picture and every map.
        columns: panels per row; the first panel is the picture.

    Raises:
        BadParameterError: no map, or a map that is not [rows, columns].
        InputError: a picture of another shape.
    """
    image = open_image(image)
    width, height = image.size
    image.thumbnail(_LARGEST)
    wrong = {name: list(each.shape) for name, each in named.items() if each.dim() != 2}
    if not named or wrong:
        raise BadParameterError(f"maps must be a dict of at least one map [rows, columns], got {wrong}")
    for each in named.values():
        boxes_on([View((each.shape[0], each.shape[1]))], image)
    columns = min(columns, 1 + len(named))
    rows = math.ceil((1 + len(named)) / columns)
    figure = new_figure(2.2 * columns, 1.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[1 + len(named) :]:
        axes.set_visible(False)
    panels[0].imshow(image, interpolation="none", extent=(0, 1, 1, 0), aspect=image.height / image.width)
    panels[0].set_title("image")
    _no_ticks(panels[0])
    for axes, (name, values) in zip(panels[1:], named.items(), strict=False):
        mappable = _overlay(axes, image, values.detach().float().cpu().numpy())
        axes.set_title(figure_text(name))
        _colour_bar(figure, mappable, axes, image, "")
    for axes in panels[: 1 + len(named)]:
        (_, right), (bottom, _) = axes.get_xlim(), axes.get_ylim()
        across, down = right / width, bottom / height
        for x0, y0, x1, y1 in boxes:
            corner, size = (x0 * across, y0 * down), ((x1 - x0) * across, (y1 - y0) * down)
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=SKY, linewidth=1.4))
    return style_and_save(figure, path)


def sink_map(
    sinks: SinkTokens,
    image: ImageLike,
    *,
    layers: Sequence[int] | None = None,
    sample: int = 0,
    number: int = 0,
    views: Literal["tiles", "overview"] = "tiles",
    path: StrPath | None = None,
) -> Figure:
    """Sink values of an image's tokens in each layer; cells that reach the threshold are framed.

    Args:
        sinks: from `analysis.sink_tokens`.
        image, sample, number: as for `heatmap`.
        layers: numbers, a panel for each; None: all.
        views: of an image in tiles, these or the view of the whole image.

    Raises:
        BadParameterError: a layer, sample or image that does not exist. RecordingError: the places of the
            image's tokens are not known. InputError: a picture of another shape.
    """
    image = open_image(image)
    image.thumbnail(_LARGEST)
    sample = check_choice("sample", sample, range(sinks.tokens.batch))
    layers = check_choices("layer", layers, sinks.layers)
    shown = [sinks.layers.index(layer) for layer in layers]
    parts = read_parts(
        sinks.tokens, sample, number, lambda view: sinks.image_map(sample, view)[shown].numpy()
    )
    (panel,) = panels_of(parts, views, "sink value")
    top = max(sinks.tau, *(float(part.cells.max()) for part in panel.parts))
    figure = new_figure(1.6 * len(layers) + 1.0, 1.9)
    panels = figure.subplots(1, len(layers), squeeze=False)[0]
    for place, (axes, layer) in enumerate(zip(panels, layers, strict=True)):
        here = [Part(part.view, part.cells[place]) for part in panel.parts]
        grid, box = map_on(here, image)
        mappable = _overlay(axes, image, grid, top, box)
        axes.set_title(f"layer {layer}")
        for part, edges in zip(here, boxes_on([part.view for part in here], image), strict=True):
            _frame_cells(axes, part.cells >= sinks.tau, grid.shape, within(edges or WHOLE, box))
    _colour_bar(figure, mappable, panels, image, f"sink value (threshold {sinks.tau:g})")
    return style_and_save(figure, path)


def answer_map(
    trace: Trace,
    *,
    token: int | str = 0,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    number: int = 0,
    views: Literal["sum", "mean", "tiles", "overview"] = "sum",
) -> np.ndarray:
    """The numbers that `heatmap` draws: mean attention of a token's row on each cell, [rows, columns].

    If several views show an image (tiles and an overview, frames of a video), `views` says which of them
    count (see `Views`), and the resolution is fine enough for all their cells.
    """
    (panel,) = _one_panel(_parts(trace, token, layers, heads, sample, number), views)
    return map_of_seen(panel.parts, mean=views == "mean")


def _parts(
    trace: Trace,
    token: int | str,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    sample: int,
    number: int,
) -> list[Part]:
    """The views of an image, and the attention on the cells of each."""
    sample = check_sample(trace, sample)
    if trace.slices is None and trace.masses is not None:
        raise RecordingError(
            "this record has masses by role, which plot.role_masses(record) draws; a map needs weights of "
            'image tokens: gaze.recording(slices="image", ...)'
        )

    def cells_of(view: int) -> np.ndarray:
        return image_map(trace, token=token, layers=layers, heads=heads, sample=sample, image=view).numpy()

    return read_parts(trace.tokens, sample, number, cells_of)


def _one_panel(parts: list[Part], views: Views) -> list[Panel]:
    """As `panels_of`, where one map is drawn."""
    if views == "apart":
        raise BadParameterError('views="apart" makes two maps, which heatmap draws; choose one of them here')
    return panels_of(parts, views, "weight")


def _tokens(trace: Trace, tokens: Any, sample: int) -> list[Any]:
    """Checked numbers of answer tokens, and words; None: every answer token."""
    count = range(len(select_rows(trace, "answer", check_sample(trace, sample))))
    if tokens is None:
        return list(count)
    values = list(tokens) if isinstance(tokens, Iterable) and not isinstance(tokens, str) else []
    if not values:
        raise BadParameterError(f"tokens: expected a list with at least one token, got {tokens!r}")
    return [each if isinstance(each, str) else check_choice("answer token", each, count) for each in values]


def _overlay(
    axes: Axes, image: Image.Image, grid: np.ndarray, top: float | None = None, box: Shares = WHOLE
) -> Any:
    """Draw the map over the grey image, in coordinates of the map's cells; `box`: the part it shows."""
    rows, columns = grid.shape
    left, right = ((edge - box[0]) / (box[2] - box[0]) * columns for edge in (0, 1))
    upper, lower = ((edge - box[1]) / (box[3] - box[1]) * rows for edge in (0, 1))
    aspect = image.height / image.width * (right - left) / (lower - upper)
    # No interpolation: vector files keep the picture's own pixels and sharp cells.
    picture: dict[str, Any] = {"extent": (left, right, lower, upper), "aspect": aspect}
    axes.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, interpolation="none", **picture)
    cells: dict[str, Any] = {"extent": (0, columns, rows, 0), "aspect": aspect}
    mappable = axes.imshow(grid, alpha=_OPACITY, interpolation="nearest", **colour_scale(grid, top), **cells)
    axes.set_xlim(left, right)
    axes.set_ylim(lower, upper)
    _no_ticks(axes)
    return mappable


def _frame_cells(axes: Axes, chosen: np.ndarray, shape: tuple[int, ...], box: Shares) -> None:
    """Frame the chosen cells of a view that is `box` of a map of this shape."""
    left, upper, right, lower = box[0] * shape[1], box[1] * shape[0], box[2] * shape[1], box[3] * shape[0]
    across, down = (right - left) / chosen.shape[1], (lower - upper) / chosen.shape[0]
    for row, column in np.argwhere(chosen):
        corner = (left + column * across, upper + row * down)
        axes.add_patch(Rectangle(corner, across, down, fill=False, edgecolor=SKY, linewidth=1.4))


def _no_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _colour_bar(figure: Figure, mappable: Any, axes: Any, image: Image.Image, label: str) -> None:
    bar = figure.colorbar(mappable, ax=axes, shrink=0.9)
    bar.ax.set_facecolor(str(np.asarray(image.convert("L")).mean() / 255))
    bar.set_label(label)


def _caption(
    trace: Trace, token: int | str, layers: Sequence[int] | None, heads: Sequence[int] | None, sample: int
) -> str:
    word = token if isinstance(token, str) else trace.answer_text(sample)[token].strip()
    where = "all layers" if layers is None else _plural("layer", layers)
    which = "mean over heads" if heads is None else _plural("head", heads)
    whose = f"“{word}”" if word else f"answer token {token}"
    methods = [trace.method_names] if trace.interventions else []
    return " · ".join([*methods, whose, where, which])


def _plural(noun: str, numbers: Sequence[int]) -> str:
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
