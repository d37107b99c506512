"""The common style of all figures: colours, text sizes, thin frames, and how a figure is written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from os import fspath
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

from regaze.errors import BadParameterError
from regaze.reading import StrPath
from regaze.toolkit.prompts.token_map import Role
from regaze.visible import visible
from regaze.writing import replacing

#: Okabe-Ito (Color Universal Design, 2008): eight colours that all readers can tell apart.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#999999",
    "#000000",
)
BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY, BLACK = PALETTE
#: Colours of the roles, in the order in which they are stacked.
ROLE_COLOURS = {
    Role.IMAGE: ORANGE,
    Role.QUERY: BLUE,
    Role.OUTPUT: GREEN,
    Role.SYSTEM: GREY,
    Role.SEPARATOR: PINK,
    Role.TAIL: SKY,
    Role.PAD: BLACK,
}
#: Colour map of amounts: dark is 0.
AMOUNT = "inferno"
#: A large and a small loss, a small and a large gain: the same blues and oranges as on the viewer's page.
LOST, GAINED = ("#1f6396", "#77b6e3"), ("#f0a13a", "#a14706")
#: Colour map of differences: blue is lost, white is 0, orange is gained.
DIFFERENCE = LinearSegmentedColormap.from_list("lost_gained", [*LOST, "#ffffff", *GAINED])
#: Most characters of a text of others.
_LONGEST = 120
_NOTEBOOK_DPI = 110
#: Text sizes in points: labels and titles; ticks and legends.
LABEL, TICK = 9, 8
#: Reproducible files: fixed SVG ids, text as text in a PDF, images with their own pixels.
_FILE_OPTIONS: Any = {"svg.hashsalt": "regaze", "pdf.fonttype": 42, "image.composite_image": False}


class NotebookFigure(Figure):
    """A figure that a notebook shows, which matplotlib's own does only when pyplot made it."""

    def _repr_png_(self) -> bytes:
        out, own = io.BytesIO(), self.dpi
        try:
            self.dpi = _NOTEBOOK_DPI
            FigureCanvasAgg(self).print_png(out)
        finally:
            self.dpi = own
        return out.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    return NotebookFigure(figsize=(width, height), layout="constrained")


def colour_scale(values: np.ndarray, top: float | None = None) -> dict[str, Any]:
    """Colour map and limits for imshow: from 0 to the largest value (or `top`), or, where some values are
    negative, symmetric around 0.
    """
    finite = np.abs(values[np.isfinite(values)])
    top = max(float(finite.max(initial=0.0)) if top is None else float(top), 1e-12)
    if (values < 0).any():
        return {"cmap": DIFFERENCE, "vmin": -top, "vmax": top}
    return {"cmap": AMOUNT, "vmin": 0, "vmax": top}


def legend(axes: Axes, **options: Any) -> None:
    """Add a legend, to the right of the axes unless `options` place it."""
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axes.legend(**({"frameon": False, "fontsize": TICK} | (options or place)))


def word_ticks(axis: Any, words: Sequence[str], rotation: float = 0.0) -> None:
    """Label an axis with a tick for every word."""
    labels = [figure_text(visible_text(word)) for word in words]
    axis.set_ticks(range(len(words)), labels, rotation=rotation)
    if rotation:
        for label in axis.get_ticklabels():
            label.set_horizontalalignment("right" if rotation < 90 else "center")
            label.set_rotation_mode("anchor" if rotation < 90 else "default")


def visible_text(token: str) -> str:
    """A token's text without surrounding spaces; of white space alone, a visible sign for each character."""
    return token.strip() or token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")


def figure_text(text: str) -> str:
    """A text of others, shortened: a dollar sign begins no formula, and no character is unseen."""
    text = visible(text, "\n")
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return text.replace("$", r"\$")


def _show_unseen(figure: Figure) -> None:
    """Show unseen characters of any text: an SVG file with control characters is none."""
    for text in figure.findobj(Text):
        text.set_text(visible(text.get_text()))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter):
                formatter.seq = [visible(label) for label in formatter.seq]


def style_and_save(figure: Figure, path: StrPath | None = None) -> Figure:
    """Apply the common style to a figure, and write it if a path is given.

    Raises:
        BadParameterError: the file cannot be written, or matplotlib does not know its ending.
    """
    _show_unseen(figure)
    for axes in figure.axes:
        axes.xaxis.label.set_fontsize(LABEL)
        axes.yaxis.label.set_fontsize(LABEL)
        axes.title.set_fontsize(LABEL)
        axes.tick_params(labelsize=TICK, width=0.6, length=2.5 if axes.spines["left"].get_visible() else 0)
        for spine in axes.spines.values():
            spine.set_linewidth(0.6)
        if not axes.images and axes.get_label() != "<colorbar>":
            axes.spines[["top", "right"]].set_visible(False)
    if path is not None:
        ending = Path(path).suffix.lower()
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(ending)
        try:
            with rc_context(_FILE_OPTIONS), replacing(path) as partial:
                figure.savefig(partial, dpi=160, metadata=undated)
        except ValueError as error:  # an InputError is one
            raise BadParameterError(f"cannot write the figure to {fspath(path)!r}: {error}") from None
    return figure
