"""Where the parts of a model are: its language model, its decoder layers, its residual stream."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from regaze.errors import UnsupportedModelError


def unwrapped(model: Any) -> Any:
    """The transformers model inside a wrapper of `torch.compile` or PEFT.

    Raises:
        UnsupportedModelError: PEFT's prompt and prefix tuning, which act outside of the inner model.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, PreTrainedModel) or not hasattr(model, "get_base_model"):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} puts learnt tokens before the prompt, outside of the model inside it; "
            "regaze takes adapters that sit in its layers, such as LoRA's"
        )
    return model.get_base_model()


def model_name(model: PreTrainedModel) -> str:
    """Hub id or folder that the model was loaded from; "" for one that was built from a configuration."""
    return model.config._name_or_path or ""


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the language model inside `model`; of an encoder-decoder, its decoder's."""
    config = model.config.get_text_config(decoder=True)
    # An encoder-decoder's own configuration counts the encoder's layers; a copy of it the decoder's.
    return config.get_text_config(decoder=True) if config.is_encoder_decoder else config


def held_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration object that the attention modules of the language model refer to."""
    inner = model.config.get_text_config()
    return inner if inner.is_encoder_decoder else model.config.get_text_config(decoder=True)


def is_vision_model(model: PreTrainedModel) -> bool:
    """Whether this is a vision model used alone (CLIP's tower, ViT, DINO): it takes pixels and no text."""
    names = inspect.signature(model.forward).parameters
    return "pixel_values" in names and not {"input_ids", "decoder_input_ids"} & set(names)


def decoder_layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The layers of the language model (or of a vision model), whose inputs are the residual stream."""
    if is_vision_model(model):
        layers: Sequence[nn.Module] = recorded_modules(model, "hidden_states")
    else:
        layers = getattr(decoder_of(model), "layers", ())
    if not isinstance(layers, (list, nn.ModuleList)) or not len(layers):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of decoder layers at get_decoder().layers"
        )
    return list(layers)


#: What the layers of models call their MLP.
_MLPS = ("mlp", "feed_forward", "ffn")


def mlp_of(layer: nn.Module) -> nn.Module | None:
    """The MLP of a layer, all experts of it; None where it is no module of its own."""
    parts = (getattr(layer, name, None) for name in _MLPS)
    return next((part for part in parts if isinstance(part, nn.Module)), None)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The decoder. `get_decoder` of a model around an encoder-decoder returns both sides."""
    outer, inner = model, model.get_decoder()
    while inner is not outer and isinstance(inner, PreTrainedModel) and inner.config.is_encoder_decoder:
        outer, inner = inner, inner.get_decoder()
    return inner if hasattr(inner, "layers") else getattr(inner, "model", inner)  # Llama 4's has its LM head


def hidden_width(model: PreTrainedModel) -> int | None:
    """The width D of the hidden states by the configuration; None where it does not say."""
    width = getattr(text_config(model), "hidden_size", None)
    return width if isinstance(width, int) else None


def residual(layer: nn.Module, hidden: Tensor, width: int | None) -> Tensor:
    """The residual stream [B, L, D] in the input or output of a decoder layer.

    Gemma 3n has several predictions of it, [n, B, L, D]; a layer works on one of them.

    Args:
        width: see `hidden_width`.

    Raises:
        UnsupportedModelError: the layer has several streams (hyper-connections), [B, L, n, D] or [B, L, n D].
    """
    active = getattr(getattr(layer, "config", None), "altup_active_idx", None)
    if hidden.dim() == 4 and active is not None:
        return hidden[active]
    if hidden.dim() != 3 or (width is not None and hidden.shape[-1] != width):
        raise UnsupportedModelError(
            f"{type(layer).__name__} has several residual streams (hyper-connections): its hidden states are "
            f"{list(hidden.shape)} where others have [batch, tokens, {width or 'width'}]. What reads hidden "
            "states has no meaning in it; use methods and analyses that read attention alone"
        )
    return hidden


def recorded_modules(model: PreTrainedModel, what: str) -> list[nn.Module]:
    """The modules from whose outputs transformers takes "attentions" or "hidden_states", in order."""
    kind = (getattr(model, "_can_record_outputs", None) or {}).get(what)
    return [m for m in model.modules() if isinstance(m, kind)] if isinstance(kind, type) else []


def has_mrope(model: PreTrainedModel) -> bool:
    """Whether the model computes positions along several axes from the grids of its images (M-RoPE)."""
    return hasattr(model.base_model, "get_rope_index")


def counts_positions(model: PreTrainedModel, inputs: Mapping[str, Any]) -> bool:
    """Whether the model counts positions by a rule of its own: M-RoPE, or that of KOSMOS."""
    return has_mrope(model) or inputs.get("image_embeds_position_mask") is not None


def mrope_positions(positions: Tensor, deltas: Tensor | None) -> Tensor:
    """Positions [3, B, T] of tokens after the prompt, from how many visible tokens precede each, [B, T].

    Args:
        deltas: the offset between the two that the prefill left in the model, see `take_rope_deltas`. The
            model itself would count the whole attention mask.
    """
    if deltas is not None:  # [b, 1]: of the user's rows alone where no prompt has an image, and all 0 then
        positions = positions + deltas.to(positions.device).repeat(len(positions) // len(deltas), 1)
    return positions.expand(3, -1, -1)


def rope_deltas(model: PreTrainedModel) -> Tensor | None:
    """What the last prefill left in the model: by how much positions run ahead of the number of tokens."""
    deltas: Tensor | None = getattr(model.base_model, "rope_deltas", None)
    return deltas


def set_rope_deltas(model: PreTrainedModel, deltas: Tensor | None) -> None:
    """Put back what `rope_deltas` gave: the next step goes on from that prefill."""
    if deltas is not None:
        model.base_model.rope_deltas = deltas


def take_rope_deltas(model: PreTrainedModel, rows: int) -> Tensor | None:
    """The offsets [b, 1] that a prefill of several contexts left in the model; it keeps the first `rows`."""
    deltas: Tensor | None = getattr(model.base_model, "rope_deltas", None)
    if deltas is not None and len(deltas) > rows:
        model.base_model.rope_deltas = deltas[:rows]
    return deltas


def projector(model: PreTrainedModel) -> nn.Module | None:
    """What makes tokens of the tower's features, given [N, patches, C]; None where that is not known."""
    found = [module for name, module in model.named_modules() if name.endswith("multi_modal_projector")]
    return found[0] if len(found) == 1 else None
