"""Groups of options: a command with a parameter of a group's type has the options that are its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from regaze.cli import options


@dataclass(frozen=True)
class LoadingOptions:
    """How a model is loaded."""

    model_arg: options.ModelArg = None
    template_arg: options.TemplateArg = None
    device: options.Device = None
    dtype: options.Dtype = None


@dataclass(frozen=True)
class _Named:
    model: options.Model = "demo"


@dataclass(frozen=True)
class ModelOptions(LoadingOptions, _Named):
    """Which model, and how it is loaded; help lists the last base first."""


@dataclass(frozen=True)
class QuestionOptions:
    """Which questions of a benchmark."""

    data: options.Data = None
    images: options.Images = None
    questions: options.Questions = None
    split: options.Split = None
    bench: options.Bench = None
    limit: options.Limit = None


@dataclass(frozen=True)
class AnswerOptions:
    """How questions are put, and how they are answered."""

    suffix: options.Suffix = None
    few_shot: options.FewShot = None
    allow_urls: options.AllowUrls = False
    engine: options.Engine = None
    engine_arg: options.EngineArg = None
    batch_size: options.BatchSize = 16
    max_new_tokens: options.AnswerTokens = 16
    thinking_tokens: options.ThinkingTokens = 0
    generate: options.Generate = None
    seed: options.Seed = 0
    max_errors: options.MaxErrors = 10
    share_prefix: options.SharePrefix = True
    judge: options.Judge = None


@dataclass(frozen=True)
class ResultOptions:
    """What is written, and where."""

    config: options.Config = None
    output: options.Output = None
    resume: options.Resume = False
    export: options.Export = None
    json: options.Json = False
    debug: options.Debug = False


@dataclass(frozen=True)
class RunOptions(ResultOptions, AnswerOptions, QuestionOptions, ModelOptions):
    """What every command that answers benchmarks has."""


@dataclass(frozen=True)
class TuningOptions:
    """How parameters are chosen."""

    tune: options.Tune = None
    tune_split: options.TuneSplit = None
    tune_seed: options.TuneSeed = None
    tune_criterion: options.TuneCriterion = None
    tune_trials: options.TuneTrials = None


def spread(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with each parameter that is a group replaced by the options of the group, for typer."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    shown = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            shown += _options(groups[parameter.name])
        else:
            keyword = inspect.Parameter.KEYWORD_ONLY
            shown.append(parameter.replace(kind=keyword, annotation=hints[parameter.name]))

    def run(**given: Any) -> Any:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        return command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    vars(run)["__signature__"] = inspect.Signature(shown)
    return run


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
