"""Sections and tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from regaze.eval.report.sections import Section
from regaze.visible import markdown


def to_markdown(sections: Sequence[Section], folder: Path) -> str:
    """Sections as Markdown, with the paths of plots relative to `folder`."""
    parts = []
    for section in sections:
        parts.append(f"{'#' * section.level} {markdown(section.title)}")
        parts += map(markdown, section.paragraphs)
        parts += [f"[{_bracketed(text)}]({quote(path)})" for text, path in section.links]
        if section.table:
            parts.append(markdown_table(section.table))
        if section.plot is not None:
            place = section.plot.relative_to(folder).as_posix()
            parts.append(f"![{_bracketed(section.title)}]({quote(place)})")
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; the first row holds the headings. Cells are shown as they are."""
    cells = [list(map(markdown, row)) for row in rows]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _bracketed(text: str) -> str:
    """Text that stands between square brackets."""
    return markdown(text.translate({ord("["): "(", ord("]"): ")"}))
