"""Whether a verdict on a method holds for all trainings of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regaze.audit.plan import AuditPlan


def across(plan: AuditPlan, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{method: {"verdicts": {model: verdict}, "groups": {group: {"models", "holds"}}, "holds"}}.

    "holds" says whether all models of a group have the same verdict; of the method: whether this is so in
    every group of several models. It is null where there is no such group, or a model is still missing.
    """
    groups: dict[str, list[str]] = {}
    for name, model in plan.models.items():
        if model.group is not None:
            groups.setdefault(model.group, []).append(name)
    out = {}
    for label in plan.methods:
        verdicts = {name: each["methods"][label]["verdict"] for name, each in models.items()}
        held = {
            group: {"models": names, "holds": _agree([verdicts.get(name) for name in names])}
            for group, names in groups.items()
            if len(names) > 1
        }
        found = [each["holds"] for each in held.values()]
        holds = None if not found or None in found else all(found)
        out[label] = {"verdicts": verdicts, "groups": held, "holds": holds}
    return out


def _agree(verdicts: list[str | None]) -> bool | None:
    return None if None in verdicts else len(set(verdicts)) == 1
