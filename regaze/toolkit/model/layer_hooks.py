"""Hooks on the layers of a model that exist for one forward only.

Permanent hooks on every layer would cost a decode step as much as an edit does. These are installed when a
forward begins that needs them, and removed when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regaze.errors import CompositionError, UnsupportedModelError
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import overrides
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.own_thread import OwnThread
from regaze.toolkit.model.shared_layer import SharedLayer, complete_rows
from regaze.toolkit.model.token_removal import TokenRemoval
from regaze.toolkit.model.vision import tower_mlps

#: Methods of a callback that edit what a part of a layer gives, and what they do.
_EDITS = {
    "edit_mlp": "edits the outputs of MLPs",
    "edit_attention_output": "edits the outputs of attention",
    "edit_vision_mlp": "edits the outputs of the vision tower's MLPs",
}
#: The callback that has such a method, by its name.
_Editors = Mapping[str, Any]


class LayerHooks:
    """What one forward of `model` needs beside its attention: inputs of layers, outputs of MLPs."""

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, thread: OwnThread):
        self.model, self._thread = model, thread
        self._width = compat.hidden_width(model)
        self._handles: list[Any] = []
        self._kind = ""

    def start(self, context: Context) -> str:
        """Install the hooks of the forward that begins, and say what they do; "" where there are none.

        Raises:
            CompositionError: two callbacks edit the same outputs. UnsupportedModelError: the layers have no
                MLP whose output could be edited, or the model runs no vision tower. Hooks raise it where a
                layer has several residual streams.
        """
        self.stop()  # those of a forward that was interrupted from the keyboard
        editors = _editors(context)
        if context.step > 0 and not context.captured_layers and not editors:
            return ""
        readers = [] if context.step else [p for p in context.callbacks if p.needs_hidden_states]
        gain = None if context.step else context.embedding_gain()
        features = None if context.step else context.feature_gain()
        removers = [] if context.step else [p for p in context.callbacks if overrides(p, "leaving")]
        removers = [p for p in removers if "leaving" not in p.inactive]
        numbers = range(-1, -1 if context.step else context.num_layers)
        shared = [number for number in numbers if context.rows_in(number) < context.batch]
        self._kind = _described(readers, editors, removers, context, gain is not None, bool(shared))
        if removers:  # first: the others see what the layers are given
            self._remove_tokens(removers, context)
        if readers:
            for number, layer in enumerate(compat.decoder_layers(self.model)):
                self._before(layer, _set_input(context, number, self._width))
        for number in context.captured_layers:
            layers = compat.decoder_layers(self.model)
            if number == len(layers):
                self._after(layers[-1], _capture_output(context, number, self._width))
            else:
                self._before(layers[number], _capture_input(context, number, self._width))
        if "edit_mlp" in editors:
            self._edit("edit_mlp", editors, _decoder_mlps(self.model), context)
        if "edit_attention_output" in editors:
            self._edit("edit_attention_output", editors, compat.output_projections(self.model), context)
        if "edit_vision_mlp" in editors:
            self._edit("edit_vision_mlp", editors, tower_mlps(self.model), context)
        if shared and context.embedded_rows < context.batch:
            self._before(self.model.get_decoder(), complete_rows(context))
        if gain is not None:
            self._before(self.model.get_decoder(), _scale_embeddings(gain))
        if features is not None:
            self._before(_projector(self.model), _scale_features(features))
        for number in shared[1:]:  # last: the others see the rows of all contexts
            layer, hooks = compat.decoder_layers(self.model)[number], SharedLayer(context, number)
            self._before(layer, hooks.before)
            self._after(layer, hooks.after)
        return self._kind

    def _remove_tokens(self, callbacks: list[Any], context: Context) -> None:
        layers = compat.decoder_layers(self.model)[: context.num_layers]
        removal = TokenRemoval(context, callbacks)
        for number, layer in enumerate(layers[1:], 1):
            self._before(layer, removal.before(number))
        self._after(layers[-1], removal.after)

    def stop(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _edit(
        self, kind: str, editors: _Editors, modules: Iterable[nn.Module | None], context: Context
    ) -> None:
        """Hand the output of each module to the callback that has a method `kind`."""
        edit = getattr(editors[kind], kind)
        make = _edit_output if "vision" in kind else _edit_rows
        for number, module in enumerate(modules):
            if module is not None:
                self._after(module, make(edit, number, context))

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._handles.append(module.register_forward_pre_hook(self._owned(hook), with_kwargs=True))

    def _after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._handles.append(module.register_forward_hook(self._owned(hook)))

    def _owned(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook, which refuses other threads."""
        return compat.owned(_hook_class(self._kind)(self._thread, hook), self)


class _Hook:
    """A hook that only the block's own thread may run."""

    def __init__(self, thread: OwnThread, hook: Callable[..., Any]):
        self._thread, self._hook = thread, hook

    def run(self, *args: Any) -> Any:
        self._thread.check()
        return self._hook(*args)


