"""The curves of a sweep: figures against a parameter, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regaze.eval.comparison.verdicts import leading_figure, p_value
from regaze.eval.report.tables import Table, figure_label, format_estimate, format_p, leading_scorer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE = (
    "The best of several values was chosen on the questions that it is shown on: its figure leans to its "
    "side. To report one, choose it on other images: regaze compare --tune."
)
#: Figures beside the tested one and the length, where the scorer has them.
_BESIDE = ("recall", "cover", "yes_ratio")
LENGTH = "words"
#: of the line of the plain model, and of its interval
_PLAIN, _LINES = "0.25", "os^Dv*Px"


def curve_figures(benchmark: Mapping[str, Any]) -> list[str]:
    """The figures of a sweep: the tested one, recall or coverage, the length, and the yes-ratio."""
    split, scorer = leading_scorer(benchmark)
    compared = benchmark["plain"]["figures"][split][scorer]
    tested = leading_figure(compared)
    beside = [figure for figure in _BESIDE if figure in compared["plain"] and figure != tested]
    return [tested, *beside, LENGTH]


def estimate(benchmark: Mapping[str, Any], label: str | None, figure: str) -> Mapping[str, Any] | None:
    """{value, low, high} of a figure under a condition, None for the plain model's; None if it cannot run."""
    entry = benchmark["plain"] if label is None else benchmark["methods"][label]
    if entry.get("error"):
        return None
    if figure == LENGTH:
        length: Mapping[str, Any] = entry["length"]
        return length
    split, scorer = leading_scorer(benchmark)
    found: Mapping[str, Any] = entry["figures"][split][scorer]["plain" if label is None else "edited"][figure]
    return found


def sweep_table(results: Mapping[str, Any], name: str) -> Table:
    """A row per value, after the plain model."""
    benchmark = results["benchmarks"][name]
    split, scorer = leading_scorer(benchmark)
    figures = curve_figures(benchmark)
    numbers = {LENGTH, *benchmark["numbers"].get(scorer, ())}
    rows = [["", *map(figure_label, figures), "p", "Holm p", "changed"]]
    for label in [None, *results["sweep"]["points"]]:
        entry = benchmark["plain"] if label is None else benchmark["methods"][label]
        if entry.get("error"):
            rows.append([str(label), f"cannot run: {entry['error']}", *[""] * (len(rows[0]) - 2)])
            continue
        cells = [format_estimate(figure, _known(benchmark, label, figure), numbers) for figure in figures]
        tests = ["", "", ""]
        if label is not None:
            difference = entry["figures"][split][scorer]["difference"]
            tests = [format_p(p_value(difference)), format_p(difference.get("holm_p"))]
            tests.append(str(entry["answers_changed"]))
        rows.append([label or "plain", *cells, *tests])
    return rows


def neutral_note(results: Mapping[str, Any]) -> str:
    """Whether the points that should change nothing did so; "" where there is none."""
    parts = []
    for label, changed in results["sweep"]["neutral"].items():
        wrong = {name: count for name, count in changed.items() if count}
        if wrong:
            where = ", ".join(f"{count} answers ({name})" for name, count in wrong.items())
            parts.append(f"{label} should change nothing, but changed {where}: please report this.")
        elif changed:
            parts.append(f"{label} is neutral, and its answers are those of the plain model, word for word.")
    return " ".join(parts)


def draw_sweep(results: Mapping[str, Any], name: str, path: Path | None = None) -> Figure:
    """A panel per figure: its curve against the first parameter, with intervals, and the plain model's line.

    Of further parameters, each combination has a curve.
    """
    from regaze.toolkit.plot.style import PALETTE, figure_text, legend, new_figure, style_and_save

    benchmark, swept = results["benchmarks"][name], results["sweep"]
    figures, parameter = curve_figures(benchmark), next(iter(swept["grid"]))
    numbers = {LENGTH, *benchmark["numbers"].get(leading_scorer(benchmark)[1], ())}
    values, curves = swept["grid"][parameter], _curves(swept, parameter)
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    figure = new_figure(2.5 * len(figures) + (1.4 if len(curves) > 1 else 0.4), 2.6)
    panels = figure.subplots(1, len(figures), squeeze=False)[0]
    for axes, each in zip(panels, figures, strict=True):
        scale = 1.0 if each in numbers else 100.0
        plain = _sides(estimate(benchmark, None, each), scale)
        axes.axhline(plain[0], color=_PLAIN, linewidth=1, linestyle="--", label="plain", zorder=1)
        axes.axhspan(plain[1], plain[2], color=_PLAIN, alpha=0.1, linewidth=0, zorder=0)
        for number, (rest, points) in enumerate(curves.items()):
            x = [value if numeric else values.index(value) for value, _ in points]
            sides = np.array([_sides(estimate(benchmark, point, each), scale) for _, point in points]).T
            middle, errors = sides[0], np.stack([sides[0] - sides[1], sides[2] - sides[0]])
            colour, marker = PALETTE[number % (len(PALETTE) - 1)], _LINES[number % len(_LINES)]
            style = {"elinewidth": 0.9, "capsize": 2.0, "markersize": 4, "linewidth": 1.2}
            axes.errorbar(x, middle, errors, fmt=f"-{marker}", color=colour, label=figure_text(rest), **style)
        if not numeric:
            axes.set_xticks(range(len(values)), [figure_text(str(value)) for value in values])
        axes.set_title(figure_text(figure_label(each) + ("" if each in numbers else " (%)")))
        axes.set_xlabel(figure_text(parameter))
    legend(panels[-1])
    return style_and_save(figure, path)


def _curves(swept: Mapping[str, Any], parameter: str) -> dict[str, list[tuple[Any, str]]]:
    """{the other parameters as text: (value of the parameter, label of the point)}, in ascending order."""
    curves: dict[str, list[tuple[Any, str]]] = {}
    order = swept["grid"][parameter]
    numeric = all(isinstance(value, int | float) for value in order)
    for label, parameters in swept["points"].items():
        rest = ", ".join(f"{key}={value}" for key, value in parameters.items() if key != parameter)
        curves.setdefault(rest or str(swept["method"]), []).append((parameters[parameter], label))
    for points in curves.values():
        points.sort(key=lambda point: point[0] if numeric else order.index(point[0]))
    return curves


def _known(benchmark: Mapping[str, Any], label: str | None, figure: str) -> Mapping[str, Any]:
    found = estimate(benchmark, label, figure)
    assert found is not None
    return found


def _sides(found: Mapping[str, Any] | None, scale: float) -> tuple[float, float, float]:
    """Value, low and high: of a figure without an interval all the same, nan of one that is not known."""
    if found is None or found["value"] is None:
        return (math.nan,) * 3
    value = scale * found["value"]
    low, high = (value if found[side] is None else scale * found[side] for side in ("low", "high"))
    return value, low, high
