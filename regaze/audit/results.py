"""audit.json: what an audit found, checked against a schema before it is written.

`AuditResults.model_json_schema()` is its JSON schema. An undefined figure is null. Figures are as the
benchmarks have them: shares between 0 and 1, others as they are (`Tested.share`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from regaze.errors import InputError
from regaze.eval.run.results import dumps
from regaze.reading import StrPath, read_text
from regaze.writing import replace_file

PLAN, AUDIT = "plan.json", "audit.json"
Verdict = Literal[
    "better", "better than plain", "explained by a control", "no difference shown", "damages", "not run"
]
Figure = float | None
#: low and high end of a 95 % interval
Interval = tuple[Figure, Figure]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Compared(_Checked):
    """A method compared with one control: a difference is the method's figure minus the control's."""

    score: Figure
    difference: Figure
    difference_interval: Interval
    p: Figure


class Part(_Checked):
    """A method compared with the plain model on a split of the questions, or by another scorer."""

    metric: str
    score: Figure
    plain: Figure
    difference: Figure
    difference_interval: Interval
    p: Figure


class Tested(_Checked):
    """A method on a benchmark, on the scenes that nothing was tuned on.

    Attributes:
        metric: the figure that is tested, by `scorer`: the share of right answers, else the first figure.
        share: whether that figure is one between 0 and 1, which is shown in points.
        decides: whether the verdict may rest on it.
        questions, clusters: that were scored, and the scenes they fall into (or what else counts together).
        prompts: distinct ones that were asked; fewer than questions where some are in several splits.
        failed: questions without an answer. left_out: those, what is scored together with them, and what the
            plain model did not answer. changed: answers that differ from the plain model's.
        difference: to the plain model. detectable: the smallest that would be found four times out of five,
            after Holm's correction at its first step.
        controls: those that ran. own_controls: the names of the method's own among them. controls_failed:
            {name: reason} of the others. best_control: the one that the method is least shown to beat; null
            without any.
        p_plain, p_control: of the differences to the plain model and to that control. p_plain_holm,
            p_control_holm, p_holm: corrected, see `figures.add_corrected`.
        splits, scorers: the same figure by split and by scorer. disagreement: of the scorers of yes/no
            answers, see `scorer_disagreement`.
        confounds: {name: [plain, method]}: "length" in words, "repetition", "yes_ratio", "unreadable",
            "recall" of texts, "right_yes" and "right_no" (shares of right answers where the label is so).
        flags: those beyond their thresholds, in words.
    """

    metric: str
    scorer: str
    share: bool = True
    lower_is_better: bool
    decides: bool
    questions: int
    clusters: int
    prompts: int | None = None
    failed: int
    left_out: int = 0
    score: Figure
    interval: Interval
    plain: Figure
    plain_interval: Interval
    difference: Figure
    difference_interval: Interval
    detectable: Figure
    changed: int
    controls: dict[str, Compared]
    own_controls: list[str] = []
    controls_failed: dict[str, str] = {}
    best_control: str | None
    p_plain: Figure
    p_plain_holm: Figure
    p_control: Figure
    p_control_holm: Figure
    p_holm: Figure
    splits: dict[str, Part]
    scorers: dict[str, Part]
    disagreement: dict[str, Any] | None
    confounds: dict[str, tuple[Figure, Figure] | None]
    flags: list[str]


class Trial(_Checked):
    """A point of a method's grid on the half that is tuned on; `score` is null where it could not run."""

    values: dict[str, Any]
    score: Figure
    half: Literal["tuned"]
    error: str | None = None


class Method(_Checked):
    """A method on a model.

    Attributes:
        method: its registered name and its parameters as tested. chosen: the values chosen from its grid;
            null where no trial could run.
        benchmarks: those on which it could be asked.
        damage: the damage check; null where none was made. cost: of this run.
        verdict, reason: see `verdicts`. error: why it could not run.
    """

    method: dict[str, Any]
    chosen: dict[str, Any] | None
    trials: list[Trial]
    benchmarks: dict[str, Tested]
    damage: dict[str, Any] | None
    cost: dict[str, Figure]
    verdict: Verdict
    reason: str
    error: str | None = None


class Model(_Checked):
    """A model.

    Attributes:
        about: name, fingerprint and the rest of what results.json says of it. group: see the plan.
        halves, scenes: {"tuned", "tested"}: the scenes of each half, and those that were asked about.
        note: how they were divided.
        tuned_on: {"benchmark", "metric", "questions", "plain"} that the trials' scores are of, and as
            "yes_offset" the trials of the threshold that is a control of every method; null without one.
        folders: {"tuned", "tested"}: of the runs, beside audit.json. seconds: of generation, all in all.
    """

    about: dict[str, Any]
    group: str | None
    halves: dict[str, list[str]]
    scenes: dict[str, list[str]] = {}
    note: str
    tuned_on: dict[str, Any]
    folders: dict[str, str]
    seconds: float
    methods: dict[str, Method]


class Across(_Checked):
    """A method across models, see `across.across`."""

    verdicts: dict[str, Verdict]
    groups: dict[str, dict[str, Any]]
    holds: bool | None


class AuditResults(_Checked):
    """audit.json.

    Attributes:
        complete: whether all models of the plan are there.
        facts: "machine", "versions", "models" ({name: fingerprint}), "seconds", "created".
        rules: the rules of the verdicts in words, in their order: [{"verdict", "when"}].
    """

    format: Literal[1]
    name: str
    complete: bool
    facts: dict[str, Any]
    rules: list[dict[str, str]]
    models: dict[str, Model]
    across: dict[str, Across]


def write(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Validate and replace audit.json; returns its content.

    Raises:
        InputError: the folder cannot be written.
    """
    checked = AuditResults.model_validate_json(dumps(content)).model_dump(mode="json")
    replace_file(folder / AUDIT, dumps(checked) + "\n")
    return checked


def earlier_models(folder: Path) -> dict[str, Any]:
    """What the audit.json of a folder has about models; nothing where there is none of this format."""
    try:
        models: dict[str, Any] = load_audit(folder)["models"]
    except InputError:
        return {}
    return models


def load_audit(source: StrPath) -> dict[str, Any]:
    """The content of audit.json, by its path or that of its folder.

    Raises:
        InputError: it is not there, cannot be read, or has another format.
    """
    path = Path(source) / AUDIT if Path(source).is_dir() else Path(source)
    try:
        return AuditResults.model_validate_json(read_text(path, "audit ")).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no audit of format 1: {where}: {first['msg']}") from error
