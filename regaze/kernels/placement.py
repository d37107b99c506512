"""Placement: frozen bundles of tensors that layers on several devices share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from regaze.caching import cached_property

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class Placeable:
    """Base of a frozen dataclass whose fields are tensors, further such bundles, or plain numbers."""

    @cached_property
    def _elsewhere(self) -> dict[torch.device, Any]:
        """Copies by device; None where everything is there already (itself would be a cycle)."""
        return {}

    def to(self, device: torch.device) -> Self:
        """The same on a device: itself where everything is there, else a copy, made once per device.

        Parts that several bundles share are copied once, too. The copy waits for no accelerator. Tensors that
        are being learned are copied anew in each call, since each belongs to a graph of its own.
        """
        if device in self._elsewhere:
            known: Self | None = self._elsewhere[device]
            return self if known is None else known
        held = _tensors(self, [])
        if all(tensor.device == device for tensor in held):
            self._elsewhere[device] = None
            return self
        if any(tensor.requires_grad for tensor in held):
            return _copied(self, device)
        with torch.inference_mode(False):  # stored for later calls
            copied = self._elsewhere[device] = _copied(self, device)
        return copied


def place(value: T, device: torch.device) -> T:
    """A tensor, a bundle or a tuple of these on a device; anything else as it is."""
    if isinstance(value, Tensor):
        # From the host an asynchronous copy is safe, also of pageable memory; to the host it is not.
        moved: Any = value if value.device == device else value.to(device, non_blocking=device.type != "cpu")
    elif isinstance(value, Placeable):
        moved = value.to(device)
    elif isinstance(value, tuple):
        moved = tuple(place(part, device) for part in value)
    else:
        moved = value
    return moved


def _find_names(kind: Any) -> tuple[str, ...]:
    assert is_dataclass(kind)
    return tuple(field.name for field in fields(kind) if field.init)


#: Names of the fields of a bundle, by its class.
_names: Callable[[Any], tuple[str, ...]] = lru_cache(maxsize=64)(_find_names)


def _copied(bundle: Any, device: torch.device) -> Any:
    return replace(bundle, **{name: place(getattr(bundle, name), device) for name in _names(type(bundle))})


def _tensors(value: Any, found: list[Tensor]) -> list[Tensor]:
    """All tensors of a bundle, added to those that were found. It runs for every edit of every layer."""
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, Placeable):
        for name in _names(type(value)):
            if (part := getattr(value, name)) is not None:
                _tensors(part, found)
    elif isinstance(value, tuple):
        for part in value:
            _tensors(part, found)
    return found
