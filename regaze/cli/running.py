"""What `evaluate` and `compare` have in common: their options, run.yaml, and the run itself."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regaze.arguments import parse_untyped, split_assignments
from regaze.cli import console, options
from regaze.errors import BadParameterError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from regaze import Gaze
    from regaze.eval.report.report import Link
    from regaze.eval.run.process_group import ProcessGroup
    from regaze.eval.run.runner import EvalTask

#: options whose value in run.yaml is a mapping, on the command line NAME=VALUE as often as wanted
MAPPINGS = ("settings", "bench", "generate")
_NAMES = {"settings": "set"}
#: options that are about one call of the command
_PASSING = ("config", "debug", "json", "resume", "output", "html")


def _config(ctx: typer.Context, path: Path | None) -> Path | None:
    """The values of --config become the defaults of the options."""
    if path is not None:
        known = {_NAMES.get(p.name or "", p.name or ""): p.name for p in ctx.command.params}
        ctx.default_map = {known[key]: value for key, value in read_config(path, set(known)).items()}
    return path


def read_config(path: Path, known: set[str]) -> dict[str, Any]:
    """Options by name from a YAML file, values as the command line takes them.

    Raises:
        InputError: it cannot be read, is no YAML, or names an option that there is not.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: expected options such as `benchmark: pope`, one per line")
    out = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"--config {path}: no option {key!r}; there are {', '.join(sorted(known))}")
        out[name] = _as_typed(name, value, path)
    return out


def _as_typed(name: str, value: Any, path: Path) -> Any:
    """A YAML value as it would have been typed."""
    if name in ("set", "bench", "generate"):
        if not isinstance(value, dict):
            raise InputError(f"--config {path}: {name} must be a mapping of names to values, got {value!r}")
        return [f"{key}={_text(entry)}" for key, entry in value.items()]
    if name == "methods" and isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


Config = Annotated[
    Path | None,
    typer.Option(callback=_config, is_eager=True, help="YAML file with any of these options; see run.yaml."),
]
Data = Annotated[
    str | None,
    typer.Option(help="demo (the shipped scenes), hub, or a folder with the benchmark's official files."),
]
Images = Annotated[Path | None, typer.Option(help="Folder of the images that the files name.")]
Bench = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the benchmark (see `regaze benchmarks`)."),
]
Limit = Annotated[int | None, typer.Option(help="Only the first N questions of each split.")]
BatchSize = Annotated[int, typer.Option(help="Questions answered at a time.")]
Generate = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Passed to generate, such as temperature=1; repeatable."),
]
LongestAnswer = Annotated[
    int, typer.Option(min=1, help="Longest answer, in tokens, where the benchmark sets none.")
]
MaxErrors = Annotated[int, typer.Option(help="How many questions may fail before the run stops.")]
SharePrefix = Annotated[
    bool, typer.Option(help="Let questions about one image share its prefill where that is sound.")
]
Judge = Annotated[
    str | None,
    typer.Option(help="For judged benchmarks: URL#MODEL of a server, a model, or a verdicts file (.jsonl)."),
]
Export = Annotated[
    str | None, typer.Option(help="Also write the answers for lmms-eval, vlmevalkit, or both with a comma.")
]
Output = Annotated[
    Path | None, typer.Option(help="Folder for results; a run that is there goes on. [out/... with the time]")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Without --output: go on in the newest folder of such a run.")
]


def given(ctx: typer.Context) -> dict[str, Any]:
    """The values of all options, in the order in which the command declares them."""
    return {str(p.name): ctx.params[str(p.name)] for p in ctx.command.params if p.name in ctx.params}


@dataclass(frozen=True)
class Request:
    """What to run, as far as the command line decides it.

    Attributes:
        methods: by label. settings: the values of all options, for run.yaml.
    """

    tasks: list[EvalTask]
    methods: Mapping[str, Any]
    name: str
    settings: Mapping[str, Any]
    raise_method_errors: bool


