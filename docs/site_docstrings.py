"""Reads docstrings for the reference as they are written here; mkdocs.yml gives this extension to griffe.

Within "Args:", "Attributes:" and "Raises:" several entries may share a paragraph ("rows: of a block. layers:
...") and a paragraph may go on at the indentation of its entry. Google's style, which griffe reads, has a
paragraph per entry.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

griffe.stdlib_decorators["regaze.caching.cached_property"] = {"cached", "property"}

SECTION = re.compile(
    r"^(?P<kind>Args|Attributes|Raises):\n(?P<body>(?:(?: {4}.*)?\n)*(?: {4}.*)?)", re.MULTILINE
)
NAMES = r"\*{0,2}[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*"
ENTRY = re.compile(rf"^ {{4}}(?P<names>{NAMES}): ")
NEXT = re.compile(rf"(?<=[.;]) (?=(?P<names>{NAMES}): )")
ERROR = re.compile(r"[A-Z]\w*(?:Error|Warning|Exit|Interrupt|Exception)|StopIteration")


def one_entry_per_paragraph(docstring: str, known: set[str]) -> str:
    """The docstring in Google's style; `known` are the names of parameters or attributes."""

    def is_entry(kind: str, names: str) -> bool:
        each = names.lstrip("*").split(", ")
        return bool(ERROR.fullmatch(names)) if kind == "Raises" else known.issuperset(each)

    def section(match: re.Match[str]) -> str:
        kind, entries = match["kind"], list[str]()
        for line in filter(str.strip, match["body"].split("\n")):
            found = ENTRY.match(line)
            if entries and not (found and is_entry(kind, found["names"])):
                entries[-1] += ("\n        " if line.lstrip().startswith("- ") else " ") + line.strip()
            else:
                entries.append(line.strip())
        apart: list[str] = []
        for entry in entries:
            begin = 0
            for found in NEXT.finditer(entry):
                if is_entry(kind, found["names"]):
                    apart.append(entry[begin : found.start()])
                    begin = found.end()
            apart.append(entry[begin:])
        return f"{kind}:\n" + "".join(f"    {entry}\n" for entry in apart) + "\n"

    return SECTION.sub(section, docstring + "\n").rstrip()


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of what is documented."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring is None or obj.is_module:
            return
        names = {each.name.lstrip("*") for each in obj.parameters} if obj.is_function else {*obj.all_members}
        obj.docstring.value = one_entry_per_paragraph(obj.docstring.value, names)
