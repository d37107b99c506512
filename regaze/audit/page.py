"""audit.html: what audit.json says, in tables that sort and filter, in a single file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regaze.audit.verdicts import VERDICTS
from regaze.errors import RegazeError
from regaze.eval.report.comparison import Cell, Column
from regaze.eval.report.tables import figure_label, format_p
from regaze.interventions import registry
from regaze.visible import render_page

PAGE = "audit.html"
#: A shape for each verdict, so that none is told by its colour alone; those of the figure look alike.
MARKS = dict(zip(VERDICTS, "▲■◆●▼✕", strict=True))

VERDICT_COLUMNS = (
    Column("method"),
    Column("model"),
    Column("verdict"),
    Column("why"),
    Column("chosen"),
    Column("damage check"),
    Column("time per token", numeric=True),
    Column("other trainings"),
)
FIGURE_COLUMNS = (
    Column("method"),
    Column("model"),
    Column("benchmark"),
    Column("figure"),
    Column("to plain", numeric=True),
    Column("to best control", numeric=True),
    Column("Holm p", numeric=True),
    Column("value", numeric=True),
    Column("plain", numeric=True),
    Column("could show", numeric=True),
    Column("best control"),
    Column("other controls"),
    Column("changed", numeric=True),
    Column("confounds"),
)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        data: what filters look at, see table.js.
        cells: one per column; the first names the row.
        below: what stands below the name where columns are left out.
    """

    data: Mapping[str, str]
    cells: tuple[Cell, ...]
    below: str


def audit_page(content: Mapping[str, Any]) -> str:
    """The page of the content of audit.json (`regaze.audit.results.load_audit`)."""
    models: Mapping[str, Any] = content["models"]
    verdicts, figures = list(verdict_rows(content)), list(figure_rows(content))
    return render_page(
        "regaze",
        ".",
        "audit/assets/audit.html",
        ["eval/report/assets/table.css", "audit/assets/audit.css"],
        ["eval/report/assets/table.js"],
        title=f"Audit: {content['name']}",
        complete=content["complete"],
        marks=MARKS,
        counts=verdict_counts(models),
        tables=[
            ("Verdicts", VERDICT_COLUMNS, verdicts),
            ("Figures", FIGURE_COLUMNS, figures),
        ],
        filters={
            "model": list(models),
            "verdict": [
                verdict for verdict in VERDICTS if any(r.data["verdict"] == verdict for r in verdicts)
            ],
            "edits": list(dict.fromkeys(part for row in verdicts for part in row.data["edits"].split("|"))),
            "benchmark": list(dict.fromkeys(row.data["benchmark"] for row in figures)),
        },
        rules=content["rules"],
        facts=_facts(content),
    )


def verdict_counts(models: Mapping[str, Any]) -> dict[str, Counter[str]]:
    """{model: how many of its methods have each verdict}."""
    return {
        name: Counter(each["verdict"] for each in model["methods"].values()) for name, model in models.items()
    }


def verdict_rows(content: Mapping[str, Any]) -> Iterator[Row]:
    """A row per model and method."""
    for model, label, method in _methods(content):
        ratio = method["cost"].get("ratio")
        cells = (
            Cell(label),
            Cell(model),
            Cell(method["verdict"]),
            Cell(method["reason"]),
            Cell(parameters(method["chosen"])),
            Cell(_damage(method["damage"])),
            Cell("" if ratio is None else f"{ratio:.2f} x", ratio),
            Cell(_holds(content["across"].get(label))),
        )
        yield Row(_data(model, method), cells, model)


def figure_rows(content: Mapping[str, Any]) -> Iterator[Row]:
    """A row per model, method and benchmark, those that decide first."""
    for model, label, method in _methods(content):
        tested = method["benchmarks"]
        for name in sorted(tested, key=lambda name: not tested[name]["decides"]):
            entry = tested[name]
            data = {**_data(model, method), "benchmark": name, "decides": "yes" if entry["decides"] else "no"}
            cells = (Cell(label), Cell(model), Cell(name), *_figure_cells(entry))
            yield Row(data, cells, f"{model}, {name}, {figure_label(entry['metric'])}")


