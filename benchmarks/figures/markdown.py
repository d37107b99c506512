"""Tables and numbers as pages show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """A Markdown table; its last `right` columns are set to the right."""
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |")


def number(value: float, digits: int = 2) -> str:
    """A number; what rounds to zero has no sign."""
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def estimate(value: Mapping[str, Any], digits: int = 2, scale: float = 1.0) -> str:
    """A figure with its interval, "0.54 [0.50, 0.59]", or without; nothing where there is none."""
    if value.get("value") is None:
        return ""
    if value.get("low") is None:
        return number(scale * value["value"], digits)
    middle, low, high = (number(scale * value[name], digits) for name in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"


def machine(facts: Mapping[str, Any]) -> str:
    """Where something was measured."""
    accelerator = facts["gpu"] or "no GPU"
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {accelerator}; "
        f"Python {facts['python']}, torch {facts['torch']}, transformers {facts['transformers']}, "
        f"threads: {facts['threads']}, load average when it began: {facts['load_average'][0]}."
    )
