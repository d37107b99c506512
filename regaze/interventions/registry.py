"""Methods by name: the built-in ones, and those that other packages announce as entry points.

Listing names imports no method. A third party registers with

    [project.entry-points."regaze.interventions"]
    mymethod = "my_package.module:MyMethod"
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from regaze.errors import BadParameterError, RegazeError, UnknownMethodError
from regaze.interventions.method_files import load_from_file, names_file
from regaze.names import known_name, suggestion

if TYPE_CHECKING:
    from regaze.interventions.base import Method

#: Where each built-in method is defined, by its registered name.
BUILT_IN: dict[str, str] = {
    "adhh": "regaze.interventions.adhh:ADHH",
    "agla": "regaze.interventions.agla:AGLA",
    "attnreal": "regaze.interventions.attnreal:AttnReal",
    "avisc": "regaze.interventions.avisc:AvisC",
    "cai": "regaze.interventions.cai:CAI",
    "carve": "regaze.interventions.carve:CARVE",
    "causalmm": "regaze.interventions.causalmm:CausalMM",
    "damro": "regaze.interventions.damro:DAMRO",
    "deco": "regaze.interventions.deco:DeCo",
    "degf": "regaze.interventions.degf:DeGF",
    "dola": "regaze.interventions.dola:DoLa",
    "eah": "regaze.interventions.eah:EAH",
    "farsight": "regaze.interventions.farsight:FarSight",
    "fastv": "regaze.interventions.pruning:FastV",
    "flb": "regaze.interventions.flb:FLB",
    "gift": "regaze.interventions.gift:GIFT",
    "halc": "regaze.interventions.halc:HALC",
    "hgai": "regaze.interventions.hgai:HGAI",
    "icd": "regaze.interventions.icd:ICD",
    "ict": "regaze.interventions.ict:ICT",
    "ilvad": "regaze.interventions.ilvad:ILVAD",
    "knockout": "regaze.interventions.knockout:HeadKnockout",
    "m3id": "regaze.interventions.m3id:M3ID",
    "marine": "regaze.interventions.marine:MARINE",
    "memvr": "regaze.interventions.memvr:MemVR",
    "mma": "regaze.interventions.mma:MMA",
    "moa": "regaze.interventions.moa:MoA",
    "nullu": "regaze.interventions.nullu:Nullu",
    "only": "regaze.interventions.only:ONLY",
    "opera": "regaze.interventions.opera:OPERA",
    "pai": "regaze.interventions.pai:PAI",
    "paint": "regaze.interventions.paint:PAINT",
    "pti": "regaze.interventions.pti:PTI",
    "pyramiddrop": "regaze.interventions.pruning:PyramidDrop",
    "ritual": "regaze.interventions.ritual:RITUAL",
    "sid": "regaze.interventions.sid:SID",
    "sparc": "regaze.interventions.sparc:SPARC",
    "sparsevlm": "regaze.interventions.pruning:SparseVLM",
    "spin": "regaze.interventions.spin:SPIN",
    "vaf": "regaze.interventions.vaf:VAF",
    "var": "regaze.interventions.var:VAR",
    "vcd": "regaze.interventions.vcd:VCD",
    "vhr": "regaze.interventions.vhr:VHR",
    "vista": "regaze.interventions.vista:VISTA",
    "vti": "regaze.interventions.vti:VTI",
}
#: Controls: what a method has to beat. They are made and used like methods, and listed apart.
CONTROLS: dict[str, str] = {
    "drop-last-sentence": "regaze.interventions.controls:DropLastSentence",
    "near-tie": "regaze.interventions.controls:NearTie",
    "plausibility-cut": "regaze.interventions.controls:PlausibilityCut",
    "prefer-yes": "regaze.interventions.controls:PreferYes",
    "random-boxes": "regaze.interventions.controls:RandomBoxes",
    "random-direction": "regaze.interventions.controls:RandomDirection",
    "random-heads": "regaze.interventions.controls:RandomHeads",
    "random-source": "regaze.interventions.controls:RandomSource",
    "random-objects": "regaze.interventions.controls:RandomObjects",
    "random-tokens": "regaze.interventions.controls:RandomTokens",
    "sharpen": "regaze.interventions.controls:Sharpen",
    "stop-after": "regaze.interventions.controls:StopAfter",
    "uniform-columns": "regaze.interventions.controls:UniformColumns",
    "uniform-sink": "regaze.interventions.controls:UniformSink",
    "yes-offset": "regaze.interventions.controls:YesOffset",
}
#: Transforms of a vision model used alone. Neither `gaze.using` nor `gaze.ask` takes them.
VISION_TRANSFORMS: dict[str, str] = {"evit": "regaze.interventions.evit:EViT"}

ENTRY_POINT_GROUP = "regaze.interventions"


def list_methods() -> list[str]:
    """All registered methods in alphabetical order; whether an entry point can be imported is not tried."""
    return sorted({*BUILT_IN, *announced()} - {*CONTROLS})


def list_controls() -> list[str]:
    """The names of all controls, in alphabetical order. Names that are taken here, no method can take."""
    return sorted(CONTROLS)


def registered_name(text: str) -> str:
    """The method or control that a text names in any spelling; the text itself where there is none."""
    return known_name(text, [*CONTROLS, *list_methods()])


def method_class(name: str) -> type[Method]:
    """The method or control registered under `name`; another package cannot take a built-in name.

    Args:
        name: a registered name in any capitals, or a file and a class in it: "path/to/file.py:Class".

    Raises:
        UnknownMethodError: no such name, or the package or file that it is in cannot provide it.
        InputError: a file that cannot be read.
    """
    name = registered_name(name)
    if (path := BUILT_IN.get(name) or CONTROLS.get(name)) is not None:
        cls: type[Method] = resolve_name(path)
        return cls
    if name in VISION_TRANSFORMS:
        raise UnknownMethodError(_about_transform(name))
    if name in announced():
        return _load(announced()[name])
    if names_file(name):
        return _with_parameters(load_from_file(name), name)
    raise UnknownMethodError(
        f"unknown method {name!r}{suggestion(name, [*list_methods(), *list_controls()])}"
    )


def create_method(name: str, **parameters: Any) -> Method:
    """The method registered under `name` with these parameters.

    Raises:
        UnknownMethodError: as for `method_class`.
        UnknownParameterError, BadParameterError: parameters that the method does not have or accept; of
            another package's method, whatever its constructor raises.
    """
    return _make(name, parameters)


def method_from_dict(data: dict[str, Any]) -> Method:
    """Inverse of `Method.to_dict` for any registered method.

    Raises:
        BadParameterError: `data` names no method. Other errors as for `create_method`.
    """
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        raise BadParameterError(f'expected {{"method": name, parameter: value, ...}}, got {data!r}')
    return _make(data["method"], data)


def load_methods() -> dict[str, type[Method]]:
    """The class of every registered method by name, without those that `broken_methods` explains."""
    return _load_all()[0]


def broken_methods() -> list[str]:
    """One message per registered method that cannot be loaded: its name, its package and the reason."""
    return _load_all()[1]


def default_methods(report: Callable[[str], None] = lambda reason: None) -> dict[str, Method]:
    """By name, with default parameters, each method that changes something without more parameters.

    Args:
        report: called with a message for each method of another package that cannot be loaded or made.
    """
    found = {}
    for name in list_methods():
        try:
            method = _make(name, {})
        except RegazeError as error:
            if name not in BUILT_IN:  # of those that are: a parameter without a default
                report(str(error))
            continue
        if not method.is_identity and not method.lacks:
            found[name] = method
    return found


def lacking_methods() -> dict[str, str]:
    """By name, what has to be given to each built-in method that `default_methods` leaves out for it."""
    found = {name: method_class(name)().lacks for name in BUILT_IN}
    return {name: lacks for name, lacks in found.items() if lacks}


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

    what = _describe(entry)
    try:
        loaded: Any = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # another package's import can fail in any way, by sys.exit too
        raise UnknownMethodError(f"{what} cannot be imported: {_one_line(error)}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise UnknownMethodError(
            f"{what} is not a subclass of regaze.interventions.Intervention or MultiPassMethod"
        )
    cls: Any = loaded
    if cls.name != entry.name:
        raise UnknownMethodError(f"{what} calls itself {cls.name!r}; both names must be the same")
    return _with_parameters(cls, what)


def _with_parameters(cls: Any, what: str) -> type[Method]:
    """The class, if its parameters can be read."""
    from regaze.interventions.parameters import parameters_of

    try:
        parameters_of(cls)
    except Exception as error:
        raise UnknownMethodError(f"{what} has parameters that cannot be read: {_one_line(error)}") from error
    return cls


def _make(name: str, data: dict[str, Any]) -> Method:
    """The method from its parameters; of another package's, any error in one line."""
    name = registered_name(name)
    cls = method_class(name)
    try:
        method = cls.from_dict(data)
        _ = method.is_identity  # may be code of the package, and is asked for soon
    except (KeyboardInterrupt, RegazeError):
        raise
    except BaseException as error:
        if name in BUILT_IN or name in CONTROLS:
            raise
        what = _describe(announced()[name]) if name in announced() else name
        raise BadParameterError(f"{what} cannot be made: {_one_line(error)}") from error
    return method


def _describe(entry: EntryPoint) -> str:
    package = f", package {entry.dist.name}" if entry.dist else ""
    return f"method {entry.name!r} ({entry.value}{package})"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _about_transform(name: str) -> str:
    module, _, cls = VISION_TRANSFORMS[name].partition(":")
    return (
        f"{name!r} is not a method for multimodal models: it transforms a vision model used "
        f"alone. In Python: `from {module} import {cls}`, then `with {cls}().applied(vision_model): ...`"
    )
