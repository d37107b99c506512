"""Plots of a run, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regaze.eval import tables


def differences(asked: Mapping[str, Any], split: str, scorer: str, path: Path) -> bool:
    """Each method's differences to the plain model with their intervals, a panel per figure.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ran = {name: entry for name, entry in asked["methods"].items() if not entry.get("error")}
    differences = [entry["figures"][split][scorer]["difference"] for entry in ran.values()]
    plain = asked["plain"]["figures"][split][scorer]["plain"]
    shown = [
        name
        for name, _ in tables.estimates(plain)
        if any(each[name]["value"] is not None for each in differences)
    ]
    if not ran or not shown:
        return False
    figure = Figure(figsize=(2.4 * len(shown) + 1.2, 0.38 * len(ran) + 1.3), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, shown, strict=True):
        scale = 1.0 if name in asked["numbers"].get(scorer, ()) else 100.0
        for row, difference in enumerate(differences):
            _draw(panel, row, difference[name], scale)
        panel.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
        panel.set_title(tables.label(name), fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(range(len(ran)), list(ran), fontsize=9)
    panels[0].set_ylim(len(ran) - 0.5, -0.5)
    figure.supxlabel("difference to the plain model (shares in points), 95 % interval", fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    return True


def _draw(panel: Any, row: int, difference: Mapping[str, Any], scale: float) -> None:
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    if value is None or value != value:
        return
    if low is not None and low == low:
        panel.plot([scale * low, scale * high], [row, row], color="C0", linewidth=1.5)
    panel.plot([scale * value], [row], "o", color="C0", markersize=4)
