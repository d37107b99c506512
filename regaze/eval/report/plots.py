"""Plots of a run, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regaze.eval.report import tables

#: panels beside each other: as many as are legible on a page of 700 pixels
_COLUMNS = 3


def draw_differences(benchmark: Mapping[str, Any], split: str, scorer: str, path: Path) -> bool:
    """Draw each method's differences to the plain model with their intervals, a panel per figure.

    Returns:
        Whether there was anything to draw.
    """
    from regaze.toolkit import plot

    ran = {name: entry for name, entry in benchmark["methods"].items() if not entry.get("error")}
    differences = {name: entry["figures"][split][scorer]["difference"] for name, entry in ran.items()}
    plain = benchmark["plain"]["figures"][split][scorer]["plain"]
    panels = {}
    for figure, _ in tables.iter_estimates(plain):
        if any(each[figure]["value"] is not None for each in differences.values()):
            scale = 1.0 if figure in benchmark["numbers"].get(scorer, ()) else 100.0
            panels[tables.figure_label(figure)] = {
                name: _scaled(each[figure], scale) for name, each in differences.items()
            }
    if not panels:
        return False
    label = "difference to the plain model (shares in points), 95 % interval"
    plot.forest_plot(panels, label=label, columns=_COLUMNS, path=path)
    return True


def _scaled(difference: Mapping[str, Any], scale: float) -> dict[str, float | None]:
    sides = {side: difference[side] for side in ("value", "low", "high")}
    return {side: None if number is None else scale * number for side, number in sides.items()}
