"""What `regaze fit` reads, writes and prints."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table

from regaze.arguments import parameter_types, parse_typed, split_assignments
from regaze.cli import console
from regaze.errors import InputError, UnknownMethodError
from regaze.interventions import registry
from regaze.interventions.fitting import (
    Directions,
    Examples,
    Fit,
    FittedIntervention,
)
from regaze.interventions.fitting.parts import remove_parts
from regaze.toolkit import Gaze
from regaze.writing import make_folder, require_regular


def read_fit(name: str, settings: list[str] | None) -> Fit:
    """The fit of the method called `name` with the values of --set.

    Raises:
        UnknownMethodError: no such method, or one that needs no fit.
        UnknownParameterError, BadParameterError: the message names what is allowed.
    """
    cls = registry.method_class(name)
    if not issubclass(cls, FittedIntervention):
        fitted = [n for n, c in registry.load_methods().items() if issubclass(c, FittedIntervention)]
        raise UnknownMethodError(f"{name!r} needs no fit; methods that do: {', '.join(fitted)}")
    values = split_assignments(settings or [], "--set")
    return cls.fit(**parse_typed(values, parameter_types(cls.fit), "--set "))


def read_data(fit: Fit, data: str | None, images: Path | None, model: str) -> Examples:
    """The examples of --data. Raises InputError: no or unreadable data."""
    if data is None and model != "demo":
        raise InputError(
            f"--model {model} needs --data: a file of JSON lines (see docs/reference/methods.md), "
            "and perhaps --images"
        )
    if data is None or data == "demo":
        return fit.demo()
    return fit.read(data, images)


def check_output(path: Path) -> Path:
    """Make the folder of a file of directions; returns the folder of what is measured before it is written.

    Raises:
        InputError: it cannot be written, or another kind of file has that name.
    """
    if not path.suffix == ".safetensors":
        raise InputError(f"--output {path}: expected a name that ends in .safetensors")
    make_folder(path.parent)
    require_regular(path)
    if path.exists():
        try:
            Directions.load(path)
        except InputError as error:
            raise InputError(f"--output {path} is there and would be overwritten: {error}") from None
    return path.with_suffix(".parts")


def result_at(path: Path, fit: Fit, gaze: Gaze, data: Examples) -> Directions | None:
    """The directions in the file, if this fit has made them."""
    if path.exists() and fit.has_made(found := Directions.load(path), gaze, data):
        console.info(f"{path} is there already, from the same model, data and settings")
        return found
    return None


def save(found: Directions, path: Path, parts: Path) -> None:
    """Write the file; what was measured for it is no longer needed then."""
    found.save(path)
    remove_parts(parts)


def show(found: Directions) -> None:
    """Print what was fitted, and the figures of each layer."""
    out, about = console.stdout(), found.about
    data, model = about["data"], about["model"]
    out.print(
        f"{about['method']}: {data['pairs']} examples of {data['source']} on {model['name']} "
        f"({model['layers']} layers of width {model['width']})",
        soft_wrap=True,
    )
    for name, entry in about["tensors"].items():
        out.print(f"  {name}: {' x '.join(map(str, entry['shape']))}")
    columns = {k: v for k, v in about["report"].items() if isinstance(v, list)}
    if not columns:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("layer", *columns):
        table.add_column(heading, justify="right")
    for layer, figures in enumerate(zip(*columns.values(), strict=True)):
        table.add_row(str(layer), *(f"{figure:.3f}" for figure in figures))
    out.print(table)
