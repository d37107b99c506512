"""Tables of docs/guide/evaluation.md: some columns of what the commands there print."""

from __future__ import annotations

from figures.markdown import table
from figures.sources import read

__all__ = ["guide"]
_COMPARED = ("", "accuracy", "yes-ratio", "p", "Holm p")
#: Name of each table: the folder that its command writes, and the columns that the page shows.
SHOWN = {
    "compare": ("out/compare", (*_COMPARED, "detectable", "changed", "confounds")),
    "damage": ("out/compare", ("", "accuracy", "method - plain", "p", "detectable", "damage")),
    "controls": ("out/controls", (*_COMPARED, "changed", "confounds", "beats its controls")),
    "best-controls": (
        "out/controls",
        ("", "best control", "accuracy, method - control", "p", "Holm p", "beats it"),
    ),
    "repope": ("out/repope", ("", "accuracy", "POPE accuracy", "accuracy shift", "p")),
}


def guide(name: str) -> str:
    """The first table of a command that has the columns of SHOWN.

    Raises:
        StopIteration: the command printed none.
    """
    folder, columns = SHOWN[name]
    found = next(each for each in read("benchmarks/results/guide.json") if each["command"].endswith(folder))
    heading, *rows = next(each for each in found["tables"] if set(columns) <= set(each[0]))
    return table(columns, [[row[heading.index(column)] for column in columns] for row in rows])
