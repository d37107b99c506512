"""Whether a page shows what was printed."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: What differs from run to run: seconds, folders of the machine, what else is in the memory of the process.
_VARYING = (
    (re.compile(r"(?:, |^)memory [+-]\d+%"), ""),
    (re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s|seconds|min|minutes)\b"), "TIME"),
    (re.compile(r"(?<!\S)(?:/[\w.+-]+){2,}/?"), "PATH"),
    (re.compile(r"([─━=—-])\1{2,}"), "RULE"),
)
_ELLIPSIS = re.compile(r"\.\.\.|…")


def missing(shown: str, printed: str) -> Iterator[str]:
    """The lines of `shown` that were not printed, or not in this order.

    A line of "..." stands for any lines, and "..." in a line for any text. Widths of columns do not count.
    """
    rest = [_plain(line) for line in printed.splitlines()]
    for line in shown.splitlines():
        wanted = _plain(line)
        if not _ELLIPSIS.sub("", wanted):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in _ELLIPSIS.split(wanted)))
        at = next((at for at, found in enumerate(rest) if pattern.fullmatch(found)), None)
        if at is None:
            yield line
        else:
            rest = rest[at + 1 :]


def missing_rows(table: str, printed: str) -> Iterator[str]:
    """The rows of a table whose cells are not those of a printed row; columns may be left out."""
    rows = [_cells(line) for line in printed.splitlines() if line.startswith("|")]
    for line in table.splitlines():
        cells = _cells(line)
        if not any(row[:1] == cells[:1] and _subsequence(cells, row) for row in rows):
            yield line


def _plain(line: str) -> str:
    for pattern, word in _VARYING:
        line = pattern.sub(word, line)
    return " ".join(line.split())


def _cells(line: str) -> list[str]:
    return [_plain(cell.strip()) for cell in line.strip().strip("|").split("|")]


def _subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(any(each == other for other in rest) for each in part)
