"""Results of a run as tables for the terminal, at most 80 columns wide."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from regaze.cli import console
from regaze.eval import catalogue
from regaze.eval.report import tables as report
from regaze.eval.report.markdown import to_markdown
from regaze.eval.report.sections import Section
from regaze.eval.report.sweeps import NOTE, neutral_note, sweep_table
from regaze.eval.report.tuning import chosen_table, trials_table, tuning_notes
from regaze.eval.run.results import dumps

SHARES_NOTE = "Shares in percent, with 95 % intervals (none where images do not vary)."
METHOD_NOTE = """Only right: questions that only this condition gets right. Detectable: the
smallest true difference that would be found four times out of five."""
HARNESS_NOTE = "The harness scorer's yes-ratio is that of the labels, whatever the answers."
#: Number of scorers shown; reports and results.json have all.
_SCORERS_SHOWN = 2
#: On a terminal, tables of more columns have a column per condition, as many at a time as fit.
_MANY_COLUMNS, _LABELS_WIDTH, _CELL_WIDTH = 6, 17, 20


def show(results: Mapping[str, Any]) -> None:
    """Print one table per benchmark and split, then the seconds and notes on how to read them.

    Where there are any, tables of the tuning, of the controls and of the damage check come with them.
    """
    out = console.stdout()
    label = next(iter(results["methods"]), None)
    _show_beside(_tuning(results)[:1])
    for name, benchmark in _shown_benchmarks(results):
        entry = benchmark["methods"][label] if label else benchmark["plain"]
        for split, scores in entry["figures"].items():
            title = f"{_title(name, split)}, {results['model']['name']}: {report.count_text(scores)}"
            out.print(Text(title, "bold"), soft_wrap=True)
            out.print(_table(scores, label, benchmark["numbers"]))
        for note in (report.statistics_note(benchmark), *report.benchmark_notes(benchmark)):
            out.print(textwrap.fill(note, 80), soft_wrap=True)
        for line in _caveats(benchmark, label):
            out.print(line, soft_wrap=True)
        _show_beside(_controls(name, benchmark))
    _show_beside(_damage(results))
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
            Text.assemble((f"{_title(name, split)}: ", "bold"), f"{line}; {changed}"), soft_wrap=True
        )


def show_leading(results: Mapping[str, Any]) -> None:
    """Print the leading scorer's figures of each benchmark: the plain model, its method, and confounds."""
    out, label = console.stdout(), next(iter(results["methods"]))
    for name, benchmark in results["benchmarks"].items():
        (split, scorer), entry = report.leading_scorer(benchmark), benchmark["methods"][label]
        out.print(Text(f"{_title(name, split)}: {report.question_note(benchmark)}", "bold"), soft_wrap=True)
        out.print(_table({scorer: entry["figures"][split][scorer]}, label, benchmark["numbers"]))
        for line in _caveats(benchmark, label):
            out.print(line, soft_wrap=True)


def _title(name: str, split: str) -> str:
    """A benchmark as papers write it, and the split, but where that is called like the benchmark."""
    known = catalogue.registered_name(name) in catalogue.NAMES
    title = str(catalogue.benchmark_class(name).about.title) if known else name
    return title if split in (name, title) else f"{title} {split}"


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
            if least := report.format_detectable(first, detectable, numbers):
                table.add_row("  detectable", "", "", least)
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


def show_page(
    results: Mapping[str, Any], page: Callable[[Mapping[str, Any]], list[Section]], as_object: bool
) -> None:
    """Print results as the page that `page` makes of them, or as a JSON object."""
    if as_object:
        console.echo(as_json(results))
    else:
        show_sections(page(results))


def show_sections(sections: Sequence[Section]) -> None:
    """Print a page: as Markdown, or on a terminal laid out in its width."""
    out = console.stdout()
    if not out.is_terminal:
        console.echo(to_markdown(sections, Path()))
        return
    for section in sections:
        out.print(Text(section.title, "bold"))
        for paragraph in section.paragraphs:
            out.print(paragraph)
        if not section.table:
            out.print()
        for table in _in_width(section.table, out.width):
            out.print(table)
            out.print()


