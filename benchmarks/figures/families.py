"""Which methods run on which families, as `tests/support/method_families.py` has found."""

from __future__ import annotations

import re
from collections import defaultdict

from figures.markdown import table
from figures.sources import read
from regaze.interventions.registry import BUILT_IN

__all__ = ["method_families", "method_families_reasons"]
FILE = "benchmarks/results/method-families.json"
WORKS = "works"
#: Classes of transformers in messages, and what they are.
_CLASSES = {
    r"\w+ForConditionalGeneration": "the model",
    r"\w+Vision(Model|Transformer)\w*": "the vision tower",
    r"\w+ImageProcessorPil": "the image processor",
    r"a \w+DecoderLayer of \w+": "the model's layers",
    r"\w+DecoderLayer": "a layer",
}


def method_families() -> str:
    """A row per method, a column per family: whether it works there."""
    found = read(FILE)
    families = found["families"]
    rows = [
        [f"`{name}`", *("yes" if row[family] == WORKS else "–" for family in families)]
        for name, row in found["methods"].items()
    ]
    return table(["method", *families], rows)


def method_families_reasons() -> str:
    """The reasons of all dashes, each with the methods and families."""
    where: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, row in read(FILE)["methods"].items():
        for family, outcome in row.items():
            if outcome != WORKS:
                where[_general(outcome, name)][name].append(family)
    rows = []
    for reason, methods in sorted(where.items()):
        together: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, families in methods.items():
            together[tuple(families)].append(f"`{name}`")
        who = "; ".join(f"{', '.join(names)}: {', '.join(families)}" for families, names in together.items())
        rows.append([reason, who])
    return table(["reason", "methods and families"], rows)


def _it(match: re.Match[str]) -> str:
    return "its" if match[2] else "it"


def _general(outcome: str, name: str) -> str:
    """A message without its kind, and without the names of this method and model."""
    message = outcome.split(": ", 1)[-1].removeprefix(f"'{name}': ")
    cls = BUILT_IN.get(name, ":").rpartition(":")[2]
    message = re.sub(rf"^({cls}|_Feedback|ILVADLooking|LastLayerAttention)('s)?\b", _it, message)
    for pattern, what in _CLASSES.items():
        message = re.sub(rf"\b{pattern}\b", what, message)
    message = re.sub(r"shape \[[\d, ]+\]", "another shape", message)
    message = re.sub(r"\b\d+ (images|tiles|patches)\b", r"n \1", message)
    return message.replace("|", "\\|")
