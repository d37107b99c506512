"""Whether a verdict on a method holds for all trainings of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regaze.audit.plan import AuditPlan
from regaze.audit.verdicts import BETTER, NOT_RUN, better_on


def across(plan: AuditPlan, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{method: {"verdicts": {model: verdict}, "groups": {group: {"models", "holds"}}, "holds"}}.

    "holds" says whether all models of a group have the same verdict, and where it is "better" also on a
    benchmark in common; of the method: whether this is so in every group of several models. It is null where
    there is no such group, a model is still missing, or the method was not run on one.
    """
    groups: dict[str, list[str]] = {}
    for name, model in plan.models.items():
        if model.group is not None:
            groups.setdefault(model.group, []).append(name)
    out = {}
    for label in plan.methods:
        verdicts = {name: each["methods"][label]["verdict"] for name, each in models.items()}
        found_on = {name: models[name]["methods"][label] for name in verdicts}
        held = {
            group: {"models": names, "holds": _agree([found_on.get(name) for name in names])}
            for group, names in groups.items()
            if len(names) > 1
        }
        found = [each["holds"] for each in held.values()]
        holds = None if not found or None in found else all(found)
        out[label] = {"verdicts": verdicts, "groups": held, "holds": holds}
    return out


def _agree(methods: list[Mapping[str, Any] | None]) -> bool | None:
    """Whether a method has the same verdict on all of these models."""
    verdicts = {NOT_RUN if method is None else method["verdict"] for method in methods}
    if NOT_RUN in verdicts:
        return None
    if verdicts == {BETTER}:
        return bool(set.intersection(*(set(better_on(method)) for method in methods if method)))
    return len(verdicts) == 1
