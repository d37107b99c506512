"""`Session`: one open `using` or `recording` block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regaze.toolkit.model.callback import Callback
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.prompts.token_map import TokenMap


@dataclass(eq=False)
class Session:
    """What one open block brings to every forward of its model.

    Attributes:
        callbacks: in the order in which they act.
        tokens: roles that the user gave for the prompts of the block; None: they are read.
        read_tokens: reads roles from the arguments of a forward and a mask [B, L].
        reader: renders and reads prompts of this model.
    """

    callbacks: tuple[Callback, ...]
    tokens: TokenMap | None = None
    read_tokens: Callable[[Mapping[str, Any], Tensor | None], TokenMap] | None = None
    reader: PromptReader | None = None

    @property
    def records(self) -> bool:
        return any(callback.records for callback in self.callbacks)
