"""Results of a run as tables for people, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from regaze.cli import console

FIGURES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "yes_ratio": "yes-ratio",
}
NOTES = """Percent with 95 % intervals: accuracy by Wilson and Newcombe, the rest by a
bootstrap over images (without width where no answer changes).
Only right: questions that this alone gets right.
The harness scorer's yes-ratio is that of the labels, whatever the answers."""


def show(results: Mapping[str, Any]) -> None:
    """One table per split on standard output, then the seconds and how to read them."""
    out = console.stdout()
    method = results["method"]["method"] if results["method"] else None
    for split, scores in results["figures"].items():
        title = f"{results['benchmark']['name'].upper()} {split}, {results['model']}"
        title += f": {scores['questions']} questions on {scores['images']} images"
        out.print(f"[bold]{escape(title)}[/bold]", soft_wrap=True)
        out.print(_table(scores, method))
    seconds = results["seconds"]
    text = f"Seconds of one pass, which is no benchmark: plain {seconds['plain']:.1f}"
    if method:
        text += f", {method} {seconds['edited']:.1f}"
        text = f"Answers that differ: {results['answers_changed']}\n{text}"
    out.print("\n" + text, markup=False)
    out.print(NOTES, markup=False, soft_wrap=True)


def _table(scores: Mapping[str, Any], method: str | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("plain", method, f"{method} - plain") if method else ("plain",):
        table.add_column(heading, justify="right", no_wrap=True)
    for scorer in ("official", "harness"):
        conditions = scores[scorer]
        table.add_row(f"[bold]{scorer}[/bold]")
        for figure, label in FIGURES.items():
            cells = [_cell(conditions["plain"][figure])]
            if method:
                cells += [_cell(conditions["edited"][figure]), _cell(conditions["difference"][figure], "+")]
            table.add_row(f"  {label}", *cells)
        if method:
            paired = conditions["difference"]
            alone = (str(paired["only_plain_correct"]), str(paired["only_edited_correct"]))
            table.add_row("  only right", *alone, f"McNemar p = {paired['mcnemar_p']:.3g}")
        table.add_section()
    return table


def _cell(estimate: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    if value != value:  # nan: the figure is undefined
        return "undefined"
    if low != low:
        return f"{value:{sign}.1f}"
    return f"{value:{sign}.1f} \\[{low:{sign}.1f}, {high:{sign}.1f}]"
