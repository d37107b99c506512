"""Connects the layers of a model, once it is loaded, with the edits of its requests."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from regaze.errors import UnsupportedModelError
from regaze.serving.worker.edits import EngineEdits
from regaze.serving.worker.heads import own_heads
from regaze.serving.worker.layer_logits import EngineLogits

_log = logging.getLogger(__name__)

#: The attribute of a runner with the edits of its requests.
EDITS = "_regaze_edits"


def attach(runner: Any) -> None:
    """Connect the attention layers of a runner's model with the edits of its requests."""
    from vllm.model_executor.models.utils import extract_layer_index

    layers = runner.vllm_config.compilation_config.static_forward_context
    impls: dict[str, Any] = {name: getattr(layer, "impl", None) for name, layer in layers.items()}
    editing = [name for name, impl in impls.items() if hasattr(type(impl), "edits")]
    if not editing:
        raise UnsupportedModelError("none of its attention layers is one of regaze")
    heads = own_heads(impls[editing[0]].num_heads)
    edits, numbers = EngineEdits(runner, heads=heads), [extract_layer_index(name) for name in editing]
    for name, number in zip(editing, numbers, strict=True):
        impls[name].edits, impls[name].number = edits, number
    runner.__dict__[EDITS] = edits
    if not runner.vllm_config.compilation_config.mode:  # compiled models run no hooks
        attention = {layers[name]: number for name, number in zip(editing, numbers, strict=True)}
        edits.shows_hidden = watch_stream(runner.get_model(), attention, edits)
        if edits.shows_hidden:
            try:
                edits.layer_logits = EngineLogits(runner.get_model(), attention, heads)
            except Exception as error:  # other methods need nothing of it
                _log.warning("regaze: methods that read logits of layers will fail: %s", error)


def watch_stream(model: nn.Module, attention: Mapping[nn.Module, int], edits: Any) -> bool:
    """Show the residual stream that enters each decoder layer, which has one of these attention modules.

    Args:
        attention: the number of each attention module's layer, which its name in the model has, too.

    Returns:
        Whether all layers were found, and take "hidden_states".
    """
    found: dict[int, tuple[nn.Module, tuple[str, ...]]] = {}
    for name, module in model.named_modules():
        if module in attention:
            number, parts = attention[module], name.split(".")
            if str(number) not in parts:
                return False
            layer = model.get_submodule(".".join(parts[: parts.index(str(number)) + 1]))
            found[number] = layer, tuple(inspect.signature(layer.forward).parameters)
    if len(found) < len(attention) or not all("hidden_states" in names for _, names in found.values()):
        return False
    for number, (layer, names) in found.items():
        layer.register_forward_pre_hook(_showing(number, names, edits), with_kwargs=True)
    return True


def _showing(number: int, names: tuple[str, ...], edits: Any) -> Callable[..., None]:
    from vllm.forward_context import get_forward_context, is_forward_context_available

    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
        if not isinstance(metadata, dict) or not metadata:
            return

        def stream() -> Tensor:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            hidden: Tensor = given["hidden_states"]
            residual = given.get("residual")
            return hidden.clone() if residual is None else hidden + residual  # layers write to them

        try:
            edits.show_hidden(number, stream, next(iter(metadata.values())))
        except Exception as error:  # plain requests need nothing of it
            edits.give_up(error)

    return show
