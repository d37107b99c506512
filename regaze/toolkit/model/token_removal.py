"""Hooks of a prompt's forward in which tokens leave the hidden states between two layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regaze.errors import CompositionError, UnsupportedModelError
from regaze.kernels import KeptTokens, LeavingTokens, Stats, StatsRequest
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context, LookedAhead


class TokenRemoval:
    """Asks callbacks before each layer which tokens leave, and gives the layers the others alone.

    After the last layer, hidden states have all rows again, with 0 in those that have left.

    Args:
        callbacks: those with `leaving`.
    """

    def __init__(self, context: Context, callbacks: Sequence[Callback]):
        self._context, self._callbacks = context, callbacks
        self._by: Callback | None = None  # whose tokens have left
        self._known: dict[tuple[int, int], tuple[Tensor, KeptTokens, Tensor]] = {}  # what was selected

    def before(self, number: int) -> Callable[..., Any]:
        """The hook before a layer, with keyword arguments."""
        return partial(self._enter, number)

    def after(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The hook after the last layer."""
        last = self._context.num_layers - 1
        if isinstance(output, tuple):
            return (self._context.whole(last, output[0]), *output[1:])
        return self._context.whole(last, output)

    def _enter(self, number: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        context, arguments = self._context, compat.layer_arguments(layer, args, kwargs)
        hidden = arguments["hidden_states"]
        context.device = hidden.device
        before = context.kept(number, hidden.device)
        now = arguments if before is None else self._arguments(number, layer, arguments)
        outside, context.look_ahead = context.look_ahead, partial(self._look_ahead, layer, now)
        try:
            leaving = self._leaving(number)
        finally:
            context.look_ahead = outside  # the arguments are not held any longer
        if leaving is not None:
            who = type(self._by).__name__
            compat.check_tokens_can_leave(context.model, number, context.self_layers, arguments, who)
            context.remove(number, leaving)
            now = self._arguments(number, layer, arguments)
            kept = context.kept(number, hidden.device)
            assert kept is not None
            now["hidden_states"] = kept.narrow(hidden, before)
        if now is arguments:
            return None
        first = (now.pop("hidden_states"),) if args else ()
        return first, now

    def _leaving(self, number: int) -> LeavingTokens | None:
        found = None
        for callback in self._callbacks:
            leaving = callback.leaving(number, self._context)
            if leaving is None:
                continue
            if self._by not in (None, callback):
                names = " and ".join(type(each).__name__ for each in (self._by, callback))
                raise CompositionError(
                    f"{names}: each removes tokens, and chooses among those that the other has left; use one "
                    "of them, or let one hide them (remove=False)"
                )
            self._by, found = callback, leaving
        return found

    def _arguments(self, number: int, layer: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a layer for its tokens. Layers share most of them, which are selected once."""
        context = self._context

        def select(tensor: Tensor, axis: int) -> Tensor:
            kept = context.kept(number, tensor.device)
            assert kept is not None
            key = id(tensor), id(kept)
            if key not in self._known:
                self._known[key] = tensor, kept, kept.select_behind(tensor, axis)
            return self._known[key][2]

        return compat.for_tokens(layer, arguments, select, context.prompt_length)

    def _look_ahead(self, layer: nn.Module, arguments: Mapping[str, Any], request: StatsRequest) -> Stats:
        """See `Context.look_ahead`: the layer runs up to its attention, and fills no cache."""
        self._context.asked_ahead = request
        try:
            with torch.no_grad():
                layer.forward(**compat.without_own_cache(arguments))
        except LookedAhead as ended:
            return ended.stats
        finally:
            self._context.asked_ahead = None
        raise UnsupportedModelError(f"{type(layer).__name__} has no attention that could be measured")


def with_all_tokens(output: Any, context: Context) -> None:
    """Give the hidden states that a forward returns rows for all tokens of the prompt."""
    if context.kept_tokens is None or context.step:
        return
    states = None if isinstance(output, tuple) else output.get("hidden_states")
    if states is None:
        return
    output["hidden_states"] = tuple(
        state if state is None or not 0 < number < context.num_layers else context.whole(number - 1, state)
        for number, state in enumerate(states)
    )
