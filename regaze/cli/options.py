"""The options that several commands share. In a help text, brackets hold the default."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from regaze import arguments
from regaze.cli import config, console
from regaze.demo.shipped import MODEL_NAMES
from regaze.errors import BadParameterError
from regaze.interventions import registry
from regaze.names import known_name

Number = TypeVar("Number", int, float)

#: What can answer the questions of a run.
ENGINES = ["transformers", "vllm"]


def _mark_debug(ctx: typer.Context, requested: bool) -> None:
    if requested:
        ctx.meta[console.DEBUG] = True
        logging.disable(logging.NOTSET)


def _apply_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the values of --config the defaults of the other options."""
    if path is not None:
        names = [str(parameter.name) for parameter in ctx.command.params]
        ctx.default_map = config.read_defaults(path, names)
    return path


def spelt_benchmarks(text: str | None) -> str | None:
    """A list of benchmarks with their names as they are registered."""
    if text is None:
        return None
    from regaze.eval import catalogue  # here, so that --help does not import it

    return ",".join(catalogue.registered_name(name.strip()) for name in text.split(","))


def _known_engine(text: str | None) -> str | None:
    """None for the default, which has no name in the files of runs."""
    name = None if text is None else known_name(text, ENGINES)
    if name is not None and name not in ENGINES:
        raise BadParameterError(f"--engine {text}: expected transformers or vllm")
    return None if name == "transformers" else name


def _spelt_model(text: str) -> str:
    return text if os.path.exists(text) else known_name(text, MODEL_NAMES)


def _complete_method(incomplete: str) -> list[str]:
    """For the shell: the methods whose names begin so."""
    return [name for name in ("none", *registry.list_methods()) if name.startswith(incomplete)]


def _complete_methods(incomplete: str) -> list[str]:
    """For the shell: the methods whose names begin as the last of a list does."""
    return _complete_last(incomplete, registry.list_methods())


def complete_benchmarks(incomplete: str) -> list[str]:
    """For the shell: the benchmarks whose names begin as the last of a list does."""
    from regaze.eval.benchmarks import NAMES  # here, so that --help does not import it

    return _complete_last(incomplete, NAMES)


def _complete_last(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


# The model, the method and the answer.
Model = Annotated[
    str, typer.Option(callback=_spelt_model, help="demo, bed, a folder, or a name on the Hugging Face hub.")
]
ModelName = Annotated[
    str, typer.Argument(callback=_spelt_model, help="demo, bed, a folder, or a name on the Hugging Face hub.")
]
ModelArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An argument of from_pretrained, such as revision=main, attn_implementation=eager, "
        "load_in_4bit=true or trust_remote_code=true; of the bed also base=FOLDER and weights=FOLDER; "
        "repeatable.",
    ),
]
TemplateArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="A variable of the model's chat template, such as enable_thinking=false; repeatable.",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        callback=registry.registered_name,
        autocompletion=_complete_method,
        help="A method (see `regaze methods`), file.py:Class, or none.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A parameter of the method; of one of several METHOD:NAME=VALUE, such as pai:alpha=0.4; "
        "repeatable.",
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        "--method",
        autocompletion=_complete_methods,
        help='Names separated by commas, all, or a JSON or YAML file: a list of {"label", "method", '
        "parameters...}. [all, or with --tune those that it names]",
    ),
]
Controls = Annotated[
    bool,
    typer.Option(
        "--controls",
        help="Run the controls of each method, too, and say whether it beats the best of them.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps, or auto to spread the model over all. [best available]"),
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. [as stored; demo and bed: float32]")
]
Engine = Annotated[
    str | None,
    typer.Option(
        callback=_known_engine,
        help="transformers, or vllm: continuous batches, where vLLM is installed. [transformers]",
    ),
]
EngineArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="With --engine vllm an argument of its LLM, such as tensor_parallel_size=2 or "
        "gpu_memory_utilization=0.8; repeatable.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all random numbers.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum length of the answer, in tokens.")]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_mark_debug, is_eager=True, help="Show tracebacks of errors.")
]

