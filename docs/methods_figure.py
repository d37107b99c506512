"""Draw assets/methods.png: every method by what it edits, in which forwards and at what cost.

    python docs/methods_figure.py

It is drawn from the facts that the classes declare; the picture holds their digest, by which a test knows
whether it is still right.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from regaze.interventions.facts import Cost, Facts, Part
from regaze.interventions.registry import BUILT_IN

PICTURE = Path(__file__).resolve().parent / "assets" / "methods.png"
#: The field of the file that holds the digest.
DIGEST = "Facts"
#: Columns: forwards that are edited, a heading, and a width in inches.
COLUMNS = {
    ("before",): ("before", 1.0),
    ("prompt",): ("the prompt", 1.0),
    ("prompt", "answer"): ("prompt and answer", 6.3),
    ("answer",): ("the answer", 1.0),
    ("after",): ("after", 1.0),
}
#: What has to be given, which a star says.
GIVEN = {"fit", "head list", "trained model", "relevance model", "generator", "detector"}
COSTS = {
    "fewer rows": "fewer rows than plain",
    "one forward": "one forward",
    "output head": "and more output heads",
    "another prefill": "another prefill",
    "two rows": "two rows per prompt",
    "several answers": "several answers",
    "many rows": "many rows",
}
EDGE, LINE, PAD, SIZE = 1.25, 0.235, 0.07, 8  # inches: left margin, line, gap; points: text


def facts_by_name() -> dict[str, Facts]:
    return {name: resolve_name(path).facts for name, path in sorted(BUILT_IN.items())}


def digest(facts: dict[str, Facts]) -> str:
    text = json.dumps({name: asdict(each) for name, each in facts.items()})
    return hashlib.sha256(text.encode()).hexdigest()


def colour(cost: str) -> tuple[tuple[float, ...], str]:
    """The fill and the text of a cost: the dearer, the darker."""
    share = get_args(Cost).index(cost) / (len(get_args(Cost)) - 1)
    fill = colormaps["YlGnBu"](0.06 + 0.9 * share)
    return fill, "white" if share > 0.55 else "black"


def width(text: str) -> float:
    """Of a label in a box, in inches."""
    return 0.068 * len(text) + 0.13


def draw(facts: dict[str, Facts], path: Path) -> None:
    """Write the picture.

    Raises:
        ValueError: the figure has no column for the forwards that a method edits.
    """
    if unknown := {each.when for each in facts.values()} - {*COLUMNS}:
        raise ValueError(f"the figure has no column for {sorted(unknown)}")
    columns = [when for when in COLUMNS if any(when == each.when for each in facts.values())]
    parts = [part for part in get_args(Part) if any(part in each.edits for each in facts.values())]
    cells = {(part, when): _cell(facts, part, when) for part in parts for when in columns}
    heights = [LINE * max(len(cells[part, when]) for when in columns) + PAD for part in parts]
    wide, high = EDGE + sum(COLUMNS[when][1] for when in columns) + PAD, sum(heights) + 0.95
    figure = Figure(figsize=(wide, high))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, wide)
    axes.set_ylim(high, 0)
    axes.axis("off")
    _text(axes, PAD, 0.2, "edits", bold=True)
    left = EDGE
    for when in columns:
        heading, room = COLUMNS[when]
        _text(axes, left + PAD, 0.2, heading, bold=True)
        top = 0.4
        for part, height in zip(parts, heights, strict=True):
            for line, names in enumerate(cells[part, when]):
                x = left + PAD
                for name in names:
                    x = _box(axes, x, top + PAD / 2 + line * LINE, label(name, facts), facts[name].cost)
            top += height
        left += room
    top = 0.4
    for number, (part, height) in enumerate(zip(parts, heights, strict=True)):
        if number % 2 == 0:
            axes.add_patch(Rectangle((0, top), wide, height, color="#f2f2f2", zorder=0))
        _text(axes, PAD, top + height / 2, part)
        top += height
    _legend(axes, top + 0.12, {each.cost for each in facts.values()})
    figure.savefig(path, dpi=130, metadata={DIGEST: digest(facts), "Software": None})


def label(name: str, facts: dict[str, Facts]) -> str:
    return name + ("*" if {*facts[name].needs} & GIVEN else "")


def _cell(facts: dict[str, Facts], part: str, when: tuple[str, ...]) -> list[list[str]]:
    """The names in a cell, line by line, the cheapest first."""
    order = [*get_args(Cost)]
    names = [name for name, each in facts.items() if part in each.edits and when == each.when]
    found: list[list[str]] = [[]]
    room = 0.0
    for name in sorted(names, key=lambda name: (order.index(facts[name].cost), name)):
        room += width(label(name, facts)) + PAD
        if found[-1] and room > COLUMNS[when][1] - PAD:
            found.append([])
            room = width(label(name, facts)) + PAD
        found[-1].append(name)
    return found


def _text(axes: Axes, x: float, y: float, text: str, bold: bool = False) -> None:
    axes.text(x, y, text, va="center", fontsize=SIZE + 1, weight="bold" if bold else "normal")


def _box(axes: Axes, x: float, y: float, text: str, cost: str) -> float:
    """A label in the colour of a cost; where the next one begins."""
    fill, ink = colour(cost)
    size, style = (width(text), LINE - 0.04), "round,pad=0,rounding_size=0.05"
    axes.add_patch(FancyBboxPatch((x, y + 0.02), *size, style, fc=fill, ec="#666666", lw=0.5))
    axes.text(x + size[0] / 2, y + LINE / 2, text, ha="center", va="center", fontsize=SIZE, color=ink)
    return x + size[0] + PAD


def _legend(axes: Axes, y: float, costs: set[str]) -> None:
    _text(axes, PAD, y + LINE / 2, "costs", bold=True)
    x = EDGE + PAD
    for cost in COSTS:
        if cost in costs:
            x = _box(axes, x, y, COSTS[cost], cost)
    needs = "* needs a fit, a list of heads, a model trained for it, or another model"
    axes.text(EDGE + PAD, y + 1.6 * LINE, needs, va="center", fontsize=SIZE)


if __name__ == "__main__":
    draw(facts_by_name(), PICTURE)
