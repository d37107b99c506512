"""The one look of all pictures: colours, sizes of text, thin frames, and how a figure is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regaze.errors import BadParameterError
from regaze.toolkit.prompts.token_map import Role

#: Okabe-Ito (Color Universal Design, 2008): eight colours that all readers can tell apart.
BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY, BLACK = PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#999999",
    "#000000",
)
#: The same, in the order in which roles are stacked.
ROLE_COLOURS = {
    Role.IMAGE: ORANGE,
    Role.QUERY: BLUE,
    Role.OUTPUT: GREEN,
    Role.SYSTEM: GREY,
    Role.SEPARATOR: PINK,
    Role.TAIL: SKY,
    Role.PAD: BLACK,
}
#: Colours of amounts (dark is none) and of differences (white is none).
AMOUNT, DIFFERENCE = "inferno", "PuOr"
#: Sizes of text in points: labels and titles; ticks and legends.
LABEL, TICK = 9, 8
#: The same figure gives the same file; text in a PDF stays text; images keep their own pixels.
_FILES: Any = {"svg.hashsalt": "regaze", "pdf.fonttype": 42, "image.composite_image": False}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def colour_scale(values: np.ndarray, top: float | None = None) -> dict[str, Any]:
    """How imshow colours values: from 0 to the largest (or `top`), or, where some are negative, around 0."""
    finite = np.abs(values[np.isfinite(values)])
    top = max(float(finite.max(initial=0.0)) if top is None else float(top), 1e-12)
    if (values < 0).any():
        return {"cmap": DIFFERENCE, "vmin": -top, "vmax": top}
    return {"cmap": AMOUNT, "vmin": 0, "vmax": top}


def legend(axes: Axes, **options: Any) -> None:
    """What the colours mean, to the right of the axes unless told otherwise."""
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axes.legend(**({"frameon": False, "fontsize": TICK} | (options or place)))


def word_ticks(axis: Any, words: Sequence[str], rotation: float = 0.0) -> None:
    """A tick for every word."""
    axis.set_ticks(
        range(len(words)), [escape_dollars(visible_text(word)) for word in words], rotation=rotation
    )
    if rotation:
        for label in axis.get_ticklabels():
            label.set_horizontalalignment("right" if rotation < 90 else "center")
            label.set_rotation_mode("anchor" if rotation < 90 else "default")


def visible_text(word: str) -> str:
    """A token's text without spaces around it; what is nothing but spaces and line ends is spelled out."""
    return word.strip() or word.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")


def escape_dollars(text: str) -> str:
    """Text in which a dollar sign does not begin a formula."""
    return text.replace("$", r"\$")


def style_and_save(figure: Figure, path: str | Path | None = None) -> Figure:
    """Give a figure the look of all others, and write it when there is a path.

    Raises:
        BadParameterError: the file cannot be written, or its ending is none that matplotlib knows.
    """
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
            with rc_context(_FILES):
                figure.savefig(path, dpi=160, metadata=undated)
        except (ValueError, OSError) as error:
            raise BadParameterError(f"cannot write the figure to {str(path)!r}: {error}") from None
    return figure
