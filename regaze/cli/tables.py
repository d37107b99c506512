"""Results of a run as tables for people, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from regaze.cli import console

NOTES = """Shares in percent, with 95 % intervals (none where images do not vary).
Only right: questions that this alone gets right. Detectable: the smallest true
difference that would be found four times out of five."""
HARNESS_NOTE = "The harness scorer's yes-ratio is that of the labels, whatever the answers."
#: scorers shown here; reports and results.json have all
_SHOWN = 2


def show(results: Mapping[str, Any]) -> None:
    """One table per benchmark and split on standard output, then the seconds and how to read them."""
    from regaze.eval.report.tables import statistics

    out = console.stdout()
    label = next(iter(results["methods"]), None)
    for name, asked in results["benchmarks"].items():
        entry = asked["methods"][label] if label else asked["plain"]
        for split, scores in entry["figures"].items():
            title = f"{name.upper()} {split}, {results['model']['name']}"
            title += f": {scores['questions']} questions on {scores['images']} images"
            out.print(f"[bold]{escape(title)}[/bold]", soft_wrap=True)
            out.print(_table(scores, label, asked["numbers"]))
        out.print(textwrap.fill(statistics(asked), 80), markup=False, soft_wrap=True)
        for line in _costs(asked, label):
            out.print(line, markup=False, soft_wrap=True)
    out.print(NOTES, markup=False, soft_wrap=True)
    if "pope" in results["benchmarks"]:
        out.print(HARNESS_NOTE, markup=False, soft_wrap=True)


def _costs(asked: Mapping[str, Any], label: str | None) -> list[str]:
    """What was lost, what it took, and what may feign a gain."""
    lines = []
    entries = {"plain": asked["plain"], **({label: asked["methods"][label]} if label else {})}
    for name, entry in entries.items():
        if entry["failed"]:
            lines.append(f"{name}: {entry['failed']} questions failed, {entry['left_out']} are not scored")
    if label:
        edited = entries[label]
        lines.append(f"Answers that differ: {edited['answers_changed']}")
        if edited["flags"]:
            lines.append(f"Confounds: {', '.join(edited['flags'])}")
    seconds = ", ".join(f"{name} {entry['cost']['seconds']:.1f}" for name, entry in entries.items())
    return [*lines, f"Seconds of one pass, which is no benchmark: {seconds}"]


def _table(scores: Mapping[str, Any], label: str | None, scales: Mapping[str, list[str]]) -> Table:
    from regaze.eval.report.tables import estimate, estimates, number, scorers
    from regaze.eval.report.tables import label as called

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("plain", label, f"{label} - plain") if label else ("plain",):
        table.add_column(heading, justify="right", no_wrap=True)
    for scorer in scorers(scores)[:_SHOWN]:
        conditions = scores[scorer]
        plain, numbers = conditions["plain"], scales.get(scorer, [])
        table.add_row(f"[bold]{escape(scorer)}[/bold]")
        for figure, value in estimates(plain):
            cells = [estimate(figure, value, numbers)]
            if label:
                cells.append(estimate(figure, conditions["edited"][figure], numbers))
                cells.append(estimate(figure, conditions["difference"][figure], numbers, "+"))
            table.add_row(f"  {called(figure)}", *map(escape, cells))
        if label:
            first = next(figure for figure, _ in estimates(plain))
            least = number(first, conditions["difference"][first].get("detectable"), numbers)
            table.add_row(*_test(conditions["difference"]))
            table.add_row("  detectable", "", "", least)
        table.add_section()
    return table


def _test(difference: Mapping[str, Any]) -> list[str]:
    """The row of the test."""
    name = "McNemar" if "mcnemar_p" in difference else "permutation"
    p = difference.get(f"{name.lower()}_p")
    told = "undefined" if p is None else f"{name} p = {p:.3g}"
    if "only_plain_correct" not in difference:
        return ["  test", "", "", told]
    alone = [str(difference[f"only_{condition}_correct"]) for condition in ("plain", "edited")]
    return ["  only right", *alone, told]


def comparison(results: Mapping[str, Any]) -> str:
    """A comparison of methods as Markdown: one table per benchmark, the plain model first."""
    versions = results["versions"]
    parts = [
        f"Model {results['model']['name']}, seed {results['seed']}, batches of {results['batch_size']}; "
        f"regaze {versions['regaze']}, torch {versions['torch']}, transformers {versions['transformers']}."
    ]
    parts += [_compared(name, asked) for name, asked in results["benchmarks"].items()]
    return "\n\n".join([*parts, *_notes()]) + "\n"


def scored(asked: Mapping[str, Any]) -> str:
    """Answers of a file as Markdown: the leading figures, then all of them."""
    from regaze.eval.report.report import markdown_table
    from regaze.eval.report.tables import every

    parts = [_compared(asked["benchmark"]["name"], asked), markdown_table(every(asked)), *_notes()]
    return "\n\n".join(parts) + "\n"


def _compared(name: str, asked: Mapping[str, Any]) -> str:
    from regaze.eval.report.report import markdown_table
    from regaze.eval.report.tables import leading, main, questions, statistics

    split, scorer = leading(asked)
    heading = f"## {name}, {split}, {scorer} scorer"
    return "\n\n".join([heading, questions(asked), statistics(asked), markdown_table(main(asked))])


def _notes() -> tuple[str, ...]:
    from regaze.eval.report.tables import NOTES

    return NOTES
