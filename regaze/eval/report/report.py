"""Reports of a run for people: report.md, and report.html with the plots inside, readable without a network.

Both are written from the same sections; the plots lie as SVG files in `plots/`.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regaze.eval.files import output_errors, replace_file
from regaze.eval.report import tables

MARKDOWN, HTML, PLOTS = "report.md", "report.html", "plots"


#: What a link says, and the file in the folder that it leads to.
Link = tuple[str, str]


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it: paragraphs, a table (its first row the headings), a plot's file."""

    title: str
    level: int = 2
    paragraphs: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    plot: Path | None = None
    links: Sequence[Link] = ()


def write(results: Mapping[str, Any], folder: Path, links: Sequence[Link] = ()) -> list[Path]:
    """Write report.md, report.html and the plots of a complete run into `folder`; returns both pages.

    Args:
        links: further pages in the folder, named at the top.

    Raises:
        InputError: the folder cannot be written.
    """
    with output_errors(folder):
        (folder / PLOTS).mkdir(exist_ok=True)
    first, *rest = sections(results, folder)
    told = [dataclasses.replace(first, links=links), *rest]
    replace_file(folder / MARKDOWN, as_markdown(told, folder))
    replace_file(folder / HTML, as_html(told))
    return [folder / MARKDOWN, folder / HTML]


def sections(results: Mapping[str, Any], folder: Path) -> list[Section]:
    """What the reports tell, in order; draws the plots into `folder`/plots."""
    from regaze.eval.report import plots

    told = [_about(results)]
    for name, asked in results["benchmarks"].items():
        split, scorer = tables.leading(asked)
        title = f"{name}, {split}, {scorer} scorer"
        about = [tables.questions(asked), tables.statistics(asked)]
        told.append(Section(title, paragraphs=about, table=tables.main(asked)))
        path = folder / PLOTS / f"{name}-difference.svg"
        if asked["methods"] and plots.differences(asked, split, scorer, path):
            told.append(Section("Differences to the plain model", 3, plot=path))
        told.append(
            Section(
                "Cost and confounds", 3, paragraphs=[tables.THRESHOLDS_NOTE], table=tables.confounds(asked)
            )
        )
        told.append(Section("Every split and scorer", 3, table=tables.every(asked)))
    told.append(Section("How to read this", paragraphs=tables.NOTES))
    return told


def _about(results: Mapping[str, Any]) -> Section:
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
    for label, method in results["methods"].items():
        parameters = ", ".join(f"{k}={v}" for k, v in method.items() if k != "method" and v is not None)
        rows.append([label, f"{method['method']}({parameters})"])
    names = ", ".join(results["benchmarks"])
    return Section(f"{model['name']} on {names}", 1, table=rows)


def as_markdown(told: Sequence[Section], folder: Path) -> str:
    """The sections as Markdown, plots by their path relative to `folder`."""
    parts = []
    for section in told:
        parts.append(f"{'#' * section.level} {section.title}")
        parts += section.paragraphs
        parts += [f"[{text}]({path})" for text, path in section.links]
        if section.table:
            parts.append(markdown_table(section.table))
        if section.plot is not None:
            parts.append(f"![{section.title}]({section.plot.relative_to(folder).as_posix()})")
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the first row its headings."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def as_html(told: Sequence[Section]) -> str:
    """The sections as one page that needs no other file."""
    parts = []
    for section in told:
        parts.append(f"<h{section.level}>{html.escape(section.title)}</h{section.level}>")
        parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.paragraphs]
        parts += [f'<p><a href="{quote(path)}">{html.escape(text)}</a></p>' for text, path in section.links]
        if section.table:
            parts.append(_html_table(section.table))
        if section.plot is not None:
            parts.append(f"<figure>{_inline(section.plot)}</figure>")
    return _PAGE.format(title=html.escape(told[0].title), body="\n".join(parts))


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        kind = "td" if number else "th"
        lines.append("".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _inline(path: Path) -> str:
    """An SVG file without its XML header, which has no place inside a page."""
    text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 0.2rem 0.8rem 0.2rem 0; border-bottom: 1px solid #ddd; }}
figure {{ margin: 1rem 0; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
