"""Methods by name: the built-in ones, and those that other packages announce as entry points.

Listing names imports no method. A third party registers with

    [project.entry-points."regaze.interventions"]
    mymethod = "my_package.module:MyMethod"
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from regaze.errors import BadParameterError, RegazeError, UnknownMethodError

if TYPE_CHECKING:
    from regaze.interventions.base import Method

#: Where each built-in method is defined, by its registered name.
BUILT_IN: dict[str, str] = {
    "adhh": "regaze.interventions.adhh:ADHH",
    "agla": "regaze.interventions.agla:AGLA",
    "avisc": "regaze.interventions.avisc:AvisC",
    "carve": "regaze.interventions.carve:CARVE",
    "damro": "regaze.interventions.damro:DAMRO",
    "dola": "regaze.interventions.dola:DoLa",
    "gift": "regaze.interventions.gift:GIFT",
    "hgai": "regaze.interventions.hgai:HGAI",
    "icd": "regaze.interventions.icd:ICD",
    "knockout": "regaze.interventions.knockout:HeadKnockout",
    "m3id": "regaze.interventions.m3id:M3ID",
    "mma": "regaze.interventions.mma:MMA",
    "moa": "regaze.interventions.moa:MoA",
    "opera": "regaze.interventions.opera:OPERA",
    "pai": "regaze.interventions.pai:PAI",
    "paint": "regaze.interventions.paint:PAINT",
    "sparc": "regaze.interventions.sparc:SPARC",
    "vaf": "regaze.interventions.vaf:VAF",
    "var": "regaze.interventions.var:VAR",
    "vcd": "regaze.interventions.vcd:VCD",
    "vista": "regaze.interventions.vista:VISTA",
}
#: Transforms of a vision model used alone. Neither `gaze.using` nor `gaze.ask` takes them.
VISION_TRANSFORMS: dict[str, str] = {"evit": "regaze.interventions.evit:EViT"}

ENTRY_POINT_GROUP = "regaze.interventions"


def list_methods() -> list[str]:
    """All registered names in alphabetical order; whether an entry point can be imported is not tried."""
    return sorted({*BUILT_IN, *announced()})


def method_class(name: str) -> type[Method]:
    """The class registered under `name`; another package cannot take a built-in name.

    Raises:
        UnknownMethodError: no such name, or the package that announced it cannot provide it.
    """
    if name in BUILT_IN:
        cls: type[Method] = resolve_name(BUILT_IN[name])
        return cls
    if name in VISION_TRANSFORMS:
        raise UnknownMethodError(_about_transform(name))
    if name in announced():
        return _load(announced()[name])
    known = list_methods()
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UnknownMethodError(f"unknown method {name!r}{hint} Known methods: {', '.join(known)}")


def create_method(name: str, **parameters: Any) -> Method:
    """The method registered under `name` with these parameters.

    Raises:
        UnknownMethodError: as for `method_class`.
        UnknownParameterError, BadParameterError: parameters that the method does not have or accept.
    """
    return method_class(name).from_dict(parameters)


def method_from_dict(data: dict[str, Any]) -> Method:
    """Inverse of `Method.to_dict` for any registered method.

    Raises:
        BadParameterError: `data` names no method. Other errors as for `create_method`.
    """
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        raise BadParameterError(f'expected {{"method": name, parameter: value, ...}}, got {data!r}')
    return method_class(data["method"]).from_dict(data)


def load_methods() -> dict[str, type[Method]]:
    """The class of every registered method by name, without those that `broken_methods` explains."""
    return _load_all()[0]


def broken_methods() -> list[str]:
    """One message per registered method that cannot be loaded: its name, its package and the reason."""
    return _load_all()[1]


def default_methods() -> dict[str, Method]:
    """By name, with default parameters, each method that changes something without more parameters."""
    found = {}
    for name, cls in load_methods().items():
        try:
            method = cls()
        except RegazeError:  # a parameter without a default
            continue
        if not method.is_identity:
            found[name] = method
    return found


@cache
def announced() -> dict[str, EntryPoint]:
    """Entry points of other packages by name, read from the installed packages once per process."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _load_all() -> tuple[dict[str, type[Method]], list[str]]:
    classes, reasons = {}, []
    for name in list_methods():
        try:
            classes[name] = method_class(name)
        except UnknownMethodError as error:
            reasons.append(str(error))
    return classes, reasons


def _load(entry: EntryPoint) -> type[Method]:
    """The class that an entry point announces, checked."""
    from regaze.interventions.base import Method  # here, so that listing names does not import torch

    what = f"method {entry.name!r} ({entry.value}"
    what += f", package {entry.dist.name})" if entry.dist else ")"
    try:
        cls = entry.load()
    except Exception as error:  # another package's import can fail in any way
        raise UnknownMethodError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UnknownMethodError(
            f"{what} is not a subclass of regaze.interventions.Intervention or MultiPassMethod"
        )
    if cls.name != entry.name:
        raise UnknownMethodError(f"{what} calls itself {cls.name!r}; both names must be the same")
    return cls


def _about_transform(name: str) -> str:
    module, _, cls = VISION_TRANSFORMS[name].partition(":")
    return (
        f"{name!r} is not a method for multimodal models: it transforms a vision model used "
        f"alone. In Python: `from {module} import {cls}`, then `with {cls}().applied(vision_model): ...`"
    )
