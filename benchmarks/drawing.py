"""The figures of the study that `seeing.py` makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from regaze.toolkit import plot
from regaze.toolkit.plot.style import BLACK, BLUE, GREEN, GREY, ORANGE, RED, SKY

SMALL = {"fontsize": 9}


def _errors(values: list[dict[str, float]]) -> list[list[float]]:
    return [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]]


def draw_pointing(study: dict[str, Any], path: Path) -> None:
    """Hits and mass of every map with intervals, best at the top, against chance."""
    maps = study["maps"] | study["phrases"]
    names = sorted(maps, key=lambda name: maps[name]["hit"]["value"])
    figure = Figure(figsize=(9.5, 0.9 + 0.21 * len(maps)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, label in zip(
        panels, ("hit", "mass"), ("pointing game: share of hits", "share of mass in the box"), strict=True
    ):
        values = [maps[name][kind] for name in names]
        control = [maps[name][f"{kind}_shuffled"]["value"] for name in names]
        places = np.arange(len(names))
        axes.barh(
            places, [v["value"] for v in values], xerr=_errors(values), color=BLUE, capsize=2, height=0.7
        )
        axes.plot(control, places, "|", color=ORANGE, markersize=11, markeredgewidth=2, label="shuffled map")
        axes.axvline(study["chance"][kind]["value"], color=RED, linewidth=1, label="chance")
        axes.set_xlim(0, 1)
        axes.set_xlabel(label, **SMALL)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[1].legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(path, dpi=140)


def draw_layers(study: dict[str, Any], path: Path) -> None:
    """Mass in the box of each layer's mean map, for the row that answers and the row of the word."""
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.add_subplot()
    for row, colour, label in (
        ("word", RED, "row of the asked-for word"),
        ("answer", BLUE, "row that answers"),
    ):
        values = study["layers"][row]["mass"]
        heights = [v["value"] for v in values]
        axes.errorbar(
            range(len(values)), heights, _errors(values), color=colour, marker="o", capsize=3, label=label
        )
    axes.axhline(study["chance"]["mass"]["value"], color=GREY, linewidth=1, label="chance")
    axes.set_xlabel("layer", **SMALL)
    axes.set_ylabel("share of mass in the box", **SMALL)
    axes.set_ylim(0, None)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=140)


def draw_curves(found: list[dict[str, Any]], points: int, path: Path) -> None:
    """Mean deletion and insertion curves of some maps."""
    shown = {
        "the box itself": GREEN,
        "occlusion": BLUE,
        "gradient, propagated": SKY,
        "word: one chosen head": RED,
        "answer: all layers, mean": ORANGE,
        "rollout": GREY,
        "shuffled": BLACK,
    }
    figure = Figure(figsize=(8.5, 3.3), layout="constrained")
    share = np.linspace(0, 1, points)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, label in zip(panels, ("deletion", "insertion"), ("hidden", "shown"), strict=True):
        for name, colour in shown.items():
            mean = np.mean([result["curves"][kind][name] for result in found], 0)
            style = "--" if name in ("the box itself", "shuffled") else "-"
            axes.plot(share, mean, style, color=colour, marker="o", markersize=3, label=name)
        axes.set_xlabel(f"share of the image {label}, most important first", **SMALL)
        axes.set_title(kind, **SMALL)
    panels[0].set_ylabel("log-probability of the answer (nats)", **SMALL)
    panels[1].legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(path, dpi=140)


def draw_heads(masses: dict[str, Tensor], path: Path) -> None:
    """Share of each head's image attention on the asked-for thing, for the row of the word."""
    plot.head_scores(
        masses["word"].float(), label="mass in the box", title="row of the asked-for word", path=path
    )


def draw_examples(examples: list[tuple[Any, dict[str, Tensor]]], path: Path) -> None:
    """Some maps of some scenes, over the picture and the box asked for."""
    shown = (
        "answer: last layer, mean",
        "word: all layers, mean",
        "word: one chosen head",
        "gaze shift, one layer",
        "rollout",
        "gradient, propagated",
        "occlusion",
    )
    figure = Figure(figsize=(1.45 * (len(shown) + 1), 1.6 * len(examples) + 0.2), layout="constrained")
    grid = figure.subplots(len(examples), len(shown) + 1)
    for row, (case, maps) in zip(grid, examples, strict=True):
        side = case.image.width
        row[0].imshow(case.image)
        row[0].set_ylabel(case.thing.category, **SMALL)
        for axes, name in zip(row[1:], shown, strict=True):
            values = maps[name].clamp_min(0).numpy()
            axes.imshow(case.image.convert("L"), cmap="gray", vmin=0, vmax=255)
            axes.imshow(
                values,
                cmap="inferno",
                alpha=0.7,
                extent=(-0.5, side - 0.5, side - 0.5, -0.5),
                vmin=0,
                vmax=max(values.max(), 1e-12),
            )
        for axes in row:
            x0, y0, x1, y1 = case.thing.box
            axes.add_patch(
                Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=SKY, linewidth=1.4)
            )
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, name in zip(grid[0][1:], shown, strict=True):
        axes.set_title(name.replace(": ", ":\n").replace(", ", ",\n"), fontsize=7)
    figure.savefig(path, dpi=75)
