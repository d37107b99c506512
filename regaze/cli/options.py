"""Options that several commands share, and how their values become a model and a method."""

from __future__ import annotations

import typing
from typing import Annotated, Any

import typer

from regaze.cli import console
from regaze.errors import BadParameterError, InputError, UnknownParameterError

if typing.TYPE_CHECKING:
    from regaze import Gaze
    from regaze.interventions import Method as AnyMethod


def _debug(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[console.DEBUG] = True


Model = Annotated[str, typer.Option(help="demo, a folder, or a name on the Hugging Face hub.")]
Method = Annotated[str, typer.Option(help="An intervention (see `regaze methods`), or none.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the method; repeatable."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, or auto to spread over all. [best there is]")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. [as stored; the demo: float32]")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of sampling and of the bootstrap.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Debug = Annotated[bool, typer.Option("--debug", callback=_debug, is_eager=True, help="Show tracebacks.")]


def load(model: str, device: str | None, dtype: str | None) -> Gaze:
    """The wrapped model, loaded without noise."""
    placement: dict[str, Any] = {"device_map": _device(device)}
    if dtype is not None:
        placement["dtype"] = _dtype(dtype)
    console.quiet_libraries()
    import regaze

    with console.stderr().status(f"loading {model}"):
        return regaze.wrap(*regaze.load(model, **placement))


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "auto":
        return name
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try cpu") from error
    return name


def _dtype(name: str) -> Any:
    import torch

    if name not in ("float32", "bfloat16", "float16"):
        raise InputError(f"dtype {name!r}: expected float32, bfloat16 or float16")
    return getattr(torch, name)


def method(name: str, settings: list[str] | None) -> AnyMethod | None:
    """The intervention called `name` with the values of --set; None for "none".

    Raises:
        UnknownMethodError, UnknownParameterError, BadParameterError: names what is allowed. Also for a
            knockout of no head: in Python that is a neutral element, on the command line an oversight.
    """
    if name == "none":
        if settings:
            raise UnknownParameterError(f"--set {settings[0]}: there is no method to set it on; add --method")
        return None
    from regaze.arguments import parameter_types, parse_typed, split_assignments
    from regaze.interventions import HeadKnockout
    from regaze.interventions.registry import method_class

    cls = method_class(name)
    chosen = cls.from_dict(
        parse_typed(split_assignments(settings or [], "--set"), parameter_types(cls), "--set ")
    )
    if isinstance(chosen, HeadKnockout) and not chosen.heads:
        raise BadParameterError(f"--method {name}: no heads to remove; add --set heads=[[3,1],[4,0]]")
    return chosen