# The questions: commands that run or score benchmarks.
Benchmarks = Annotated[
    str,
    typer.Argument(
        callback=spelt_benchmarks,
        autocompletion=complete_benchmarks,
        help="Names from `regaze benchmarks`, separated by commas.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(help="demo or bed (shipped scenes), hub, or a folder with the benchmark's official files."),
]
Images = Annotated[Path | None, typer.Option(help="Folder of the images that the files name.")]
Questions = Annotated[
    Path | None, typer.Option(help="pope only: a file of questions in its own format; needs --images.")
]
Split = Annotated[
    str | None,
    typer.Option(
        help="A split of the benchmark, such as random, popular or adversarial of pope and repope. [all]",
    ),
]
Bench = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="An option of the benchmark (see `regaze benchmarks`); repeatable."
    ),
]
Suffix = Annotated[
    str | None,
    typer.Option(help="Text after each question; \\n is a new line. [as the benchmark defines]"),
]
FewShot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="JSON file of messages before every question, as chat templates have them: few-shot examples.",
    ),
]
AllowUrls = Annotated[
    bool, typer.Option("--allow-urls", help="Fetch images that are given by URLs, from public servers.")
]
Limit = Annotated[int | None, typer.Option(help="Only the first N questions of each split.")]
Judge = Annotated[
    str | None,
    typer.Option(
        help="For judged benchmarks: URL#MODEL of a server, a model, or a file of verdicts (.jsonl)."
    ),
]

DamageCheck = Annotated[
    bool,
    typer.Option(
        help="Also ask multiple-choice questions, to see whether a method broke the model: MMStar, where its "
        "file is at hand, or questions about the demo's scenes.",
    ),
]
DamageData = Annotated[
    str | None,
    typer.Option(
        help="Where MMStar is: a folder, or hub. [what `regaze benchmarks get mmstar` has downloaded]"
    ),
]
# Values of parameters: `compare` chooses among them.
Tune = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METHOD:NAME=VALUES",
        help="Choose a parameter, as in gift:alpha=1,2,4; repeatable: of several parameters of a method all "
        "combinations are tried. No image that is tuned on is tested on.",
    ),
]
TuneSplit = Annotated[
    str | None,
    typer.Option(
        help="Tune on half of the images, or on the questions of the split of this name and test the others; "
        "of images that both have questions about, half are tuned on. [half]"
    ),
]
TuneSeed = Annotated[
    int | None, typer.Option(help="Decides which images are tuned on, and which trials are drawn. [0]")
]
TuneCriterion = Annotated[
    str | None,
    typer.Option(
        metavar="FIGURE",
        help="The figure that decides, such as f1, or harness.f1 of one scorer. [the tested figure]",
    ),
]
TuneTrials = Annotated[
    int | None, typer.Option(help="Try this many combinations of each tuned method, drawn at random. [all]")
]

# The run: commands that generate answers.
Config = Annotated[
    Path | None,
    typer.Option(
        callback=_apply_config,
        is_eager=True,
        help="YAML file with any of these options, such as run.yaml of an earlier run.",
    ),
]
BatchSize = Annotated[int, typer.Option(help="Questions per batch.")]
Generate = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An argument of generate, such as temperature=1; repeatable."),
]
AnswerTokens = Annotated[
    int,
    typer.Option(min=1, help="Maximum length of an answer, in tokens, where the benchmark sets none."),
]
ThinkingTokens = Annotated[
    int,
    typer.Option(min=0, help="Tokens that every answer may have beyond that, for a model's thinking."),
]
MaxErrors = Annotated[int, typer.Option(help="Failed questions allowed before the run stops.")]
SharePrefix = Annotated[
    bool, typer.Option(help="Let questions about one image share its prefill where the model allows it.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder for results; a run in it is continued. [out/NAME-HASH: the same for the same options]"
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Without --output: the folder of the newest run of the same name.")
]
Json = Annotated[bool, typer.Option("--json", help="Print results.json and nothing else.")]
Html = Annotated[
    int, typer.Option(min=0, help="Also write interactive pages of this many wrongly answered questions.")
]
Export = Annotated[
    str | None,
    typer.Option(help="Also write the answers for lmms-eval, vlmevalkit, or both separated by a comma."),
]


def parse_numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """The numbers of an option such as "0,5". Raises BadParameterError for anything else."""
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        raise BadParameterError(f"{option} {text}: expected numbers such as 3 or 0,5") from None


def parse_indices(option: str, text: str | None) -> list[int] | None:
    """Numbers and ranges such as "0,2-4", both ends included; None, which means all, for None.

    Raises:
        BadParameterError: see `regaze.arguments.parse_indices`.
    """
    if text is None:
        return None
    try:
        return arguments.parse_indices(text)
    except ValueError as error:
        raise BadParameterError(f"{option} {text}: expected numbers such as 3 or 0,2-4 ({error})") from None
