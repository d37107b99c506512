"""comparison.html: the methods of a run in one table that sorts and filters, in a single file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from regaze.eval.comparison.verdicts import LEVEL, leading_figure, p_value
from regaze.eval.report import tables
from regaze.visible import render_page

COMPARISON = "comparison.html"
NOTE = (
    "Significant: of the tested figure, Holm p below 5 % (of a control, p itself); of any other figure, a "
    "95 % interval of the difference without 0, which is corrected for nothing."
)


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number that it is sorted by."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Column:
    """A heading. `numeric`: its cells are numbers, of which those that are missing come last."""

    title: str
    numeric: bool = False


COLUMNS = (
    Column("method"),
    Column("benchmark"),
    Column("figure"),
    Column("difference", numeric=True),
    Column("Holm p", numeric=True),
    Column("value", numeric=True),
    Column("plain", numeric=True),
    Column("p", numeric=True),
    Column("changed", numeric=True),
    Column("confounds"),
    Column("beats controls"),
    Column("damage"),
)


@dataclass(frozen=True)
class Row:
    """A figure of a condition.

    Attributes:
        kind: "method" or "control". tested: of the figure whose difference is tested.
        significant: see `NOTE`.
        cells: one per column; of a condition that cannot run, the reason stands for the difference.
    """

    kind: str
    benchmark: str
    figure: str
    tested: bool
    significant: bool
    cells: tuple[Cell, ...]


def comparison_page(results: Mapping[str, Any]) -> str:
    """The page of the results of a run."""
    rows = list(comparison_rows(results))
    filled = [number for number in range(len(COLUMNS)) if any(row.cells[number].text for row in rows)]
    return render_page(
        "regaze.eval.report",
        "assets",
        "comparison.html",
        ["table.css"],
        ["table.js"],
        title=f"{results['model']['name']} on {', '.join(results['benchmarks'])}",
        columns=COLUMNS,
        filled=filled,
        rows=rows,
        benchmarks=list(dict.fromkeys(row.benchmark for row in rows)),
        figures=list(dict.fromkeys(row.figure for row in rows if row.figure)),
        notes=[NOTE, *tables.reading_notes(results["benchmarks"].values())],
    )


def comparison_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    """The leading scorer's figures of each method and control on each benchmark, the tested one first."""
    damaged = (results.get("damage") or {}).get("methods", {})
    for name, benchmark in results["benchmarks"].items():
        for kind, entries in (("method", benchmark["methods"]), ("control", benchmark.get("controls", {}))):
            for label, entry in entries.items():
                damage = _yes_no(damaged.get(label, {}).get("damaged")) if kind == "method" else ""
                yield from _rows_of(kind, label, name, benchmark, entry, damage)


def _rows_of(
    kind: str, label: str, name: str, benchmark: Mapping[str, Any], entry: Mapping[str, Any], damage: str
) -> Iterator[Row]:
    if entry.get("error"):
        reason = Cell(f"cannot run: {entry['error']}")
        empty = (Cell(""),) * (len(COLUMNS) - 4)
        yield Row(kind, name, "", True, False, (Cell(label), Cell(name), Cell(""), reason, *empty))
        return
    split, scorer = tables.leading_scorer(benchmark)
    compared, numbers = entry["figures"][split][scorer], benchmark["numbers"].get(scorer, ())
    tested = leading_figure(compared)
    figures = [figure for figure, _ in tables.iter_estimates(compared["plain"])]
    verdict = (entry.get("against_controls") or {}).get(split, {}).get(scorer, {})
    for figure in sorted(figures, key=lambda figure: figure != tested):
        change, is_tested = compared["difference"], figure == tested
        p, holm = (p_value(change), change.get("holm_p")) if is_tested else (None, None)
        cells = (
            Cell(label),
            Cell(name),
            Cell(tables.figure_label(figure)),
            _estimate(figure, change[figure], numbers, "+"),
            Cell(tables.format_p(holm), holm),
            _estimate(figure, compared["edited"][figure], numbers),
            _estimate(figure, compared["plain"][figure], numbers),
            Cell(tables.format_p(p), p),
            Cell(str(entry["answers_changed"]), entry["answers_changed"]),
            Cell(", ".join(entry["flags"])),
            Cell(_yes_no(verdict.get("beats"))),
            Cell(damage),
        )
        level = (p if holm is None else holm) if is_tested else _outside(change[figure])
        significant = level is not None and level < LEVEL
        yield Row(kind, name, tables.figure_label(figure), is_tested, significant, cells)


def _outside(difference: Mapping[str, Any]) -> float | None:
    """0 where the interval of a difference is there and does not hold 0, else None."""
    low, high = difference["low"], difference["high"]
    return 0.0 if low is not None and high is not None and (low > 0 or high < 0) else None


def _estimate(figure: str, value: Mapping[str, Any], numbers: Any, sign: str = "") -> Cell:
    number = value["value"]
    return Cell(tables.format_estimate(figure, value, numbers, sign), None if number != number else number)


def _yes_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"
