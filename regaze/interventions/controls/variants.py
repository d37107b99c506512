"""An instance of a method whose class has some behaviour on top."""

from __future__ import annotations

from functools import cache
from typing import Any

from regaze.interventions.base import Intervention


def with_behaviour(method: Intervention, behaviour: type[Intervention], **attributes: Any) -> Intervention:
    """The method with what `behaviour` overrides; what that calls by `super()` is the method's own.

    Args:
        attributes: of the new instance, besides the method's parameters.
    """
    classes: Any = behaviour, type(method)
    new: Intervention = object.__new__(_subclass(*classes))
    new.__dict__.update({**method.__dict__, **attributes})
    return new


@cache
def _subclass(behaviour: Any, cls: Any) -> type[Intervention]:
    return type(f"{behaviour.__name__.lstrip('_')}{cls.__name__}", (behaviour, cls), {})
