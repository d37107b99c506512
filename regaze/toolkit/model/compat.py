"""All that depends on how transformers works inside, in one place (floor 5.17, tested up to 5.23)."""

from __future__ import annotations

import inspect
import re
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

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
from regaze.toolkit.model.beam_media import repeated_media

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


def unwrapped(model: Any) -> Any:
    """The transformers model inside what `torch.compile` or PEFT made of it.

    Raises:
        UnsupportedModelError: PEFT's prompt and prefix tuning, which act outside of the model inside.
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
    """The configuration of the language model inside `model`; that of its decoder if it has two sides."""
    config = model.config.get_text_config(decoder=True)
    # An encoder-decoder's own configuration counts the encoder's layers; a copy of it the decoder's.
    return config.get_text_config(decoder=True) if config.is_encoder_decoder else config


def _held_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The object that the attention modules of the language model hold."""
    inner = model.config.get_text_config()
    return inner if inner.is_encoder_decoder else model.config.get_text_config(decoder=True)


def sees_pixels_alone(model: PreTrainedModel) -> bool:
    """Whether this is a vision model used alone (CLIP's tower, ViT, DINO): it takes pixels and no text."""
    names = inspect.signature(model.forward).parameters
    return "pixel_values" in names and not {"input_ids", "decoder_input_ids"} & set(names)


def decoder_layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The layers of the language model (or of a vision model), whose inputs are the residual stream."""
    if sees_pixels_alone(model):
        layers: Sequence[nn.Module] = _recorded(model, "hidden_states")
    else:
        layers = getattr(decoder_of(model), "layers", ())
    if not isinstance(layers, (list, nn.ModuleList)) or not len(layers):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of decoder layers at get_decoder().layers"
        )
    return list(layers)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The decoder: of a model around an encoder-decoder, `get_decoder` gives all of that."""
    outer, inner = model, model.get_decoder()
    while inner is not outer and isinstance(inner, PreTrainedModel) and inner.config.is_encoder_decoder:
        outer, inner = inner, inner.get_decoder()
    return inner if hasattr(inner, "layers") else getattr(inner, "model", inner)  # Llama 4's has its LM head


#: What language models call their last norm, and the factors between output matrix and logits.
_FINAL_NORMS = (
    *("norm", "final_layernorm", "final_layer_norm", "final_norm"),
    *("ln_f", "norm_f", "layer_norm", "embedding_norm"),
)
_LOGIT_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_LOGIT_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap")


