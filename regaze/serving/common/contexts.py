"""`ServedContext`: the context of one request, which is one of the contexts of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from regaze.errors import InputError
from regaze.interventions.base import Intervention
from regaze.toolkit.model.callback import Callback, overrides
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import MAIN, Branch


class LayerLogits(Protocol):
    """Reads logits from hidden states, where the model is.

    Attributes:
        tied: input and output embeddings are one matrix.
    """

    tied: bool

    def read(self, hidden: Tensor, normalise: bool = True) -> Tensor:
        """Residual stream [..., D] to logits [..., V]."""


class ServedContext(Context):
    """One context of a prompt: the user's own, or a second one, each of which is a request of its own.

    Under transformers the contexts of a prompt are rows of one batch; here each has a batch of one row.
    `logits` has those of all, where they are known: when the engine has run the last rows of all of them.

    Attributes:
        name: of this one. names: of all contexts of the prompt, the user's first.
        layer_logits_reader: of the model; None where there is none, at admission.
    """

    layer_logits_reader: LayerLogits | None = None
    name: str = MAIN
    names: Sequence[str] = (MAIN,)
    _known: Mapping[str, Tensor] | None = None
    _values: Mapping[tuple[int, int], Tensor] = MappingProxyType({})

    def branches(self) -> dict[str, Branch]:
        """The second contexts of the user's, as the callbacks want them."""
        found: dict[str, Branch] = {}
        for callback in self.callbacks:
            for name, branch in callback.branches(self).items():
                found.setdefault(name, branch)
        self.names = (MAIN, *found)
        return found

    def learned(self) -> list[dict[Any, Any]]:
        """What callbacks have stored so far, in their order."""
        return deepcopy([self.state(callback) for callback in self.callbacks if not callback.records])

    def become(self, name: str, names: Sequence[str], learned: Sequence[Mapping[Any, Any]]) -> None:
        """Be one of these contexts, as if `branches` had been called here, which stored `learned`."""
        self.name, self.names = name, tuple(names)
        acting = [callback for callback in self.callbacks if not callback.records]
        for callback, state in zip(acting, deepcopy(list(learned)), strict=True):
            self.state(callback).update(state)

    @property
    def has_branches(self) -> bool:
        return len(self.names) > 1

    def rows(self, branch: str = MAIN) -> slice:
        return slice(0, 1 if branch == self.name else 0)

    def logits(self, branch: str = MAIN) -> Tensor:
        if self._known is None:
            raise InputError("logits exist only at the end of a forward, in `combine_logits`")
        return self._known[branch]

    def row_values(self, callback: Callback, layer: int) -> Tensor:
        if (id(callback), layer) not in self._values:
            raise InputError(
                f"values of rows in layer {layer} are available only at prefill while that layer runs, to "
                "callbacks that set `needs_hidden_states` and override `row_value`"
            )
        return self._values[id(callback), layer]

    def set_row_values(self, values: Mapping[tuple[int, int], Tensor]) -> None:
        """`values` [1, L], by the id of the callback that reads them and by the layer, which runs."""
        self._values = values

    def clear_layer_input(self) -> None:
        super().clear_layer_input()
        self._values = MappingProxyType({})

    @property
    def head_is_tied(self) -> bool:
        if self.layer_logits_reader is not None:
            return self.layer_logits_reader.tied
        return bool(getattr(self.config, "tie_word_embeddings", False))

    def read_logits(self, hidden: Tensor, normalise: bool = True) -> Tensor:
        if self.layer_logits_reader is None:
            raise InputError(
                "logits of layers exist where the model runs, if its last norm was found: its log has more"
            )
        return self.layer_logits_reader.read(hidden, normalise)

    @contextmanager
    def knowing(self, logits: Mapping[str, Tensor]) -> Iterator[None]:
        """`logits` [1, 1, V] of all contexts are available in the block."""
        self._known = logits
        try:
            yield
        finally:
            self._known = None


def acting(methods: Sequence[Intervention], text_config: Any) -> tuple[Callback, ...]:
    """The callbacks of methods in a language model, recordings last."""
    callbacks = [method.for_model(text_config) for method in methods]
    return tuple(sorted(callbacks, key=lambda callback: callback.records))


def has_second(callback: Callback) -> bool:
    """Whether a callback may have second contexts."""
    return overrides(callback, "branches") and "branches" not in callback.inactive


def combines(callback: Callback) -> bool:
    """Whether a callback may change logits."""
    return overrides(callback, "combine_logits") and "combine_logits" not in callback.inactive
