"""All that depends on how transformers works inside, in one place (floor 5.17, tested up to 5.23)."""

from __future__ import annotations

import sys
import weakref
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from regaze.errors import UnsupportedModelError

#: The one name under which attention and mask are registered. transformers gives meaning to parts of names
#: ("sdpa", "flash", "flex", "/"), so this one contains none of them.
IMPLEMENTATION = "regaze"


def plain_attention(
    previous: str | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> Tensor:
    """What the model computes unedited: q [B, Hq, Lq, D] -> [B, Lq, Hq, Dv].

    To the bit where `previous`, the model's own implementation, is "sdpa" or "eager". Others are replaced by
    SDPA, or by the model's eager function where SDPA would lose a soft cap or sinks (such models are eager
    unless told otherwise).
    """
    special = options.get("softcap") is not None or options.get("s_aux") is not None
    if previous == "eager" or (special and previous != "sdpa"):
        eager = _eager_function(module)
        if eager is not None:
            causal = options.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            mask = _eager_mask(mask, query, key, causal)
            return eager(module, query, key, value, mask, **options)[0]
        if special:
            raise UnsupportedModelError(
                f"{type(module).__name__} has a soft cap or sinks, but no eager attention function that "
                "regaze can find"
            )
    return sdpa_attention_forward(module, query, key, value, mask, **options)[0]


def _eager_function(module: nn.Module) -> Any:
    """`eager_attention_forward` of the file that defines the module's class, or a base of it."""
    files = (sys.modules.get(cls.__module__) for cls in type(module).__mro__)
    return next((f for file in files if (f := getattr(file, "eager_attention_forward", None))), None)


def _eager_mask(mask: Tensor | None, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """What `eager_mask` of transformers would have made where `sdpa_mask` made a bool mask, or none."""
    if mask is None and causal and query.shape[2] > 1:  # omitted only where row i sits at key i
        shape = (1, 1, query.shape[2], key.shape[2])
        mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, query.new_zeros(()), torch.finfo(query.dtype).min)


def register(function: Any) -> None:
    """Make `function` an attention implementation. Without its mask function, padding would be dropped."""
    AttentionInterface.register(IMPLEMENTATION, function)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the language model inside `model`."""
    return model.config.get_text_config(decoder=True)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of the language model, whose inputs are the residual stream."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of decoder layers at get_decoder().layers"
        )
    return layers


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Modules of the language model that call the attention interface: they know layer and config."""
    config = text_config(model)
    return [
        m
        for m in model.get_decoder().modules()
        if hasattr(m, "layer_idx") and getattr(m, "config", None) is config
    ]


def current_attention(model: PreTrainedModel) -> str:
    return text_config(model)._attn_implementation


def set_attention(model: PreTrainedModel, implementation: str) -> None:
    """Set the attention of the language model only, and make sure that it took it.

    Raises:
        UnsupportedModelError: the model does not dispatch its attention through transformers' interface.
    """
    config = text_config(model)
    if config is model.config:
        requested: str | dict[str, str] = implementation
    else:
        requested = {_sub_config_key(model.config, config): implementation}
    model.set_attn_implementation(requested)
    if config._attn_implementation != implementation:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps its attention {config._attn_implementation!r}: it does not go "
            "through transformers' attention interface, so regaze cannot reach it"
        )


def _sub_config_key(config: PreTrainedConfig, wanted: PreTrainedConfig) -> str:
    for key in config.sub_configs:
        if getattr(config, key, None) is wanted:
            return key
    raise UnsupportedModelError(
        f"{type(config).__name__} does not list its text configuration among its sub-configs"
    )


def cache_of(output: Any) -> Cache | None:
    """The key-value cache in a model's output, be it a `ModelOutput` or a tuple."""
    values = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
    return next((value for value in values if isinstance(value, Cache)), None)


def padding_mask(mask: Any, length: int) -> Tensor | None:
    """Which of the prompt's tokens are real, [B, L] bool, from whatever `generate` passes at prefill.

    With a static cache that is a mask [B, 1, L, Lk], or one per kind of layer, in which padded tokens do not
    even see themselves.
    """
    if isinstance(mask, dict):
        mask = next((m for m in mask.values() if m is not None), None)
    if mask is None or mask.dim() != 4:
        return mask
    own = mask[:, 0, :, :length].diagonal(dim1=1, dim2=2)
    return own > torch.finfo(own.dtype).min / 2 if own.is_floating_point() else own


def seen_tokens(cache: Any) -> int:
    """Number of tokens that a key-value cache already holds; 0 for no cache."""
    return 0 if cache is None else int(cache.get_seq_length())


def has_position_axes(model: PreTrainedModel) -> bool:
    """Whether the model works out positions along several axes from its images' grids (Qwen-VL's M-RoPE)."""
    return hasattr(model.base_model, "get_rope_index")