class LogitScale(NamedTuple):
    """What a model does to the output of its output matrix: multiply, divide, cap with tanh, in this order."""

    factor: float | None = None
    divisor: float | None = None
    cap: float | None = None


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm after the last decoder layer; None where there is none."""
    decoder = decoder_of(model)
    decoder = getattr(decoder, "decoder", decoder)  # OPT's holds another
    norms = (getattr(decoder, name, None) for name in _FINAL_NORMS)
    return next((norm for norm in norms if isinstance(norm, nn.Module)), None)


def logit_scale(model: PreTrainedModel) -> LogitScale:
    """The factors of a model's logits (Cohere, Granite, Gemma 2).

    A configuration may hold a factor that its class never applies, such as Cohere's inside Cohere2Vision, so
    a factor counts only where a forward above the output matrix names it.
    """
    config, head = text_config(model), model.get_output_embeddings()
    classes = {
        type(m)
        for m in model.modules()
        if isinstance(m, PreTrainedModel) and m.get_output_embeddings() is head
    }
    named: set[Any] = set()
    for code in (inspect.unwrap(each.forward).__code__ for each in classes):
        named.update(code.co_names, code.co_consts)

    def applied(names: Sequence[str]) -> float | None:
        values = (getattr(config, name, None) for name in names if name in named)
        return next((value for value in values if value is not None), None)

    factor, divisor, cap = (applied(names) for names in (_LOGIT_FACTORS, _LOGIT_DIVISORS, _LOGIT_CAPS))
    if divisor is not None and "hyperclovax" in config.model_type:  # the one family that multiplies by it
        return LogitScale(divisor, None, cap)
    return LogitScale(factor, divisor, cap)


def residual(layer: nn.Module, hidden: Tensor) -> Tensor:
    """The residual stream [B, L, D] in what a decoder layer takes or gives.

    Gemma 3n's carries several predictions of it, [n, B, L, D], of which its layers work on one.
    """
    return hidden if hidden.dim() == 3 else hidden[layer.config.altup_active_idx]  # type: ignore[union-attr, index]


class AttentionSite(NamedTuple):
    """Where an attention module is: its decoder layer, and whether its keys are those of another sequence."""

    layer: int
    cross: bool = False


_ATTENTION = re.compile("att(entio)?n", re.IGNORECASE)
#: Names under which decoder layers hold the attention that looks at an encoder's output or at images.
_CROSS = ("cross_attn", "encoder_attn", "crossattention", "encoder_attention")


def attention_modules(model: PreTrainedModel) -> dict[nn.Module, AttentionSite]:
    """Modules of the language model that call the attention interface, and the place of each.

    Those of decoders know their layer. Encoders' do not; there the model says which class gives attentions.
    """
    named = decoder_of(model).named_modules()
    held = _held_config(model)
    own = {m: name for name, m in named if getattr(m, "config", None) is held and _attends(m)}
    places = {
        m: AttentionSite(number, name.rpartition(".")[2] in _CROSS)
        for m, name in own.items()
        if isinstance(number := getattr(m, "layer_idx", None), int) and number >= 0  # Phi-4's encoders: -2
    }
    return places or {m: AttentionSite(i) for i, m in enumerate(_recorded(model, "attentions")) if m in own}


def _attends(module: nn.Module) -> bool:
    """Whether it is attention: short convolutions and gated delta nets have a layer's number, too."""
    return _ATTENTION.search(type(module).__name__) is not None


def sharing_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Modules that take the attention of the language model's configuration without being part of it.

    They are the encoder of an encoder-decoder.
    """
    if not _held_config(model).is_encoder_decoder:
        return []
    config, places = _held_config(model), attention_modules(model)
    return [m for m in model.modules() if getattr(m, "config", None) is config and m not in places]


def decoder_inputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a forward with those of an encoder-decoder's decoder under the names of a decoder."""
    if not model.config.is_encoder_decoder:
        return inputs
    names = ("input_ids", "attention_mask", "inputs_embeds", "position_ids")
    return {**inputs, **{name: inputs.get(f"decoder_{name}") for name in names}}


def _recorded(model: PreTrainedModel, what: str) -> list[nn.Module]:
    """The modules from whose outputs transformers takes "attentions" or "hidden_states", in order."""
    kind = (getattr(model, "_can_record_outputs", None) or {}).get(what)
    return [m for m in model.modules() if isinstance(m, kind)] if isinstance(kind, type) else []


def current_attention(model: PreTrainedModel) -> str:
    return _held_config(model)._attn_implementation


def set_attention(model: PreTrainedModel, implementation: str) -> None:
    """Set the attention of the language model only, and make sure that it took it.

    Raises:
        UnsupportedModelError: the model does not dispatch its attention through transformers' interface.
    """
    config = _held_config(model)
    own = config is model.config  # then "" leaves the configurations of its encoders as they are
    key = "" if own else _sub_config_key(model.config, config)
    requested = {key: implementation} if config.sub_configs or not own else implementation
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


def prompt_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """What a forward reads: ids [B, L] or embeddings [B, L, D]; None for a vision model used alone."""
    ids: Tensor | None = inputs.get("input_ids")
    return ids if ids is not None else inputs.get("inputs_embeds")


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


def media_axis(inputs: Mapping[str, Any], name: str) -> int:
    """Along which axis the images of a batch lie in an argument of a forward.

    MiniCPM-V packs the patches of all of them into one [1, 3, P, sum of patches * P].
    """
    return -1 if name == "pixel_values" and inputs.get("target_sizes") is not None else 0


