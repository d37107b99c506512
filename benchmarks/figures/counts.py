"""Numbers of what there is: families, methods, benchmarks."""

from __future__ import annotations

import re

from figures.sources import ROOT
from regaze.eval import benchmarks
from regaze.interventions import registry

__all__ = ["count"]


def count(what: str) -> str:
    """How many there are: of "vision" or "text" families, "methods", or "benchmarks".

    Families are the rows of docs/reference/families.md, which the tests of all families write and check.
    """
    if what == "methods":
        return str(len(registry.BUILT_IN))
    if what == "benchmarks":
        names = set(benchmarks.NAMES)
        variants = {name for name in names if any(name.startswith(f"{other}-") for other in names)}
        return str(len(names - variants))
    heading = {"vision": "## Vision-language", "text": "## Text"}[what]
    page = (ROOT / "docs/reference/families.md").read_text(encoding="utf-8")
    section = page[page.index(f"\n{heading}\n") :].split("\n## ")[1]
    return str(len(re.findall(r"^\| (?!family|---)", section, re.MULTILINE)))
