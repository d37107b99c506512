"""Reports of a run: report.md, and report.html with the plots inside, readable without a network.

Both are written from the same sections. The plots are also SVG files in `plots/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from regaze.eval.report import tables
from regaze.eval.report.comparison import COMPARISON, comparison_page
from regaze.eval.report.markdown import to_markdown
from regaze.eval.report.sections import Link, Section, build_sections
from regaze.reading import StrPath
from regaze.visible import html_environment
from regaze.writing import make_folder, replace_file

#: a table of as many columns is too wide for a screen of 700 pixels
_MANY_COLUMNS = 8

MARKDOWN, HTML, PLOTS = "report.md", "report.html", "plots"


def write_report(results: Mapping[str, Any], folder: StrPath, links: Sequence[Link] = ()) -> list[Path]:
    """Write report.md, report.html and the plots of a complete run into `folder`; returns both pages.

    Where methods were compared, they have a table that sorts and filters, comparison.html.

    Args:
        links: further pages in the folder, named at the top.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    make_folder(folder / PLOTS)
    if any(benchmark["methods"] for benchmark in results["benchmarks"].values()):
        replace_file(folder / COMPARISON, comparison_page(results))
        links = [("All methods in one table that sorts and filters", COMPARISON), *links]
    sections = build_sections(results, folder / PLOTS, links)
    replace_file(folder / MARKDOWN, to_markdown(sections, folder))
    replace_file(folder / HTML, to_html(sections))
    return [folder / MARKDOWN, folder / HTML]


def to_html(sections: Sequence[Section]) -> str:
    """Sections as one page that needs no other file."""
    environment = html_environment("regaze.eval.report", trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = _inline_svg
    environment.filters["upright"] = _upright
    return environment.get_template("report.html").render(sections=sections)


def _upright(table: tables.Table) -> tables.Table:
    """The table as it is, or with a column per condition where that fits a narrow screen better."""
    return tables.turned(table) if len(table) < _MANY_COLUMNS <= len(table[0]) else table


def _inline_svg(path: Path) -> Markup:
    """An SVG file without its XML header, which cannot stand inside a page."""
    text = path.read_text(encoding="utf-8")
    return Markup(text[text.index("<svg") :])
