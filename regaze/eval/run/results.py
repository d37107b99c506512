"""The output files of a run besides its journals: results.json and answers.jsonl.

results.json is validated as `Results` before it is written (`Results.model_json_schema()` is its JSON
schema). An undefined figure is null. answers.jsonl has a line per condition and question, in the order of the
benchmarks, whatever the order of generation.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import PIL
import tokenizers
import torch
import transformers
from pydantic import BaseModel, ConfigDict, ValidationError

import regaze
from regaze.errors import InputError
from regaze.eval.files import output_errors
from regaze.eval.run.run_results import RunResults
from regaze.kernels import BACKENDS
from regaze.reading import StrPath, read_text
from regaze.writing import replace_file, require_regular, sync_folder

SCHEMA: Literal[2] = 2
ANSWERS, RESULTS = "answers.jsonl", "results.json"
#: the answers of a tuned run to the questions that are tuned on, in the form of answers.jsonl
TUNING_ANSWERS = "tuning.jsonl"
#: files that are renamed when a run of another configuration uses the folder
OUTPUTS = (RESULTS, ANSWERS, TUNING_ANSWERS, "report.md", "report.html", "comparison.html", "run.yaml")


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ConditionResults(_Checked):
    """A benchmark under one condition: the plain model or a method.

    Attributes:
        error: the reason why the method could not run; everything else is null then.
        asked: number of distinct requests. failed: questions without an answer.
        left_out: questions that are not scored, because one in their cluster failed under this condition or
            under the plain model.
        cost: `Cost`, with forwards_per_token.
        sharing: null where prefixes were shared, else the reason why not.
        text: `confounds.measure` of the answers. length: their mean number of words: {value, low, high}.
        cut_in_thinking: number of answers that end within the model's thinking, which are unreadable.
        answers_changed: answers that differ from those of the plain model (null for itself).
        figures: {split: {"questions", "images", scorer: {"plain", "edited", "difference": {figure: {value,
            low, high}, ...}, "statistics"}}}; the plain condition has no "edited" and no "difference".
            "statistics" names the intervals and the test, and the number of items and clusters. A difference
            also has, per figure, "detectable" (`estimators.detectable`), the p-value of its test as
            "mcnemar_p" or "permutation_p" and, corrected for the number of methods, as "holm_p", and where
            clusters hold several items "design_effect". A split whose scorers read yes/no answers has
            "disagreement" (`scorer_disagreement`).
        flags: confounds that exceed their thresholds.
        against_controls: of a method, {split: {scorer: its tested figure minus that of the best of its
            controls, the plain model among these}}, see `verdicts.against_controls`; null without controls.
    """

    error: str | None = None
    asked: int = 0
    failed: int = 0
    left_out: int = 0
    cost: dict[str, float | int | None] | None = None
    sharing: str | None = None
    text: dict[str, float | None] | None = None
    length: dict[str, float | None] | None = None
    cut_in_thinking: int = 0
    answers_changed: int | None = None
    figures: dict[str, dict[str, Any]] | None = None
    flags: list[str] = []
    against_controls: dict[str, dict[str, Any]] | None = None


class BenchmarkResults(_Checked):
    """A benchmark under all conditions.

    Attributes:
        generation: arguments of `generate`, and where there are any "thinking_tokens" (`EvalConfig`).
        numbers: {scorer: its figures that are not shares between 0 and 1}.
        controls: results by label.
        controls_of: {label of a method: labels of its controls}.
    """

    benchmark: dict[str, Any]
    generation: dict[str, Any]
    numbers: dict[str, list[str]]
    plain: ConditionResults | None
    methods: dict[str, ConditionResults]
    controls: dict[str, ConditionResults] = {}
    controls_of: dict[str, list[str]] = {}


class TrialResults(_Checked):
    """A condition on the questions that are tuned on: the plain model or a trial.

    Attributes:
        label: the parameters as text. parameters: those of the grid.
        error: why it cannot run; all else is null then.
        figures: {figure: {value, low, high}} of the scorer that decides.
        difference: to the plain model, of the figure that decides, as in `ConditionResults`.
        text, answers_changed: as in `ConditionResults`.
    """

    label: str | None = None
    parameters: dict[str, Any] = {}
    error: str | None = None
    figures: dict[str, dict[str, float | None]] | None = None
    difference: dict[str, Any] | None = None
    text: dict[str, float | None] | None = None
    cut_in_thinking: int = 0
    answers_changed: int | None = None


class TunedMethod(_Checked):
    """The trials of a method, and the parameters that were chosen (null where no trial could be).

    Attributes:
        grid: {parameter: its values}. combinations: number of their combinations, all of which are `trials`
            unless fewer were drawn.
    """

    grid: dict[str, list[Any]]
    combinations: int
    trials: list[TrialResults]
    chosen: dict[str, Any] | None


class TuningResults(_Checked):
    """How parameters were chosen, on questions about images that no other figure of the results is about.

    Attributes:
        benchmark: the questions that were tuned on. split, seed: as they were given.
        criterion: split, scorer and figure that decide, "lower_is_better", and what decides of equal trials.
        questions, images: numbers of those that decide. left_out: questions that do not, because one in their
            cluster failed under some condition.
        not_used: number of questions that are neither tuned on nor tested. note: how they were divided.
        methods: those with a grid, by label; the others have one trial, their parameters as given.
    """

    benchmark: dict[str, Any]
    split: str
    seed: int
    criterion: dict[str, Any]
    questions: int
    images: int
    left_out: int
    not_used: int
    note: str
    plain: TrialResults
    methods: dict[str, TunedMethod]


class DamagedMethod(_Checked):
    """A method in the damage check.

    Attributes:
        error: why it could not be checked; all else is null then.
        value, difference: its figure, and that minus the plain model's, each {value, low, high}.
        detectable, p: as in `ConditionResults`.
        damaged: whether the interval of the difference lies below zero, and its test agrees at 5 %.
    """

    error: str | None = None
    value: dict[str, float | None] | None = None
    difference: dict[str, float | None] | None = None
    detectable: float | None = None
    p: float | None = None
    damaged: bool = False


class DamageResults(_Checked):
    """Whether methods broke the model, see `comparison.damage`.

    Attributes:
        benchmark: name of the questions, which are among the benchmarks. questions: their number.
        added: they were asked for this alone.
        error: why nothing could be asked; all else is empty then.
        split, scorer, figure: what decides. plain: the plain model's {value, low, high}.
        methods: by label.
    """

    benchmark: str
    added: bool
    error: str | None = None
    split: str = ""
    scorer: str = ""
    figure: str = ""
    questions: int = 0
    plain: dict[str, float | None] = {}
    methods: dict[str, DamagedMethod] = {}


class SweepResults(_Checked):
    """The methods of the results are one method with several values of its parameters.

    Attributes:
        method: its name. grid: {parameter: its values}. points: {label: values of these parameters}.
        neutral: {label of a point that changes nothing: {benchmark: number of answers that differ from the
            plain model's: 0 unless something is wrong}}.
    """

    method: str
    grid: dict[str, list[Any]]
    points: dict[str, dict[str, Any]]
    neutral: dict[str, dict[str, int]] = {}


class Results(_Checked):
    """results.json.

    Attributes:
        complete: false until every answer is scored.
        configuration: hash of everything that decides answers and figures.
        created: UTC, ISO 8601. model: name, fingerprint, dtype, devices.
        methods: {label: name and parameters}. controls: those added to them, likewise.
        processes: number of processes that shared the work.
        tuning: null where no parameter was chosen. damage: null where no damage was checked for.
        sweep: null but for a sweep.
    """

    format: Literal[2]
    complete: bool
    configuration: str
    created: str
    model: dict[str, Any]
    seed: int
    batch_size: int
    processes: int
    versions: dict[str, str]
    machine: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    controls: dict[str, dict[str, Any]] = {}
    benchmarks: dict[str, BenchmarkResults]
    tuning: TuningResults | None = None
    damage: DamageResults | None = None
    sweep: SweepResults | None = None


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the answers, and the attention backend by $REGAZE_BACKEND."""
    return {
        "regaze": regaze.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "attention_backend": _attention_backend(),
    }


def _attention_backend() -> str:
    """What $REGAZE_BACKEND says, and the version of Numba where that may run."""
    named = os.environ.get("REGAZE_BACKEND") or "auto"
    may_run = named == "numba" or (named == "auto" and not torch.cuda.is_available())
    if not may_run or "numba" not in BACKENDS:
        return named
    return f"{named}, Numba {version('numba')}"


def machine() -> dict[str, Any]:
    """The machine, which decides the seconds."""
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def dumps(results: Mapping[str, Any]) -> str:
    """JSON text of results; nan and infinities become null, which every JSON reader takes."""
    return json.dumps(finite(results), indent=2, ensure_ascii=False, allow_nan=False)


def write(results: Mapping[str, Any], folder: Path) -> RunResults:
    """Validate and replace results.json; returns its content.

    Raises:
        InputError: the folder cannot be written.
    """
    checked = Results.model_validate_json(dumps(results)).model_dump()
    replace_file(folder / RESULTS, dumps(checked) + "\n")
    return RunResults(checked)


def write_answers(rows: Iterable[Mapping[str, Any]], folder: Path, name: str = ANSWERS) -> None:
    """Replace answers.jsonl. Raises InputError where the folder cannot be written."""
    replace_file(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read(folder: StrPath) -> RunResults | None:
    """results.json of a folder; None where there is none.

    Raises:
        InputError: it cannot be read or has another format.
    """
    path = Path(folder) / RESULTS
    if not os.path.lexists(path):
        return None
    text = read_text(path)
    try:
        return RunResults(Results.model_validate_json(text).model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no results file of format {SCHEMA}: {where}: {first['msg']}") from error


def load_results(folder: StrPath) -> RunResults:
    """What the folder of a run holds, `regaze evaluate --output` or `compare --output`.

    Raises:
        InputError: there is no results.json, it cannot be read, or it has another format.
    """
    found = read(folder)
    if found is None:
        raise InputError(f"{os.fspath(folder)} has no {RESULTS}; give the folder that a run wrote")
    return found


def check_places(folder: Path) -> None:
    """Raise InputError where something that is no file of a run has the name of one, or one is unreadable."""
    for name in OUTPUTS:
        require_regular(folder / name)
    if (folder / RESULTS).exists() and not os.access(folder / RESULTS, os.R_OK):
        raise InputError(f"{folder / RESULTS} cannot be read: it belongs to somebody else")


def set_aside(folder: Path) -> None:
    """Rename the results of an earlier configuration: results.1.json, or the next free number."""
    paths = [folder / name for name in OUTPUTS]
    with output_errors(folder):
        number = 1
        while any(_numbered(path, number).exists() for path in paths):
            number += 1
        for path in paths:
            if path.exists():
                path.rename(_numbered(path, number))
        sync_folder(folder)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def finite(value: Any) -> Any:
    """`value` with null in place of nan and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return value
