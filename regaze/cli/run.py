"""A run of `evaluate` or `compare`: load the model, answer and score, write reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
import typer

from regaze.cli import config, console, damage, engines, grids, interrupt, models, questions
from regaze.cli.groups import RunOptions, TuningOptions
from regaze.errors import InputError, RegazeError
from regaze.eval import EvalConfig, EvalTask, Tuning, evaluate, sweep
from regaze.eval.export import export_answers, parse_formats
from regaze.eval.report.report import write_report
from regaze.eval.report.sections import Link
from regaze.eval.run.process_group import ProcessGroup
from regaze.eval.run.requests import ImageHashes
from regaze.eval.run.runner import run_folder
from regaze.eval.run.served import VLLMEngine
from regaze.eval.run.tasks import with_check
from regaze.eval.run.tuned import TuningStage
from regaze.eval.tuning.grids import Grid, make_trials
from regaze.interventions import Method
from regaze.toolkit import Gaze
from regaze.visible import visible

__all__ = ["EvalConfig", "Run", "execute", "prepare"]

#: Writes further pages into the folder of a complete run, and returns the links to them for the report.
AddPages: TypeAlias = Callable[[Gaze, Path], Sequence[Link]]
#: What a folder's name ends in: the hash of the options; in earlier versions the time.
_ENDING = r"-([0-9a-f]{8}|\d{8}-\d{6})"


@dataclass(frozen=True)
class Run:
    """What to run.

    Attributes:
        methods: by label.
        name: of the run, for its folder.
        formats: of other harnesses, to write the answers in.
        options: the values of all parameters of the command, which become run.yaml.
        controls: run the controls of the methods, too.
        tuning: of their parameters. grid: of those of the only method, for a sweep.
        files: further files of the run's folder, text by name; None for run.yaml.
        prepare: called with the model before the first question.
        damage_check: see `evaluate`.
    """

    tasks: Sequence[EvalTask]
    methods: Mapping[str, Method]
    config: EvalConfig
    name: str
    formats: Sequence[str]
    options: Mapping[str, Any]
    controls: bool = False
    tuning: Tuning | None = None
    grid: Grid | None = None
    files: Mapping[str, str] | None = None
    prepare: Callable[[Gaze], None] = lambda gaze: None
    damage_check: EvalTask | None = None


def prepare(
    ctx: typer.Context,
    given: RunOptions,
    benchmark: str,
    methods: Mapping[str, Method],
    *,
    name: str,
    raise_method_errors: bool,
    tuned: TuningOptions | None = None,
    controls: bool = False,
    damage_check: bool = False,
    damage_data: str | None = None,
    grid: Grid | None = None,
    values: Mapping[str, Any] | None = None,
) -> Run:
    """The run that the options of a command describe; what does not depend on the model is checked.

    Args:
        benchmark: names, separated by commas.
        values: of options that the command itself has decided, for run.yaml.

    Raises:
        InputError, UnknownParameterError, BadParameterError: as the readers of the options.
    """
    formats = parse_formats(given.export or "")
    tuning = None if tuned is None else grids.read_tuning(tuned, methods)
    options = {**config.option_values(ctx), **(values or {})}
    engines.check_options(options)
    tasks = questions.make_tasks(benchmark, given)
    return Run(
        tasks=tasks,
        methods=methods,
        config=EvalConfig(
            batch_size=given.batch_size,
            seed=given.seed,
            max_errors=given.max_errors,
            share_prefix=given.share_prefix,
            thinking_tokens=given.thinking_tokens,
            raise_method_errors=raise_method_errors,
        ),
        name=name,
        formats=formats,
        options=options,
        controls=controls,
        damage_check=damage.find_task(tasks, given.model, damage_data, given.limit) if damage_check else None,
        tuning=tuning,
        grid=grid,
    )


def execute(run: Run, add_pages: AddPages | None = None) -> tuple[dict[str, Any] | None, Path]:
    """Load the model and run; returns the content of results.json and the folder.

    Only the first of several processes scores and writes; the others return None for the results.
    """
    options = run.options
    group = ProcessGroup.from_environment(cpu=options["device"] == "cpu")
    folder = Path(group.broadcast(str(output_folder(run))))
    interrupt.current.advice = visible(f"; what is done is in {folder}, and the same command continues", "")
    if group.is_main:
        with run_folder(folder):  # what cannot be used is named before the model is loaded
            _check_grids(run)
    gaze, engine = _load(run, group)
    with (
        console.progress() if group.is_main else nullcontext() as progress,
        _naming(options["generate"]),
        nullcontext() if engine is None else closing(engine),
    ):
        results = _answer(
            run,
            gaze,
            folder,
            engine=engine,
            model_name=options["model"],
            config=replace(run.config, process_group=group),
            progress=progress,
            files={"run.yaml": config.dump(options)} if run.files is None else run.files,
        )
    if not group.is_main:
        return None, folder
    write_report(results, folder, add_pages(gaze, folder) if add_pages and gaze is not None else ())
    for kind in run.formats:
        export_answers(folder, results, kind)
    return results, folder


def _load(run: Run, group: ProcessGroup) -> tuple[Gaze | None, VLLMEngine | None]:
    """What answers: a wrapped model, or an engine."""
    options = run.options
    if options.get("engine") == "vllm":
        return None, engines.make_engine(options, run.methods.values(), group)
    gaze = models.load_model(
        options["model"],
        _device(options["device"], group),
        options["dtype"],
        arguments=options["model_arg"],
        template=options.get("template_arg"),
    )
    run.prepare(gaze)
    return gaze, None


def _check_grids(run: Run) -> None:
    """Raise what the run would raise about its grids; say which images are tuned on."""
    if run.tuning is not None:
        tasks = with_check(run.tasks, run.damage_check)
        stage = TuningStage.of(run.tuning, tasks, run.methods, ImageHashes())
        console.info(f"regaze: {stage.division.note}")
    if run.grid is not None:
        [(label, method)] = run.methods.items()
        make_trials(label, method, run.grid)


def _answer(run: Run, gaze: Gaze | None, folder: Path, **how: Any) -> dict[str, Any]:
    if run.grid is not None:
        return sweep(gaze, run.tasks, next(iter(run.methods.values())), run.grid, folder, **how)
    return evaluate(
        *(gaze, run.tasks, run.methods, folder),
        controls=run.controls,
        tuning=run.tuning,
        damage_check=run.damage_check,
        **how,
    )


def output_folder(run: Run) -> Path:
    """The folder of a run: --output, with --resume the newest of the same name, else one of its own.

    That is the same for the same options, as far as they decide answers, so that the same command continues.

    Raises:
        InputError: --resume, but there is no such folder.
    """
    options = run.options
    if options["output"] is not None:
        return Path(options["output"])
    stem = f"{run.name}-{Path(options['model']).name}"
    if not options["resume"]:
        return Path("out") / f"{stem}-{config.digest(options)}"
    ending = re.compile(re.escape(stem) + _ENDING)
    earlier = [path for path in Path("out").glob("*") if path.is_dir() and ending.fullmatch(path.name)]
    if not earlier:
        raise InputError(f"--resume: there is no run out/{stem}-... to continue; give --output")
    return max(earlier, key=lambda path: path.stat().st_mtime)


def _device(name: str | None, group: ProcessGroup) -> str | None:
    """Each process of a machine has its own device."""
    if group.size == 1:
        return name
    if name == "auto" and group.local_size > 1:
        raise InputError("--device auto spreads one model over all devices: start one process per machine")
    if name in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{group.local_rank}"
    return name


@contextmanager
def _naming(generate: Sequence[str] | None) -> Iterator[None]:
    """Name --generate in what the model raises: most likely it does not take one of the values."""
    try:
        yield
    except RegazeError:
        raise
    except Exception as error:
        if not generate:
            raise
        given = " ".join(f"--generate {each}" for each in generate)
        raise InputError(f"{given}: the model cannot answer ({type(error).__name__}: {error})") from error
