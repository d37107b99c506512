"""The forward hooks of modules, as torch keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

#: Where a hook function keeps its owner, so that it is found even if its handle was lost to an interrupt.
_OWNER = "_regaze_owner"
_TEMPORARY = "temporary"


def owned(hook: Callable[..., Any], owner: object) -> Callable[..., Any]:
    """The hook function, which `remove_hooks` finds by its owner."""
    setattr(hook, _OWNER, owner)
    return hook


def remove_hooks(model: nn.Module, *owners: object) -> None:
    """Remove from all modules the hooks of `owners` (or that are their methods), and temporary ones."""

    def belongs(hook: Any) -> bool:
        owner = getattr(hook, _OWNER, getattr(hook, "__self__", None))
        return owner is _TEMPORARY or any(owner is each for each in owners)

    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number, hook in hooks.items() if belongs(hook)] if hooks else ():
                del hooks[number]
                for flags in (
                    module._forward_pre_hooks_with_kwargs,
                    module._forward_hooks_with_kwargs,
                    module._forward_hooks_always_called,
                ):
                    flags.pop(number, None)


@contextmanager
def temporary_hooks(
    pre_hooks: Sequence[tuple[nn.Module, Callable[..., Any]]],
    hooks: Sequence[tuple[nn.Module, Callable[..., Any]]] = (),
) -> Iterator[None]:
    """Forward pre-hooks, with keyword arguments, and forward hooks that exist inside the block."""
    handles: list[Any] = []
    try:
        for module, hook in hooks:
            handles.append(module.register_forward_hook(owned(hook, _TEMPORARY)))
        for module, hook in pre_hooks:
            handles.append(module.register_forward_pre_hook(owned(hook, _TEMPORARY), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
