"""`RunResults`: what results.json holds, and its figures as a table with a row for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from regaze.display import Summary, Tabular, shortened
from regaze.eval.comparison.verdicts import p_value

_SIDES = ("value", "low", "high")
_COLUMNS = (
    *("benchmark", "split", "scorer", "figure", "condition", "kind"),
    *_SIDES,
    *(f"difference{side}" for side in ("", "_low", "_high")),
    *("p", "holm_p", "detectable", "questions", "error"),
)


class RunResults(Tabular, dict[str, Any]):
    """The content of results.json (`results.Results` has its fields); `to_dataframe` has all figures."""

    def __repr__(self) -> str:
        names = {"benchmarks": self.get("benchmarks", ()), "methods": self.get("methods", ())}
        parts = [f"{what} {', '.join(entries) or 'none'}" for what, entries in names.items()]
        state = "complete" if self.get("complete") else "not complete"
        return f"RunResults({shortened('; '.join(parts), 200)}; {state})"

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per benchmark, split, scorer, figure and condition.

        "value", "low" and "high" are those of the condition, "difference..." those of its change against the
        plain model; a condition that could not run has one row, with its "error".
        """
        rows = [row for name, each in self["benchmarks"].items() for row in _rows(name, each)]
        return {name: [row.get(name) for row in rows] for name in _COLUMNS}

    def _summary(self) -> Summary:
        table = self.table()
        return Summary(repr(self), {name: cells for name, cells in table.items() if any(map(_known, cells))})


def _rows(name: str, benchmark: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    conditions = [("plain", "plain", benchmark["plain"] or {})]
    conditions += [(label, "method", each) for label, each in benchmark["methods"].items()]
    conditions += [(label, "control", each) for label, each in benchmark.get("controls", {}).items()]
    for label, kind, entry in conditions:
        about = {"benchmark": name, "condition": label, "kind": kind}
        if entry.get("error"):
            yield about | {"error": entry["error"]}
        for split, scores in (entry.get("figures") or {}).items():
            for scorer, compared in scores.items():
                if isinstance(compared, Mapping):
                    where = {"split": split, "scorer": scorer, "questions": scores.get("questions")}
                    yield from (about | where | row for row in _figures(compared))


def _figures(compared: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The figures of one scorer under one condition."""
    changes = compared.get("difference") or {}
    for figure, estimate in compared.get("edited", compared.get("plain", {})).items():
        if not isinstance(estimate, Mapping) or not estimate.keys() >= set(_SIDES):
            continue
        row = {"figure": figure, **{side: estimate[side] for side in _SIDES}}
        change = changes.get(figure)
        if isinstance(change, Mapping):
            row |= {
                "difference": change["value"],
                "difference_low": change["low"],
                "difference_high": change["high"],
            }
            row |= {
                "p": p_value(change),
                "holm_p": change.get("holm_p"),
                "detectable": change.get("detectable"),
            }
        yield row


def _known(cell: Any) -> bool:
    return cell is not None