def _in_width(cells: Sequence[Sequence[str]], width: int) -> Iterator[Table]:
    """A table in `width` columns of the terminal; long cells go over several lines."""
    if not cells or len(cells[0]) <= _MANY_COLUMNS:
        yield from map(_grid, [cells] if cells else [])
        return
    turned = report.turned(cells)
    step = max(1, (width - _LABELS_WIDTH) // _CELL_WIDTH)
    for first in range(1, len(cells), step):
        yield _grid([[row[0], *map(_broken, row[first : first + step])] for row in turned])


def _broken(cell: str) -> str:
    """A long figure with its difference, divided before the interval rather than inside it."""
    return re.sub(r"(\([^ ()]+) \[", r"\1\n[", cell) if len(cell) > _CELL_WIDTH else cell


def _grid(cells: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in cells[0]:
        table.add_column(Text(heading))
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    return table


def comparison(results: Mapping[str, Any]) -> list[Section]:
    """A comparison of methods: a table per benchmark, the plain model first."""
    model, versions = results["model"]["name"], results["versions"]
    run = (
        f"Model {model}, seed {results['seed']}, batches of {results['batch_size']}; "
        f"regaze {versions['regaze']}, torch {versions['torch']}, transformers {versions['transformers']}."
    )
    sections = [Section(f"{model} on {', '.join(results['benchmarks'])}", 1, [run])]
    sections += _tuning(results)
    for name, benchmark in _shown_benchmarks(results):
        sections += _leading_figures(name, benchmark)
    sections += _damage(results)
    return [*sections, _reading(report.reading_notes(results["benchmarks"].values()))]


def _shown_benchmarks(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All benchmarks but one that was asked for the damage check alone."""
    damage = results.get("damage")
    added = damage["benchmark"] if damage and damage["added"] else None
    yield from ((name, benchmark) for name, benchmark in results["benchmarks"].items() if name != added)


def _tuning(results: Mapping[str, Any]) -> list[Section]:
    """How parameters were chosen, and the trials; nothing where none were."""
    if not results["tuning"]:
        return []
    chosen, trials = (table(results) for table in (chosen_table, trials_table))
    return [
        Section("Parameters, chosen apart from testing", paragraphs=tuning_notes(results), table=chosen),
        Section("Trials, on the questions that were tuned on", 3, table=trials),
    ]


def _damage(results: Mapping[str, Any]) -> list[Section]:
    if not (damage := results.get("damage")):
        return []
    notes, table = [report.damage_note(damage)], report.damage_table(damage)
    return [Section("Damage check", paragraphs=notes, table=table)]


def _controls(name: str, benchmark: Mapping[str, Any]) -> list[Section]:
    if not (table := report.controls_table(benchmark)):
        return []
    return [Section(f"{name}: methods against their controls", 3, [report.CONTROLS_NOTE], table)]


def _show_beside(sections: Sequence[Section]) -> None:
    """Print sections between the tables of `show`, which are at most 80 columns wide."""
    out = console.stdout()
    for section in sections:
        out.print(Text(section.title, "bold"), soft_wrap=True)
        for paragraph in section.paragraphs:
            out.print(textwrap.fill(paragraph, 80), soft_wrap=True)
        if section.table:
            out.print(_grid(section.table))


def swept(results: Mapping[str, Any]) -> list[Section]:
    """A sweep: a table per benchmark, the plain model first."""
    sections = []
    for name, benchmark in results["benchmarks"].items():
        notes = [report.question_note(benchmark), report.statistics_note(benchmark)]
        title, table = report.leading_title(name, benchmark), sweep_table(results, name)
        sections.append(Section(title, paragraphs=list(filter(None, notes)), table=table))
    notes = [note for note in (neutral_note(results), NOTE) if note]
    return [*sections, _reading(notes)]


def scored(benchmark: Mapping[str, Any]) -> list[Section]:
    """The scores of a file of answers: the leading figures, then all of them.

    Answers by themselves are compared with none, and so not called plain.
    """
    alone = not benchmark["methods"]
    joins = ", ".join(by if alone else f"{label} by {by}" for label, by in benchmark["joined_by"].items())
    notes = [f"Answers were joined to the questions{' by' if alone else ':'} {joins}."]
    everything = Section("Every split and scorer", 3, notes, report.full_table(benchmark))
    sections = [*_leading_figures(benchmark["benchmark"]["name"], benchmark), everything]
    if alone:
        sections = [replace(section, table=_without_plain(section.table)) for section in sections]
    return [*sections, _reading(report.reading_notes([benchmark]))]


def _without_plain(table: Sequence[Sequence[str]]) -> list[list[str]]:
    return [["answers" if cell == "plain" else cell for cell in row] for row in table]


def _leading_figures(name: str, benchmark: Mapping[str, Any]) -> list[Section]:
    notes = [
        report.question_note(benchmark),
        report.statistics_note(benchmark),
        *report.benchmark_notes(benchmark),
    ]
    title, table = report.leading_title(name, benchmark), report.main_table(benchmark)
    return [Section(title, paragraphs=list(filter(None, notes)), table=table), *_controls(name, benchmark)]


def _reading(notes: Sequence[str]) -> Section:
    return Section("How to read this", paragraphs=notes)