def join_media(contexts: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    """An argument of a forward that holds images, for all contexts that have it.

    Molmo 2's `image_token_pooling` are numbers of patches among those of all images; -1 is none.
    """
    having = [context for context in contexts if context.get(name) is not None]
    parts = [context[name] for context in having]
    if name == "image_token_pooling":
        before = 0
        for i, context in enumerate(having):
            parts[i] = torch.where(parts[i] >= 0, parts[i] + before, parts[i])
            before += context["pixel_values"][..., 0].numel()
    return torch.cat(parts, media_axis(contexts[0], name))


def drop_last(cache: Cache) -> None:
    """Forget the last token of a cache. Raises UnsupportedModelError where its kind cannot."""
    stock: Any = super(_FollowsRows, cache) if isinstance(cache, _FollowsRows) else cache
    try:
        stock.crop(-1)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"this {type(cache).__name__} cannot drop its last token, which an intervention needs here; "
            "generate with cache_implementation='dynamic'"
        ) from error


class _FollowsRows:
    """A cache that re-orders the rows of all branches, and what interventions keep, with the user's beams.

    It also says when `generate` takes back tokens.
    """

    _regaze_context: weakref.ref[Any]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        context = self._regaze_context()
        if context is not None:
            beam_idx = context.stacked_rows(beam_idx)
            context.reorder(beam_idx)
        super().reorder_cache(beam_idx)  # type: ignore[misc]

    def crop(self, max_length: int) -> None:
        context, held = self._regaze_context(), seen_tokens(self)
        super().crop(max_length)  # type: ignore[misc]
        if context is not None and seen_tokens(self) < held:
            context.take_back()


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


_ENCODES = "_maybe_prepare_encoder_kwargs_for_generation"
if not hasattr(GenerationMixin, _ENCODES):  # 5.17, which knows encoder-decoders only
    _ENCODES = "_prepare_encoder_decoder_kwargs_for_generation"


def watch_generate(model: PreTrainedModel, note: Callable[[Mapping[str, Any]], None] | None) -> None:
    """Show `note` the inputs of `generate` before they are encoded and repeated for beams; None ends that.

    transformers 5.23 takes what the image encoder was given (sizes, grids) out of the arguments of the
    forward; 5.17 leaves it there.
    """
    model.__dict__.pop(_ENCODES, None)
    own = getattr(model, _ENCODES, None)
    if note is None or own is None:
        return

    def encode(inputs: Tensor, kwargs: dict[str, Any], *rest: Any) -> dict[str, Any]:
        if not inputs.is_floating_point():  # ids, not sound
            note({"input_ids": inputs, **kwargs})
        return own(inputs, kwargs, *rest)

    model.__dict__[_ENCODES] = encode


def pass_media(model: PreTrainedModel, wanted: bool, image_token_ids: Sequence[int] = ()) -> None:
    """Whether `generate` hands pixels to the forward, rather than features that it has encoded before.

    transformers 5.23 encodes first (`mm_encoder_outputs`); 5.17 knows nothing of it.
    """
    model.__dict__.pop("_expand_inputs_for_generation", None)
    model.__dict__.pop("_supports_mm_encoder_outputs", None)
    if wanted:
        model.__dict__["_supports_mm_encoder_outputs"] = lambda: False
        own = getattr(type(model), "_expand_inputs_for_generation", None)
        if image_token_ids and own is GenerationMixin._expand_inputs_for_generation:  # Qwen-VL's knows better
            expand = partial(_expand, model, torch.tensor(image_token_ids))
            model.__dict__["_expand_inputs_for_generation"] = expand


def _expand(
    model: PreTrainedModel,
    image_token_ids: Tensor,
    expand_size: int = 1,
    input_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor | None, dict[str, Any]]:
    """Inputs for several sequences per prompt, with media that repeat a prompt's images together."""
    media: dict[str, Any] = {}
    if expand_size > 1 and input_ids is not None:
        is_image = torch.isin(input_ids, image_token_ids.to(input_ids.device))
        media = repeated_media(input_ids, is_image, expand_size, kwargs)
    stock: Any = super(type(model), model)
    input_ids, kwargs = stock._expand_inputs_for_generation(
        expand_size=expand_size, input_ids=input_ids, **kwargs
    )
    return input_ids, {**kwargs, **media}