def execute(
    request: Request, then: Callable[[Gaze, Path], Sequence[Link]] | None = None
) -> tuple[dict[str, Any] | None, Path]:
    """Load the model and run; returns what results.json holds and the folder.

    A process that only helps another one has no results; `then` is called by the first one alone, with the
    model and the folder of the complete run, and says what the report links to.
    """
    from regaze.eval.run.process_group import ProcessGroup
    from regaze.eval.run.runner import EvalConfig, evaluate

    given = request.settings
    group = ProcessGroup.from_environment(cpu=given["device"] == "cpu")
    folder = Path(group.broadcast(str(_folder(request))))
    gaze = options.load(given["model"], _device(given["device"], group), given["dtype"])
    config = EvalConfig(
        batch_size=given["batch_size"],
        seed=given["seed"],
        max_errors=given["max_errors"],
        share_prefix=given["share_prefix"],
        process_group=group,
        raise_method_errors=request.raise_method_errors,
    )
    with _progress(group) as report, _interruptible(folder):
        results = evaluate(
            gaze,
            request.tasks,
            request.methods,
            folder,
            model_name=given["model"],
            config=config,
            progress=report,
        )
    if not group.is_main:
        return None, folder
    _write(results, request, folder, () if then is None else then(gaze, folder))
    return results, folder


def _write(results: dict[str, Any], request: Request, folder: Path, links: Sequence[Link]) -> None:
    """Reports, exports and the effective configuration."""
    import yaml

    from regaze.eval import export
    from regaze.eval.files import replace_file
    from regaze.eval.report import report

    report.write(results, folder, links)
    for kind in (request.settings["export"] or "").split(","):
        if kind.strip():
            export.export(folder, results, kind.strip())
    replace_file(folder / "run.yaml", yaml.safe_dump(effective(request.settings), sort_keys=False, width=100))


def effective(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options as run.yaml has them: what --config gives is what this run was."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _PASSING or value in (None, []):
            continue
        key = _NAMES.get(name, name)
        if name in MAPPINGS:
            out[key] = {k: _yaml_value(v) for k, v in split_assignments(value, f"--{key}").items()}
        else:
            out[key] = str(value) if isinstance(value, Path) else value
    return out


def _yaml_value(text: str) -> Any:
    """`text` as a YAML value that reads back as the same value, whatever its type."""
    value = parse_untyped(text)
    return value if isinstance(value, (list, dict)) or json.dumps(value) == text else text


def generation(given: list[str] | None, max_new_tokens: int) -> dict[str, Any]:
    """What `generate` gets; a temperature above 0 asks for sampled answers.

    Raises:
        BadParameterError: an option that is set elsewhere, or none of generation.
    """
    from transformers import GenerationConfig

    chosen = {
        name: parse_untyped(text) for name, text in split_assignments(given or [], "--generate").items()
    }
    unknown = [name for name in chosen if not hasattr(GenerationConfig(), name)]
    if unknown:
        raise BadParameterError(f"--generate {unknown[0]}: transformers' generate has no such option")
    if "max_new_tokens" in chosen:
        raise BadParameterError("--generate max_new_tokens: give --max-new-tokens")
    if "do_sample" not in chosen and chosen.get("temperature"):
        chosen["do_sample"] = True
    return {"max_new_tokens": max_new_tokens, **chosen}


def tasks(settings: Mapping[str, Any]) -> list[EvalTask]:
    """The benchmarks asked for, with their questions."""
    from regaze.eval.run.runner import EvalTask

    generate = generation(settings["generate"], settings["max_new_tokens"])
    judge = judge_of(settings["judge"])
    names = [name.strip() for name in settings["benchmark"].split(",")]
    return [EvalTask(benchmark(name, settings, judge), generate) for name in names]


def benchmark(name: str, settings: Mapping[str, Any], judge: Any = None) -> Any:
    """One benchmark, from the options that say where its questions are."""
    from regaze.eval import catalogue

    own = split_assignments(settings["bench"] or [], "--bench")
    shortcuts = {"suffix": settings.get("suffix"), "limit": settings["limit"]}
    own.update({key: json.dumps(_unescaped(value)) for key, value in shortcuts.items() if value is not None})
    if settings.get("split") not in (None, "all"):
        own["splits"] = json.dumps([settings["split"]])
    questions = settings.get("questions")
    if questions is not None or (name == "pope" and settings["images"] and not settings["data"]):
        return _own_pope(name, questions, settings, own)
    return catalogue.make(
        name,
        data=settings["data"],
        images=settings["images"],
        settings=own,
        judge=judge,
        tokens=(lambda: _tokenizer(settings["model"])) if settings.get("model") else None,
    )


def _tokenizer(model: str) -> Any:
    """The tokenizer alone: benchmarks are made before the model is loaded, so that they complain early."""
    from transformers import AutoTokenizer

    from regaze.demo import MODEL_DIR
    from regaze.errors import ModelNotFoundError

    try:
        return AutoTokenizer.from_pretrained(str(MODEL_DIR) if model == "demo" else model)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"cannot load the tokenizer of {model!r}: {error}") from error


