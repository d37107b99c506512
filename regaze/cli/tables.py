"""Results of a run as tables for the terminal, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from regaze.cli import console
from regaze.eval import benchmarks
from regaze.eval.report import tables as report
from regaze.eval.report.markdown import markdown_table
from regaze.eval.report.sweeps import NOTE, neutral_note, sweep_table
from regaze.eval.report.tuning import chosen_table, trials_table, tuning_notes
from regaze.eval.run.results import dumps

SHARES_NOTE = "Shares in percent, with 95 % intervals (none where images do not vary)."
METHOD_NOTE = """Only right: questions that only this condition gets right. Detectable: the
smallest true difference that would be found four times out of five."""
HARNESS_NOTE = "The harness scorer's yes-ratio is that of the labels, whatever the answers."
#: Number of scorers shown; reports and results.json have all.
_SCORERS_SHOWN = 2


def show(results: Mapping[str, Any]) -> None:
    """Print one table per benchmark and split, then the seconds and notes on how to read them."""
    out = console.stdout()
    label = next(iter(results["methods"]), None)
    for name, benchmark in results["benchmarks"].items():
        entry = benchmark["methods"][label] if label else benchmark["plain"]
        for split, scores in entry["figures"].items():
            title = f"{_title(name)} {split}, {results['model']['name']}"
            title += f": {report.count_text(scores)}"
            out.print(Text(title, "bold"), soft_wrap=True)
            out.print(_table(scores, label, benchmark["numbers"]))
        for note in (report.statistics_note(benchmark), *report.benchmark_notes(benchmark)):
            out.print(textwrap.fill(note, 80), soft_wrap=True)
        for line in _caveats(benchmark, label):
            out.print(line, soft_wrap=True)
    out.print(f"{SHARES_NOTE}\n{METHOD_NOTE}" if label else SHARES_NOTE, soft_wrap=True)
    if "pope" in results["benchmarks"]:
        out.print(HARNESS_NOTE, soft_wrap=True)


def show_line(results: Mapping[str, Any]) -> None:
    """Print the first figure of each benchmark in a line: the plain model, the method, changed answers."""
    for name, benchmark in results["benchmarks"].items():
        (split, scorer), (label, entry) = (
            report.leading_scorer(benchmark),
            next(iter(benchmark["methods"].items())),
        )
        scores, numbers = entry["figures"][split][scorer], benchmark["numbers"].get(scorer, [])
        figure, plain = next(report.iter_estimates(scores["plain"]))
        shown = [
            report.format_estimate(figure, value, numbers, sign)
            for value, sign in (
                (plain, ""),
                (scores["edited"][figure], ""),
                (scores["difference"][figure], "+"),
            )
        ]
        line = f"{report.figure_label(figure)} plain {shown[0]}, {label} {shown[1]} ({shown[2]})"
        changed = f"{entry['answers_changed']} of {entry['figures'][split]['questions']} answers differ"
        console.stdout().print(
            Text.assemble((f"{_title(name)} {split}: ", "bold"), f"{line}; {changed}"), soft_wrap=True
        )


def show_leading(results: Mapping[str, Any]) -> None:
    """Print the leading scorer's figures of each benchmark: the plain model, its method, and confounds."""
    out, label = console.stdout(), next(iter(results["methods"]))
    for name, benchmark in results["benchmarks"].items():
        (split, scorer), entry = report.leading_scorer(benchmark), benchmark["methods"][label]
        out.print(Text(f"{_title(name)} {split}: {report.question_note(benchmark)}", "bold"), soft_wrap=True)
        out.print(_table({scorer: entry["figures"][split][scorer]}, label, benchmark["numbers"]))
        for line in _caveats(benchmark, label):
            out.print(line, soft_wrap=True)


def _title(name: str) -> str:
    """A benchmark as papers write it."""
    return str(benchmarks.load_class(name).about.title) if name in benchmarks.NAMES else name.upper()


def _caveats(benchmark: Mapping[str, Any], label: str | None) -> list[str]:
    """Lines on failed questions, changed answers, confounds and seconds."""
    lines = []
    entries = {"plain": benchmark["plain"], **({label: benchmark["methods"][label]} if label else {})}
    for name, entry in entries.items():
        if entry["failed"]:
            lines.append(f"{name}: {entry['failed']} questions failed, {entry['left_out']} are not scored")
        if entry["cut_in_thinking"]:
            cut = entry["cut_in_thinking"]
            lines.append(f"{name}: {cut} answers were cut in their thinking; --thinking-tokens allows more")
    if label:
        edited = entries[label]
        lines.append(f"Answers that differ: {edited['answers_changed']}")
        if edited["flags"]:
            lines.append(f"Confounds: {', '.join(edited['flags'])}")
    seconds = ", ".join(f"{name} {entry['cost']['seconds']:.1f}" for name, entry in entries.items())
    return [*lines, f"Seconds of one pass, which is no benchmark: {seconds}"]


