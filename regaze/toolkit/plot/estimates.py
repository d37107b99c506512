"""Numbers with confidence intervals: bars of the pointing game, and forest plots that compare methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from regaze.errors import BadParameterError
from regaze.reading import StrPath
from regaze.toolkit.analysis.intervals import Estimate
from regaze.toolkit.plot.style import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    figure_text,
    legend,
    new_figure,
    style_and_save,
)

#: A number with its interval: an Estimate, (value, low, high), or a mapping with these three keys (None: not
#: known), as in `results.json` and `Estimate.rounded`.
Interval = Estimate | Mapping[str, Any] | tuple[float, float, float]
_SIDES = ("value", "low", "high")


def pointing_game(
    hits: Mapping[str, Interval],
    *,
    controls: Mapping[str, Interval] | None = None,
    chance: float | None = None,
    label: str = "pointing game: share of hits",
    path: StrPath | None = None,
) -> Figure:
    """How well maps point: a bar with its interval for each map, the best at the top.

    Args:
        hits: name of the map -> share of hits (or of mass in the box), in [0, 1].
        controls: the same for the shuffled maps. chance: what a flat map scores.

    Raises:
        BadParameterError: no map, a map without a value, or a control without its map.
    """
    numbers = {name: _bounds(each) for name, each in hits.items()}
    unknown = [name for name, each in numbers.items() if np.isnan(each[0])]
    strange = [name for name in controls or () if name not in hits]
    if not numbers or unknown or strange:
        raise BadParameterError(
            f"expected a figure for at least one map; none is known for {unknown}, no map is named {strange}"
        )
    names = sorted(numbers, key=lambda name: numbers[name][0])
    figure = new_figure(5.2, 0.27 * len(names) + 1.1)
    axes, places = figure.add_subplot(), np.arange(len(names))
    value, low, high = np.array([numbers[name] for name in names]).T
    errors = np.nan_to_num(np.stack([value - low, high - value]))
    style = {"elinewidth": 1.0, "capsize": 2.5}
    axes.barh(places, value, xerr=errors, color=BLUE, height=0.68, error_kw=style)
    if controls:
        shuffled = [(i, _bounds(controls[name])[0]) for i, name in enumerate(names) if name in controls]
        spots = np.array(shuffled).T
        axes.plot(spots[1], spots[0], "|", color=ORANGE, ms=10, mew=2, label="shuffled map")
    if chance is not None:
        axes.axvline(chance, color=RED, linewidth=1, linestyle="--", label="chance")
    axes.set_yticks(places, [figure_text(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"{label} (95 % interval)")
    if controls or chance is not None:
        legend(axes, loc="lower right")
    return style_and_save(figure, path)


def forest_plot(
    panels: Mapping[str, Mapping[str, Interval]],
    *,
    label: str = "difference to the plain model, 95 % interval",
    reference: float | None = 0.0,
    columns: int | None = None,
    path: StrPath | None = None,
) -> Figure:
    """Methods compared: a panel per metric, a row per method, a dot with its interval.

    Args:
        panels: title -> name of the method -> its number. The first panel sets the methods and their order; a
            number that is not known (None, nan, absent) leaves its row empty.
        label: what the dots mean.
        reference: where to draw a vertical line, such as no difference; None: no line.
        columns: the most panels beside each other; None: all.

    Raises:
        BadParameterError: nothing to draw, or `columns` is no positive number.
    """
    if not panels or not next(iter(panels.values())):
        raise BadParameterError("expected a panel with at least one method: {'accuracy': {'VAR': estimate}}")
    if columns is not None and columns < 1:
        raise BadParameterError(f"columns={columns}: expected at least 1, or None for all in a row")
    names = list(next(iter(panels.values())))
    longest = max(len(figure_text(name)) for name in names)
    across = min(len(panels), columns or len(panels))
    down = -(-len(panels) // across)
    width, height = 2.3 * across + 0.08 * longest + 0.3, 0.3 * len(names) + 0.7
    figure = new_figure(max(4.6, width), down * height + 0.3)
    drawn = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for unused in drawn[len(panels) :]:
        unused.remove()
    for axes, (title, values) in zip(drawn, panels.items(), strict=False):
        for row, name in enumerate(names):
            value, low, high = _bounds(values.get(name, {}))
            axes.plot([low, high], [row, row], color=BLUE, linewidth=1.5)
            axes.plot([value], [row], "o", color=BLUE, markersize=4.5)
        if reference is not None:
            axes.axvline(reference, color=GREY, linewidth=0.8, zorder=0)
        axes.set_title(figure_text(title))
        axes.spines["left"].set_visible(False)
    drawn[0].set_yticks(range(len(names)), [figure_text(name) for name in names])
    drawn[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel(label, fontsize=9)
    return style_and_save(figure, path)


def _bounds(interval: Interval) -> tuple[float, float, float]:
    """Value, low and high; nan where one is not known."""
    if isinstance(interval, tuple):
        return interval
    given: dict[str, Any] = dict(interval) if isinstance(interval, Mapping) else vars(interval)
    value, low, high = (float("nan") if given.get(k) is None else float(given[k]) for k in _SIDES)
    return value, low, high