@lru_cache(maxsize=64)
def _hook_class(reason: str) -> type[Any]:
    """Hooks that torch.compile leaves outside of graphs, and why: they are other ones in each forward."""
    return type("Hook", (_Hook,), {"__call__": torch.compiler.disable(_Hook.run, reason=reason)})


def _editors(context: Context) -> _Editors:
    """The callback that edits outputs in the forward that begins, by the method that does it.

    A vision tower runs where a forward is given pixels, which no decode step is.
    """
    if context.layer_editors is None:  # worked out once: a decode step of a small model takes a millisecond
        found = {
            kind: tuple(p for p in context.callbacks if overrides(p, kind) and kind not in p.inactive)
            for kind in _EDITS
        }
        for kind, who in found.items():
            if len(who) > 1:
                names = " and ".join(type(callback).__name__ for callback in who)
                raise CompositionError(
                    f"{names}: each {_EDITS[kind]}, and what comes out would depend on their order"
                )
        context.layer_editors = {kind: who[0] for kind, who in found.items() if who}
    if not context.layer_editors:
        return context.layer_editors
    sees = context.step == 0 or context.fed > 1
    return {
        kind: callback for kind, callback in context.layer_editors.items() if sees or "vision" not in kind
    }


def _decoder_mlps(model: PreTrainedModel) -> list[nn.Module]:
    layers = compat.decoder_layers(model)
    mlps = [compat.mlp_of(layer) for layer in layers]
    for layer, mlp in zip(layers, mlps, strict=True):
        if mlp is None:
            raise UnsupportedModelError(f"{type(layer).__name__} has no `mlp` whose output could be edited")
    return [mlp for mlp in mlps if mlp is not None]


def _described(
    readers: list[Any],
    editors: _Editors,
    removers: list[Any],
    context: Context,
    embeddings: bool,
    shared: bool,
) -> str:
    """What the hooks of a forward are for, by the names of the callbacks."""
    kinds = {"reads the inputs of layers": readers, "removes tokens between layers": removers}
    kinds |= {_EDITS[kind]: [callback] for kind, callback in editors.items()}
    said = [f"{', '.join(type(p).__name__ for p in who)} {what}" for what, who in kinds.items() if who]
    if context.captured_layers:
        said.append(f"{', '.join(context.capturing)} keeps the inputs of layers {context.captured_layers}")
    said += ["a branch scales embeddings"] if embeddings else []
    said += ["a branch begins in a later layer"] if shared else []
    return "; ".join(said)


def _layer_input(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], width: int | None
) -> Tensor:
    return compat.residual(layer, args[0] if args else kwargs["hidden_states"], width)


def _set_input(context: Context, number: int, width: int | None) -> Callable[..., None]:
    def set_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        context.set_layer_input(number, _layer_input(module, args, kwargs, width))

    return set_input


def _capture_input(context: Context, number: int, width: int | None) -> Callable[..., None]:
    def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        context.store_captured(number, _layer_input(module, args, kwargs, width))

    return capture


def _capture_output(context: Context, number: int, width: int | None) -> Callable[..., None]:
    def capture(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        context.store_captured(number, compat.residual(module, hidden, width))

    return capture


def _edit_output(
    edit: Callable[[int, Tensor, Context], Tensor], number: int, context: Context
) -> Callable[..., Any]:
    def edited(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        context.mlp_input = context.whole(number, args[0]) if args else None
        edited = edit(number, context.whole(number, hidden), context)
        edited = context.without_leavers(number, edited)
        # Experts give their router's choice, too.
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    return edited


def _edit_rows(
    edit: Callable[[int, Tensor, Context], Tensor], number: int, context: Context
) -> Callable[..., Any]:
    """As `_edit_output`; rows that a `SharedLayer` leaves out are edited, too."""
    plain = _edit_output(edit, number, context)
    if context.rows_in(number) == context.batch:
        return plain

    def edited(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if (rows := len(hidden)) != context.rows_in(number):
            return plain(module, args, output)
        given = (context.all_rows(args[0]),) if args else ()
        hidden = plain(module, given, context.all_rows(hidden))[:rows]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return edited


def _projector(model: PreTrainedModel) -> nn.Module:
    found = compat.projector(model)
    if found is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no projector of image features that regaze knows, so a branch "
            "cannot have other ones"
        )
    return found


def _scale_features(gain: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def scale(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        features = args[0] if args else None
        if not isinstance(features, Tensor) or features.shape[:2] != gain.shape:
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UnsupportedModelError(
                f"the image features of a branch are scaled by [N, patches] = {list(gain.shape)}, but "
                f"{type(module).__name__} was given {shape}"
            )
        return (features * gain.to(features)[..., None], *args[1:]), kwargs

    return scale


def _scale_embeddings(gain: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def scale(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            raise UnsupportedModelError(
                f"{type(module).__name__} was not given `inputs_embeds`, so no token can be blanked in it"
            )
        scaled = embeds * gain.to(embeds)[..., None]
        return args, {**kwargs, "inputs_embeds": scaled}

    return scale
