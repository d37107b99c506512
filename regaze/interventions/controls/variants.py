"""An instance of a method whose class has some behaviour on top."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from regaze.interventions.base import Method

M = TypeVar("M", bound=Method)


def with_behaviour(method: M, behaviour: type[Method], **attributes: Any) -> M:
    """The method with what `behaviour` overrides; what that calls by `super()` is the method's own.

    Args:
        attributes: of the new instance, besides the method's parameters.
    """
    classes: Any = behaviour, type(method)
    new: M = object.__new__(_subclass(*classes))
    new.__dict__.update({**method.__dict__, **attributes})
    return new


@cache
def _subclass(behaviour: Any, cls: Any) -> type[Any]:
    return type(f"{behaviour.__name__.lstrip('_')}{cls.__name__}", (behaviour, cls), {})