def _own_pope(name: str, questions: Path | None, settings: Mapping[str, Any], own: dict[str, str]) -> Any:
    """POPE's questions from one file of the user's."""
    from regaze.eval.benchmarks.pope.benchmark import Pope

    if name != "pope":
        raise InputError(f"--questions is for pope; give {name} its official files by --data FOLDER")
    if questions is None or settings["images"] is None:
        raise InputError("--questions FILE and --images DIR belong together; give both or neither")
    if settings.get("split") is not None:
        raise InputError("--split chooses among the shipped questions; leave it out with --questions")
    chosen = {key: parse_untyped(text) for key, text in own.items()}
    unknown = set(chosen) - {"suffix", "limit"}
    if unknown:
        raise InputError(f"--bench {unknown.pop()}: questions from a file have suffix and limit alone")
    return Pope({questions.stem: questions}, settings["images"], **chosen)


def _unescaped(value: Any) -> Any:
    return value.replace("\\n", "\n") if isinstance(value, str) else value


def judge_of(text: str | None) -> Any:
    """A judge from URL#MODEL, the name of a model, or a file of recorded verdicts; None for None."""
    if text is None:
        return None
    from regaze.eval.judges import HttpJudge, ModelJudge, RecordedJudge

    if text.startswith(("http://", "https://")):
        url, _, model = text.partition("#")
        if not model:
            raise InputError(f"--judge {text}: add the model's name on that server, as {text}#NAME")
        return HttpJudge(url, model)
    return RecordedJudge(Path(text)) if text.endswith(".jsonl") else ModelJudge.load(text)


def _folder(request: Request) -> Path:
    """The output folder: the one given, the newest of such a run with --resume, or a new one."""
    given = request.settings
    if given["output"] is not None:
        return Path(given["output"])
    stem = f"{request.name}-{Path(given['model']).name}"
    if given["resume"]:
        earlier = sorted(Path("out").glob(f"{stem}-2*"))
        if not earlier:
            raise InputError(f"--resume: there is no run out/{stem}-... to go on with; give --output")
        return earlier[-1]
    return Path("out") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _device(name: str | None, group: ProcessGroup) -> str | None:
    """Each process of a machine has a device of its own."""
    if group.size == 1:
        return name
    if name == "auto" and group.local_size > 1:
        raise InputError("--device auto spreads one model over all devices: start one process per machine")
    import torch

    if name in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{group.local_rank}"
    return name


@contextmanager
def _progress(group: ProcessGroup) -> Iterator[Any]:
    """Bars for the first process; the others are silent."""
    with console.progress() if group.is_main else nullcontext() as report:
        yield report


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """What stops a run says how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        console.say(f"stopped; the same command with --output {folder} goes on")
        raise typer.Exit(130) from None
