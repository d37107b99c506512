"""A run of `evaluate` or `compare`: load the model, answer and score, write reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
import typer

from regaze.cli import config, console, models
from regaze.errors import InputError
from regaze.eval import EvalConfig, EvalTask, evaluate
from regaze.eval.export import export_answers
from regaze.eval.report.report import write_report
from regaze.eval.report.sections import Link
from regaze.eval.run.process_group import ProcessGroup
from regaze.interventions import Method
from regaze.toolkit import Gaze
from regaze.writing import replace_file

#: Writes further pages into the folder of a complete run, and returns the links to them for the report.
AddPages: TypeAlias = Callable[[Gaze, Path], Sequence[Link]]


@dataclass(frozen=True)
class Run:
    """What to run.

    Attributes:
        methods: by label.
        model, device, dtype: see `models.load_model`.
        export: names of other harnesses' formats, separated by commas.
        options: the values of all parameters of the command, which become run.yaml.
    """

    tasks: Sequence[EvalTask]
    methods: Mapping[str, Method]
    config: EvalConfig
    model: str
    device: str | None
    dtype: str | None
    folder: Path
    export: str | None
    options: Mapping[str, Any]


def execute(run: Run, add_pages: AddPages | None = None) -> tuple[dict[str, Any] | None, Path]:
    """Load the model and run; returns the content of results.json and the folder.

    Only the first of several processes scores and writes; the others return None for the results.
    """
    group = ProcessGroup.from_environment(cpu=run.device == "cpu")
    folder = Path(group.broadcast(str(run.folder)))
    gaze = models.load_model(run.model, _device(run.device, group), run.dtype)
    with console.progress() if group.is_main else nullcontext() as progress, _interruptible(folder):
        results = evaluate(
            gaze,
            run.tasks,
            run.methods,
            folder,
            model_name=run.model,
            config=replace(run.config, process_group=group),
            progress=progress,
        )
    if not group.is_main:
        return None, folder
    write_report(results, folder, add_pages(gaze, folder) if add_pages else ())
    for kind in (run.export or "").split(","):
        if kind.strip():
            export_answers(folder, results, kind.strip())
    replace_file(folder / "run.yaml", config.dump(run.options))
    return results, folder


def output_folder(output: Path | None, resume: bool, name: str, model: str) -> Path:
    """The folder of a run: --output, with --resume the newest of the same name, else a new one.

    Raises:
        InputError: --resume, but there is no such folder.
    """
    if output is not None:
        return output
    stem = f"{name}-{Path(model).name}"
    if resume:
        earlier = sorted(Path("out").glob(f"{stem}-2*"))
        if not earlier:
            raise InputError(f"--resume: there is no run out/{stem}-... to continue; give --output")
        return earlier[-1]
    return Path("out") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


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
def _interruptible(folder: Path) -> Iterator[None]:
    """On Ctrl-C, print how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        console.info(f"stopped; the same command with --output {folder} continues")
        raise typer.Exit(130) from None
