"""`regaze heatmap`: where the model looked while it answered."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regaze.cli import console, options
from regaze.errors import InputError

if TYPE_CHECKING:
    from regaze import Gaze

FORMATS = (".png", ".pdf", ".svg")


def heatmap(
    image: Annotated[str, typer.Argument(help="An image file, or the name of a shipped scene.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: options.Model = "demo",
    method: options.Method = "none",
    settings: options.Settings = None,
    layers: Annotated[str | None, typer.Option(help="Layers to average, such as 3 or 2,3. [all]")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to average, such as 0 or 0,5. [all]")] = None,
    token: Annotated[
        str, typer.Option(help="Whose row to show: an answer token from 0, or a word of answer or question.")
    ] = "0",
    max_new_tokens: options.MaxNewTokens = 32,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.")] = Path("heatmap.png"),
    debug: options.Debug = False,
) -> None:
    """Draw where the model looked as it answered; prints the answer."""
    path = find_image(image)
    check_output(output)
    chosen: dict[str, Any] = {
        "token": _token(token),
        "layers": numbers("--layers", layers),
        "heads": numbers("--heads", heads),
    }
    intervention = options.method(method, settings)
    gaze = options.load(model, device, dtype)
    import torch

    torch.manual_seed(seed)
    answer = draw(
        gaze,
        intervention,
        path,
        question,
        output,
        max_new_tokens=max_new_tokens,
        **chosen,
    )
    typer.echo(answer)
    console.say(f"the heatmap is in {output}")


def draw(
    gaze: Gaze,
    intervention: Any,
    image: Path,
    question: str,
    output: Path,
    *,
    token: int | str = 0,
    layers: list[int] | None = None,
    heads: list[int] | None = None,
    max_new_tokens: int = 32,
) -> str:
    """Ask, write the heatmap of one token or word to `output`, and return the answer.

    With an intervention the map shows the attention as edited, which is what the model then acts on.
    """
    from regaze.toolkit import plot

    active = [intervention] if intervention else []
    rows = "last" if isinstance(token, int) else "text"
    wanted: dict[str, Any] = {
        "slices": "image",
        "masses": False,
        "layers": layers,
        "rows": rows,
        "edited": bool(active),
    }
    with gaze.using(*active), gaze.recording(**wanted) as record:
        answer = gaze.ask([image], [question], max_new_tokens=max_new_tokens)[0]
    plot.heatmap(record, gaze.seen(image), token=token, layers=layers, heads=heads, path=output)
    return answer


def find_image(name: str) -> Path:
    """A file of this name, or else the shipped scene of this name (with or without its ending)."""
    if os.path.exists(name):  # Path.exists raises for names that are too long
        return Path(name)
    from regaze import demo

    for scene in demo.scenes():
        if name in (scene.name, Path(scene.name).stem):
            return scene.path
    raise InputError(f"image {name} does not exist, and no shipped scene has that name")


def check_output(path: Path, formats: tuple[str, ...] = FORMATS) -> None:
    """Refuse what cannot be written before a model is loaded; makes the folder of the file."""
    if path.suffix.lower() not in formats:
        raise InputError(f"output {path}: expected a name that ends in {', '.join(formats)}")
    if path.is_dir():
        raise InputError(f"output {path} is a folder; expected the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output {path}: its folder cannot be made ({error.strerror})") from error


def _token(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def numbers(option: str, text: str | None) -> list[int] | None:
    """Numbers of an option such as "0,5"; InputError for anything else."""
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: expected numbers such as 3 or 0,5") from None
