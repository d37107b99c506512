"""The forward hooks of modules, as torch keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def remove_hooks(model: nn.Module, chosen: Callable[[Any], bool]) -> None:
    """Remove the hook functions for which `chosen` is true from all modules, also without their handles."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number, hook in hooks.items() if chosen(hook)] if hooks else ():
                del hooks[number]
                for flags in (
                    module._forward_pre_hooks_with_kwargs,
                    module._forward_hooks_with_kwargs,
                    module._forward_hooks_always_called,
                ):
                    flags.pop(number, None)
