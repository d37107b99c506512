"""The audit of the demo and the bed, and the rules of its verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures.markdown import table
from figures.sources import ROOT, read
from regaze.audit.page import MARKS, difference, format_p, parameters
from regaze.audit.verdicts import RULES
from regaze.visible import markdown

__all__ = ["audit_figures", "audit_picture", "audit_rules", "audit_run", "audit_verdicts"]

AUDIT, PICTURE = "docs/assets/audit.json", "docs/assets/audit.png"


def audit_rules() -> str:
    """The rules in the order in which they are tried."""
    return table(["verdict", "when"], [[_marked(rule.verdict), rule.when] for rule in RULES])


def audit_run() -> str:
    """Where and how long the audit ran, or that it has not."""
    found = _audit()
    if found is None:
        return "The audit of the demo and the bed has not been run yet."
    machine = ", ".join(f"{name} {value}" for name, value in found["facts"]["machine"].items())
    versions = found["facts"]["versions"]
    tuned = "; ".join(f"{name}: {_halves(model)}" for name, model in found["models"].items())
    state = "" if found["complete"] else " It is not complete: models of the plan are missing."
    hours = found["facts"]["seconds"] / 3600
    return (
        f"Run on {found['facts']['created'][:10]} in {hours:.1f} hours of generation ({machine}; "
        f"torch {versions['torch']}, transformers {versions['transformers']}). {tuned}.{state}"
    )


def audit_verdicts() -> str:
    """A row per method, a column per model."""
    found = _audit()
    if found is None:
        return "Not run yet."
    models = list(found["models"])
    rows = [
        [f"`{label}`", *(_marked(each["verdicts"].get(name, "")) for name in models), _holds(each["holds"])]
        for label, each in found["across"].items()
    ]
    return table(["method", *models, "same verdict in all trainings"], rows)


def audit_picture() -> str:
    """The figure, where `python docs/audit_figure.py` has drawn it."""
    if not (ROOT / PICTURE).is_file():
        return "Not drawn yet."
    return (
        "![Differences to the plain model and to the best control](assets/audit.png)\n\n"
        "[Every figure in tables that filter and sort](assets/audit.html)"
    )


def audit_figures() -> str:
    """Per model the figures of the benchmarks that decide."""
    found = _audit()
    if found is None:
        return "Not run yet."
    return "\n\n".join(
        f"**{name}**\n\n{_figures(model['methods'])}" for name, model in found["models"].items()
    )


def _figures(methods: Mapping[str, Any]) -> str:
    head = ["method", "chosen", "figure", "to plain", "to the best control", "Holm p", "changed"]
    rows = []
    for label, method in methods.items():
        for name, entry in method["benchmarks"].items():
            if entry["decides"]:
                best = entry["best_control"]
                against = "no control"
                if best:
                    against = f"{difference(entry['controls'][best], entry).text} ({markdown(best)})"
                rows.append(
                    [
                        f"`{label}`",
                        parameters(method["chosen"]),
                        f"{name} {entry['metric']}",
                        difference(entry, entry).text,
                        against,
                        format_p(entry["p_holm"]),
                        f"{entry['changed']} of {entry['questions']}",
                    ]
                )
    return table(head, rows)


def _halves(model: Mapping[str, Any]) -> str:
    tuned, halves = model["tuned_on"], model["halves"]
    return (
        f"tuned on {tuned['questions']} questions of {tuned['benchmark']}, {len(halves['tuned'])} scenes in "
        f"this half and {len(halves['tested'])} in the other"
    )


def _audit() -> Any:
    return read(AUDIT) if (ROOT / AUDIT).is_file() else None


def _marked(verdict: str) -> str:
    return f"{MARKS[verdict]} {verdict}" if verdict else ""


def _holds(holds: bool | None) -> str:
    return "" if holds is None else "yes" if holds else "no"