def _figure_cells(entry: Mapping[str, Any]) -> Iterator[Cell]:
    best = entry["best_control"]
    control = entry["controls"].get(best)
    yield Cell(figure_label(entry["metric"]) + (" (less is better)" if entry["lower_is_better"] else ""))
    yield difference(entry, entry)
    yield Cell("") if control is None else difference(control, entry)
    yield Cell(format_p(entry["p_holm"]), entry["p_holm"])
    yield number(entry["score"], entry)
    yield number(entry["plain"], entry)
    yield number(entry["detectable"], entry)
    yield Cell(best or "")
    others = [
        f"{name} {difference(each, entry).text}" for name, each in entry["controls"].items() if name != best
    ]
    yield Cell("; ".join(others))
    yield Cell(f"{entry['changed']} of {entry['questions']}", entry["changed"])
    yield Cell(", ".join(entry["flags"]))


def scale(entry: Mapping[str, Any]) -> float:
    """By what the figures of a benchmark are shown: shares in percent, others as they are."""
    return 100.0 if entry.get("share", True) else 1.0


def number(value: float | None, entry: Mapping[str, Any], sign: str = "") -> Cell:
    """A figure of a benchmark with one decimal, of small numbers with two."""
    if value is None:
        return Cell("")
    shown = scale(entry) * value
    digits = 1 if scale(entry) > 1 or abs(entry["plain"] or 0.0) >= 10 else 2
    return Cell(f"{round(shown, digits) + 0.0:{sign}.{digits}f}", value)


def difference(compared: Mapping[str, Any], entry: Mapping[str, Any]) -> Cell:
    """A difference with its interval."""
    value = number(compared["difference"], entry, "+")
    ends = [number(end, entry, "+").text for end in compared["difference_interval"]]
    return Cell(f"{value.text} [{', '.join(ends)}]" if value.text and all(ends) else value.text, value.number)


def edits(method: Mapping[str, Any]) -> Sequence[str]:
    """What a method changes, by the facts of its class; nothing for one that is not installed."""
    try:
        facts = registry.method_class(method["method"]).facts
    except RegazeError:
        return ()
    return () if facts is None else facts.edits


def parameters(chosen: Mapping[str, Any] | None) -> str:
    """Values of parameters as the command line takes them."""
    return "" if chosen is None else ", ".join(f"{name}={value}" for name, value in chosen.items())


def _methods(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for model, each in content["models"].items():
        for label, method in each["methods"].items():
            yield model, label, method


def _data(model: str, method: Mapping[str, Any]) -> dict[str, str]:
    return {"model": model, "verdict": method["verdict"], "edits": "|".join(edits(method["method"]))}


def _damage(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not checked"
    parts = ["could not run" if found["error"] else f"{found['benchmark']} {difference(found, found).text}"]
    if found["damaged"]:
        parts[0] += ": damaged"
    text = found.get("text")
    if text and text.get("error"):
        parts.append(f"no perplexity: {text['error']}")
    elif text:
        damaged = ": damaged" if text["damaged"] else ""
        parts.append(f"perplexity {text['plain']:.1f} to {text['perplexity']:.1f}{damaged}")
    return "; ".join(parts)


def _holds(across: Mapping[str, Any] | None) -> str:
    if across is None or across["holds"] is None:
        return ""
    return "the same verdict" if across["holds"] else "other verdicts"


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where, when and with what the audit ran."""
    facts = content["facts"]
    rows = [("run", facts.get("created", "")), ("CPU hours", f"{facts['seconds'] / 3600:.1f}")]
    for name in ("machine", "versions"):
        rows += [(key, str(value)) for key, value in facts.get(name, {}).items()]
    rows += [(f"fingerprint of {name}", str(value)) for name, value in facts.get("models", {}).items()]
    return [(key, value) for key, value in rows if value]
