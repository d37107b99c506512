"""Names of interventions: the built-in ones, and those that other packages announce as entry points.

A third party registers with

    [project.entry-points."regaze.interventions"]
    mymethod = "my_package.module:MyMethod"
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from regaze.errors import BadParameterError, RegazeError, UnknownMethodError
from regaze.interventions.adhh.method import ADHH
from regaze.interventions.agla.method import AGLA
from regaze.interventions.avisc import AvisC
from regaze.interventions.base import Method
from regaze.interventions.carve.method import CARVE
from regaze.interventions.damro import DAMRO
from regaze.interventions.dola import DoLa
from regaze.interventions.evit.method import EViT
from regaze.interventions.gift.method import GIFT
from regaze.interventions.hgai import HGAI
from regaze.interventions.icd import ICD
from regaze.interventions.knockout import HeadKnockout
from regaze.interventions.m3id import M3ID
from regaze.interventions.mma.method import MMA
from regaze.interventions.moa.method import MoA
from regaze.interventions.opera.method import OPERA
from regaze.interventions.pai import PAI
from regaze.interventions.paint.method import PAINT
from regaze.interventions.sparc import SPARC
from regaze.interventions.vaf import VAF
from regaze.interventions.var import VAR
from regaze.interventions.vcd.method import VCD
from regaze.interventions.vista import VISTA

BUILT_IN: tuple[type[Method], ...] = (
    ADHH,
    AGLA,
    AvisC,
    CARVE,
    DAMRO,
    DoLa,
    EViT,
    GIFT,
    HGAI,
    ICD,
    HeadKnockout,
    M3ID,
    MMA,
    MoA,
    OPERA,
    PAI,
    PAINT,
    SPARC,
    VAF,
    VAR,
    VCD,
    VISTA,
)
GROUP = "regaze.interventions"


def methods() -> dict[str, type[Method]]:
    """Every usable intervention by name; `failures` has the reasons why others are left out."""
    return _survey()[0]


def failures() -> list[str]:
    """For each announced intervention that cannot be used: its name, its package and the reason."""
    return _survey()[1]


def find(name: str) -> type[Method]:
    """The intervention of this name; a built-in name cannot be taken by another package.

    Raises:
        UnknownMethodError: no such name, or the package that announced it cannot provide it.
    """
    announced = _announced()
    if name in announced:
        return _load(announced[name])
    close = difflib.get_close_matches(name, announced, 1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UnknownMethodError(f"unknown method {name!r}{hint} Known methods: {', '.join(announced)}")


def usable_alone(cls: type[Method]) -> bool:
    """Whether the method does something with its default parameters: no head list or file to be given."""
    try:
        return not cls().is_identity
    except RegazeError:
        return False


def create(name: str, **parameters: Any) -> Method:
    """An intervention by name.

    Raises:
        UnknownMethodError: as `find`. UnknownParameterError, BadParameterError: misfits.
    """
    return find(name).from_dict(parameters)


def from_dict(data: dict[str, Any]) -> Method:
    """The intervention that `to_dict` described.

    Raises:
        BadParameterError: names no method. UnknownMethodError, UnknownParameterError: as for `create`.
    """
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        raise BadParameterError(f'expected {{"method": name, parameter: value, ...}}, got {data!r}')
    return find(data["method"]).from_dict(data)


def _announced() -> dict[str, type[Method] | EntryPoint]:
    """Built-in classes and other packages' entry points, by name; nothing is imported."""
    found: dict[str, type[Method] | EntryPoint] = {}
    found.update({entry.name: entry for entry in entry_points(group=GROUP)})
    found.update({method.name: method for method in BUILT_IN})
    return dict(sorted(found.items()))


def _survey() -> tuple[dict[str, type[Method]], list[str]]:
    usable, reasons = {}, []
    for name, announced in _announced().items():
        try:
            usable[name] = _load(announced)
        except UnknownMethodError as error:
            reasons.append(str(error))
    return usable, reasons


def _load(announced: type[Method] | EntryPoint) -> type[Method]:
    if not isinstance(announced, EntryPoint):
        return announced
    what = f"method {announced.name!r} ({announced.value}"
    what += f", package {announced.dist.name})" if announced.dist else ")"
    try:
        cls = announced.load()
    except Exception as error:  # another package's import can fail in any way
        raise UnknownMethodError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UnknownMethodError(
            f"{what} is not a subclass of regaze.interventions.Intervention or MultiPassMethod"
        )
    if cls.name != announced.name:
        raise UnknownMethodError(f"{what} calls itself {cls.name!r}; both names must be the same")
    return cls
