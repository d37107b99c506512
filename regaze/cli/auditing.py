"""An audit from the command line: its plan, its run, and its verdicts as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from regaze import audit as auditing
from regaze.audit.plan import AuditedModel, AuditPlan
from regaze.cli import console, interrupt, models
from regaze.errors import BadParameterError
from regaze.eval.run.results import dumps
from regaze.toolkit import Gaze
from regaze.visible import visible

DEFAULT, QUICK = "demo", "quick"


def read_plan(
    plan: str | None, quick: bool, model: str | None, arguments: Sequence[str] | None, data: str | None
) -> AuditPlan:
    """The plan that the options describe.

    Args:
        model: takes the place of the plan's models. arguments: texts NAME=VALUE of `regaze.load`, for it.
        data: where its questions are.

    Raises:
        BadParameterError: options that exclude each other. InputError: as `regaze.audit.read_plan`.
    """
    if quick and plan is not None:
        raise BadParameterError(
            f"--quick is a plan of its own, and --plan {plan} another; give one of the two"
        )
    if model is None and (arguments or data is not None):
        raise BadParameterError("--model-arg and --data are of the model that --model names; add --model")
    chosen = auditing.read_plan(QUICK if quick else plan or DEFAULT)
    if model is None:
        return chosen
    audited = AuditedModel(load=model, arguments=models.model_arguments(arguments), data=data)
    return chosen.for_model(Path(model).name, audited)


def run(
    plan: AuditPlan, output: Path | None, device: str | None, dtype: str | None
) -> tuple[dict[str, Any], Path]:
    """Run an audit; returns the content of audit.json and the folder."""
    folder = output or Path("out") / f"audit-{plan.name}"
    interrupt.current.advice = visible(f"; what is done is in {folder}, and the same command continues", "")

    def load(model: AuditedModel) -> Gaze:
        texts = [f"{name}={_text(value)}" for name, value in model.arguments.items()]
        return models.load_model(model.load, device, dtype, arguments=texts)

    with console.progress() as progress:
        results = auditing.audit(plan, folder, load=load, progress=progress, announce=_say)
    return results, folder


def show(results: Mapping[str, Any]) -> None:
    """Print the verdicts of each model, and which of them hold for all trainings."""
    out = console.stdout()
    for name, model in results["models"].items():
        tuned = model["tuned_on"]
        out.print(Text(f"{name}: tuned on {tuned['questions']} questions of {tuned['benchmark']}", "bold"))
        table = Table("method", "chosen", "verdict", "why", box=box.HORIZONTALS, padding=(0, 1))
        for label, method in model["methods"].items():
            chosen = ", ".join(f"{key}={value}" for key, value in (method["chosen"] or {}).items())
            table.add_row(label, chosen, method["verdict"], method["reason"])
        out.print(table)
    held = {label: each["holds"] for label, each in results["across"].items() if each["holds"] is not None}
    if held:
        broken = [label for label, holds in held.items() if not holds]
        out.print(f"Verdicts that differ between trainings of one model: {', '.join(broken) or 'none'}")
    out.print("Differences in points, with 95 % intervals. Better: than plain and than each control.")


def as_json(results: Mapping[str, Any]) -> str:
    """audit.json."""
    return dumps(results)


def _say(seconds: Mapping[str, float]) -> None:
    """Say how long it takes."""
    each = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items())
    total = f"; all {_duration(sum(seconds.values()))}" if len(seconds) > 1 else ""
    console.info(f"regaze: answers still to be generated take about: {each}{total}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
