"""The logit lens: the likeliest word of every token and layer, and of every patch of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regaze.errors import BadParameterError
from regaze.reading import StrPath
from regaze.toolkit.analysis.lenses import LogitLens
from regaze.toolkit.analysis.selection import check_choice, check_choices
from regaze.toolkit.plot.style import (
    TICK,
    figure_text,
    new_figure,
    style_and_save,
    visible_text,
    word_ticks,
)
from regaze.toolkit.prompts.images import ImageLike, open_image

#: Light to dark, so that black words are readable on all but the darkest cells, where words are white.
_SHADES = "Blues"
_LONGEST = 10


def lens_table(
    lens: LogitLens,
    *,
    text: Sequence[str] | None = None,
    rows: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    sample: int = 0,
    path: StrPath | None = None,
) -> Figure:
    """The likeliest word of each layer (downwards) at each token (to the right), shaded by its probability.

    Args:
        lens: from `analysis.logit_lens`.
        text: the tokens of the sample, one per column of its ids, which label the rows of the lens; None: the
            positions label them.
        rows: indices into the rows of the lens; None: all. layers: numbers; None: all.
        sample: row of the batch.

    Raises:
        BadParameterError: the lens does not have such a row, layer or sample.
    """
    sample = check_choice("sample", sample, range(lens.rows.shape[0]))
    real = [place for place, position in enumerate(lens.rows[sample].tolist()) if position >= 0]
    chosen = check_choices("row", rows, real)
    states = [lens.layers.index(layer) for layer in check_choices("layer", layers, lens.layers)]
    shades = lens.top_probs[states][:, sample, chosen, 0].numpy()
    ids = lens.top_ids[states][:, sample, chosen, 0].tolist()
    words = [[lens.strings.get(token, str(token)) for token in row] for row in ids]
    positions = lens.rows[sample, chosen].tolist()
    if text is not None and len(text) <= max(positions):
        raise BadParameterError(
            f"text must have a token for each column up to {max(positions)}, got {len(text)}"
        )
    figure = new_figure(0.72 * len(chosen) + 1.3, 0.2 * len(states) + 1.2)
    axes = figure.add_subplot()
    mappable = _draw_words(axes, shades, words)
    word_ticks(axes.xaxis, [str(p) if text is None else text[p] for p in positions], rotation=40)
    axes.set_yticks(range(len(states)), [str(lens.layers[state]) for state in states])
    axes.set_xlabel("token that was read" if text is not None else "position")
    axes.set_ylabel("layer that is entered")
    figure.colorbar(mappable, ax=axes, pad=0.01).set_label("probability")
    return style_and_save(figure, path)


def lens_patches(
    lens: LogitLens,
    image: ImageLike,
    *,
    layer: int,
    sample: int = 0,
    number: int = 0,
    path: StrPath | None = None,
) -> Figure:
    """The likeliest word of each patch of an image in a layer, shaded by its probability, beside the image.

    Args:
        lens: from `analysis.logit_lens` with rows="all". image: the picture as the model saw it.
        layer: a layer of the lens. sample: row of the batch. number: which view of an image.

    Raises:
        BadParameterError: the lens does not have the layer. InputError: nor the rows of the image's tokens.
    """
    image = open_image(image)
    words = lens.image_words(layer, sample, number)
    cells = lens.tokens.image_cells(sample, number).tolist()
    row_at = {position: row for row, position in enumerate(lens.rows[sample].tolist())}
    shades = lens.top_probs[lens.layers.index(layer), sample, [row_at[cell] for cell in cells], 0].numpy()
    rows, columns = lens.tokens.grids[sample][number]
    side = max(2.2, 0.42 * rows)
    figure = new_figure(side * image.width / image.height + 0.56 * columns + 1.0, side + 0.3)
    picture, table = figure.subplots(1, 2, width_ratios=[side, 0.56 * columns])
    picture.imshow(image, interpolation="none")
    picture.set_axis_off()
    mappable = _draw_words(table, shades.reshape(rows, columns), words)
    table.set_xticks([])
    table.set_yticks([])
    table.set_title(f"likeliest word of each patch, entering layer {layer}")
    figure.colorbar(mappable, ax=table, pad=0.02).set_label("probability")
    return style_and_save(figure, path)


def _draw_words(axes: Axes, shades: np.ndarray, words: Sequence[Sequence[str]]) -> Any:
    """Draw a word in each cell, which is darker the likelier the word is."""
    mappable = axes.imshow(shades, cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(words):
        for column, word in enumerate(line):
            colour = "white" if shades[row, column] > 0.6 else "black"
            word = visible_text(word)
            short = word if len(word) <= _LONGEST else word[: _LONGEST - 1] + "…"
            axes.text(
                column,
                row,
                figure_text(short),
                ha="center",
                va="center",
                fontsize=TICK - 1.5,
                color=colour,
            )
    return mappable