def _table(scores: Mapping[str, Any], label: str | None, scales: Mapping[str, list[str]]) -> Table:
    """The figures of one split. `scales`: by scorer the figures that are not shares."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("plain", label, f"{label} - plain") if label else ("plain",):
        table.add_column(heading, justify="right", no_wrap=True)
    for scorer in report.scorer_names(scores)[:_SCORERS_SHOWN]:
        conditions = scores[scorer]
        plain, numbers = conditions["plain"], scales.get(scorer, [])
        table.add_row(Text(scorer, "bold"))
        for figure, value in report.iter_estimates(plain):
            cells = [report.format_estimate(figure, value, numbers)]
            if label:
                cells.append(report.format_estimate(figure, conditions["edited"][figure], numbers))
                cells.append(report.format_estimate(figure, conditions["difference"][figure], numbers, "+"))
            table.add_row(f"  {report.figure_label(figure)}", *cells)
        if label:
            first = next(figure for figure, _ in report.iter_estimates(plain))
            detectable = conditions["difference"][first].get("detectable")
            table.add_row(*_test_row(conditions["difference"]))
            table.add_row("  detectable", "", "", report.format_number(first, detectable, numbers))
        table.add_section()
    return table


def _test_row(difference: Mapping[str, Any]) -> list[str]:
    """The p value, and how many questions only one condition gets right."""
    name = "McNemar" if "mcnemar_p" in difference else "permutation"
    p = difference.get(f"{name.lower()}_p")
    p_cell = "undefined" if p is None else f"{name} p = {p:.3g}"
    if "only_plain_correct" not in difference:
        return ["  test", "", "", p_cell]
    only_right = [str(difference[f"only_{condition}_correct"]) for condition in ("plain", "edited")]
    return ["  only right", *only_right, p_cell]


def as_json(results: Mapping[str, Any]) -> str:
    """Results as JSON text; undefined figures are null."""
    return dumps(results)


def comparison(results: Mapping[str, Any]) -> str:
    """A comparison of methods as Markdown: one table per benchmark, the plain model first."""
    versions = results["versions"]
    parts = [
        f"Model {results['model']['name']}, seed {results['seed']}, batches of {results['batch_size']}; "
        f"regaze {versions['regaze']}, torch {versions['torch']}, transformers {versions['transformers']}."
    ]
    if results["tuning"]:
        chosen, trials = (markdown_table(table(results)) for table in (chosen_table, trials_table))
        parts += ["## Parameters, chosen apart from testing", *tuning_notes(results), chosen, trials]
    damage = results.get("damage")
    added = damage["benchmark"] if damage and damage["added"] else None
    parts += [
        _leading_figures(name, benchmark)
        for name, benchmark in results["benchmarks"].items()
        if name != added
    ]
    if damage:
        parts += ["## Damage check", report.damage_note(damage)]
        parts += [markdown_table(table)] if (table := report.damage_table(damage)) else []
    return "\n\n".join([*parts, *report.reading_notes(results["benchmarks"].values())]) + "\n"


def swept(results: Mapping[str, Any]) -> str:
    """A sweep as Markdown: one table per benchmark, the plain model first."""
    parts = []
    for name, benchmark in results["benchmarks"].items():
        split, scorer = report.leading_scorer(benchmark)
        parts += [f"## {name}, {split}, {scorer} scorer", report.question_note(benchmark)]
        parts += [report.statistics_note(benchmark), markdown_table(sweep_table(results, name))]
    return "\n\n".join([*parts, *filter(None, [neutral_note(results)]), NOTE]) + "\n"


def scored(benchmark: Mapping[str, Any]) -> str:
    """The scores of a file of answers as Markdown: the leading figures, then all of them."""
    leading = _leading_figures(benchmark["benchmark"]["name"], benchmark)
    joins = ", ".join(f"{label} by {by}" for label, by in benchmark["joined_by"].items())
    joined = f"Answers were joined to the questions: {joins}."
    table = markdown_table(report.full_table(benchmark))
    return "\n\n".join([leading, joined, table, *report.reading_notes([benchmark])]) + "\n"


def _leading_figures(name: str, benchmark: Mapping[str, Any]) -> str:
    split, scorer = report.leading_scorer(benchmark)
    parts = [
        f"## {name}, {split}, {scorer} scorer",
        report.question_note(benchmark),
        report.statistics_note(benchmark),
        *report.benchmark_notes(benchmark),
        markdown_table(report.main_table(benchmark)),
    ]
    if table := report.controls_table(benchmark):
        parts += [f"### {name}: methods against their controls", report.CONTROLS_NOTE, markdown_table(table)]
    return "\n\n".join(parts)
