"""The content of a report, independent of its format: sections with paragraphs, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.eval.report import plots, sweeps, tables, tuning

#: the text of a link, and the file in the folder that it leads to
Link = tuple[str, str]


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, links, a table (headings in its first row) and the file of a plot."""

    title: str
    level: int = 2
    paragraphs: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    plot: Path | None = None
    links: Sequence[Link] = ()
    #: the table is for looking up: a page opens it on a click
    folded: bool = False


def build_sections(
    results: Mapping[str, Any], plot_folder: Path, links: Sequence[Link] = ()
) -> list[Section]:
    """The sections of a report in order; writes the plots into `plot_folder`.

    Args:
        links: further pages, named at the top.
    """
    sections = [_overview(results, links), *_tuning(results)]
    for name, benchmark in results["benchmarks"].items():
        split, scorer = tables.leading_scorer(benchmark)
        notes = [
            tables.question_note(benchmark),
            tables.statistics_note(benchmark),
            *tables.benchmark_notes(benchmark),
        ]
        title = tables.leading_title(name, benchmark)
        sections.append(Section(title, paragraphs=notes, table=tables.main_table(benchmark)))
        if results.get("sweep"):
            sections.append(_sweep(results, name, plot_folder))
        if table := tables.controls_table(benchmark):
            notes = [tables.CONTROLS_NOTE]
            sections.append(Section("Methods against their controls", 3, paragraphs=notes, table=table))
        plot = plot_folder / f"{name}-difference.svg"
        if benchmark["methods"] and plots.draw_differences(benchmark, split, scorer, plot):
            sections.append(Section("Differences to the plain model", 3, plot=plot))
        table = tables.confounds_table(benchmark)
        sections.append(
            Section(
                "Cost and confounds",
                3,
                paragraphs=[f"{tables.THRESHOLDS_NOTE} {tables.SECONDS_NOTE}"],
                table=table,
            )
        )
        sections.append(Section("Every split and scorer", 3, table=tables.full_table(benchmark)))
    if damage := results.get("damage"):
        note, table = tables.damage_note(damage), tables.damage_table(damage)
        sections.append(Section("Damage check", paragraphs=[note], table=table))
    sections.append(
        Section("How to read this", paragraphs=tables.reading_notes(results["benchmarks"].values()))
    )
    return sections


def _tuning(results: Mapping[str, Any]) -> list[Section]:
    """How parameters were chosen, if any were."""
    if not results.get("tuning"):
        return []
    notes = tuning.tuning_notes(results)
    chosen, trials = tuning.chosen_table(results), tuning.trials_table(results)
    return [
        Section("Parameters, chosen apart from testing", paragraphs=notes, table=chosen),
        Section("Trials, on the questions that were tuned on", 3, table=trials),
    ]


def _sweep(results: Mapping[str, Any], name: str, folder: Path) -> Section:
    """The curves, as SVG for the page and as PNG beside it."""
    swept = results["sweep"]
    plot = folder / f"{name}-sweep.svg"
    for path in (plot, plot.with_suffix(".png")):
        sweeps.draw_sweep(results, name, path)
    notes = [note for note in (sweeps.NOTE, sweeps.neutral_note(results)) if note]
    title = f"{', '.join(swept['grid'])} of {swept['method']}"
    return Section(title, 3, paragraphs=notes, table=sweeps.sweep_table(results, name), plot=plot)


def _overview(results: Mapping[str, Any], links: Sequence[Link]) -> Section:
    model, versions = results["model"], results["versions"]
    rows = [
        ["", ""],
        ["model", f"{model['name']} ({model.get('dtype', '?')}, {', '.join(model.get('devices', []))})"],
        ["fingerprint", model["fingerprint"]],
        ["seed, batch size", f"{results['seed']}, {results['batch_size']}"],
        ["processes", str(results["processes"])],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        ["begun", results["created"]],
    ]
    for label, method in {**results["methods"], **results.get("controls", {})}.items():
        parameters = ", ".join(f"{k}={v}" for k, v in method.items() if k != "method" and v is not None)
        rows.append([label, f"{method['method']}({parameters})"])
    names = ", ".join(results["benchmarks"])
    return Section(f"{model['name']} on {names}", 1, table=rows, links=links, folded=True)
