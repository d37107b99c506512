"""Sections and tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regaze.eval.report.sections import Section


def to_markdown(sections: Sequence[Section], folder: Path) -> str:
    """Sections as Markdown, with the paths of plots relative to `folder`."""
    parts = []
    for section in sections:
        parts.append(f"{'#' * section.level} {section.title}")
        parts += section.paragraphs
        parts += [f"[{text}]({path})" for text, path in section.links]
        if section.table:
            parts.append(markdown_table(section.table))
        if section.plot is not None:
            parts.append(f"![{section.title}]({section.plot.relative_to(folder).as_posix()})")
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; the first row holds the headings."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