def positions_on_axes(model: PreTrainedModel, positions: Tensor) -> Tensor:
    """Positions of tokens behind the prompt, from their numbers [B, T]: [3, B, T].

    The prefill has left in `rope_deltas` how far they lie from there. The model itself would take the numbers
    of the whole attention mask.
    """
    deltas = getattr(model.base_model, "rope_deltas", None)
    if deltas is not None:  # [b, 1]: of the user's rows alone where no prompt has an image, and all 0 then
        positions = positions + deltas.to(positions.device).repeat(len(positions) // len(deltas), 1)
    return positions.expand(3, -1, -1)


def drop_last(cache: Cache) -> None:
    """Forget the last token of a cache. Raises UnsupportedModelError where its kind cannot."""
    try:
        cache.crop(-1)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"this {type(cache).__name__} cannot drop its last token, which an intervention needs here; "
            "generate with cache_implementation='dynamic'"
        ) from error


class _FollowsRows:
    """A cache that re-orders the rows of all branches, and what interventions keep, with the user's beams."""

    _regaze_context: weakref.ref[Any]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        context = self._regaze_context()
        if context is not None:
            beam_idx = context.stacked_rows(beam_idx)
            context.reorder(beam_idx)
        super().reorder_cache(beam_idx)  # type: ignore[misc]


@lru_cache
def _following(kind: Any) -> Any:
    return type(kind.__name__, (_FollowsRows, kind), {"__module__": kind.__module__})


def follow_reorder(cache: Cache, context: Any) -> None:
    """Tell `context` when beam search re-orders `cache`, which may hold rows unknown to `generate`."""
    if not isinstance(cache, _FollowsRows):
        kind: Any = type(cache)
        cache.__class__ = _following(kind)
    cache._regaze_context = weakref.ref(context)  # type: ignore[attr-defined]


def make_room(cache: Any, more: int) -> None:
    """Let a static cache made for the user's prompts hold `more` tokens: those of a longer branch."""
    for layer in getattr(cache, "layers", ()):
        if type(layer) is StaticLayer and not layer.is_initialized:
            layer.max_cache_len += more


def release_cache(cache: Cache, rows: int) -> None:
    """Leave only the first `rows` rows in a cache."""
    for layer in cache.layers:
        if hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(torch.arange(rows))
        elif isinstance(layer, StaticLayer) and layer.keys is not None and layer.values is not None:
            layer.keys, layer.values = layer.keys[:rows], layer.values[:rows]


def pass_media(model: PreTrainedModel, wanted: bool) -> None:
    """Whether `generate` hands pixels to the forward, rather than features that it has encoded before.

    transformers 5.23 encodes first (`mm_encoder_outputs`); 5.17 knows nothing of it.
    """
    model.__dict__.pop("_expand_inputs_for_generation", None)
    model.__dict__.pop("_supports_mm_encoder_outputs", None)
    if wanted:
        model.__dict__["_supports_mm_encoder_outputs"] = lambda: False
        own = getattr(type(model), "_expand_inputs_for_generation", None)
        if own is GenerationMixin._expand_inputs_for_generation:  # Qwen-VL's knows better
            model.__dict__["_expand_inputs_for_generation"] = partial(_expand, model)


def _expand(
    model: PreTrainedModel, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor | None, dict[str, Any]]:
    """Inputs for several sequences per prompt, with pixels that repeat a prompt's images together.

    `generate` repeats each image by itself: of two images A, B of a prompt it makes A A B B, which gives the
    first sequence A twice.
    """
    pixels, media = kwargs.get("pixel_values"), {}
    known = input_ids is not None and hasattr(model.config, "image_token_id")
    if expand_size > 1 and known and isinstance(pixels, Tensor):
        assert input_ids is not None
        order = _images_of_sequences(model, input_ids, len(pixels), expand_size)
        names = [name for name in ("pixel_values", "image_sizes") if kwargs.get(name) is not None]
        media = {name: kwargs.pop(name)[order.to(pixels.device)] for name in names}
    stock: Any = super(type(model), model)
    input_ids, kwargs = stock._expand_inputs_for_generation(
        expand_size=expand_size, input_ids=input_ids, **kwargs
    )
    return input_ids, {**kwargs, **media}


def _images_of_sequences(model: PreTrainedModel, input_ids: Tensor, images: int, copies: int) -> Tensor:
    """Numbers of the images that `copies` sequences of each prompt [B, L] show, in order."""
    tokens = (input_ids == model.config.image_token_id).sum(1).tolist()
    counts = [int(count > 0) for count in tokens]
    if sum(counts) != images:  # several per prompt: known where all have the same number of tokens
        each = sum(tokens) // images
        counts = [count // each if each else 0 for count in tokens]
        if any(count % each for count in tokens if each) or sum(counts) != images:
            raise UnsupportedModelError(
                "it is not known which image belongs to which prompt, so none can be repeated for beams or "
                "several returned sequences; give one image per prompt, or generate one sequence each"
            )
    parts = torch.arange(images).split(counts)
    return torch.cat([part for part in parts for _ in range(copies)])
