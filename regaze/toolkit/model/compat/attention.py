"""transformers' attention interface: regaze's name in it, and the modules that call it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from regaze.errors import UnsupportedModelError
from regaze.toolkit.model.compat.cache import cache_argument
from regaze.toolkit.model.compat.layout import decoder_of, held_config, recorded_modules

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
) -> tuple[Tensor, Tensor | None]:
    """What the model computes unedited: q [B, Hq, Lq, D] -> [B, Lq, Hq, Dv], and weights [B, Hq, Lq, Lk].

    There are weights where the model's eager function runs. The result is that of the model to the bit where
    `previous`, the model's own implementation, is "sdpa" or "eager". Others are replaced by SDPA, or by the
    model's eager function where SDPA would lose a soft cap or sinks (such models are eager
    by default).
    """
    special = options.get("softcap") is not None or options.get("s_aux") is not None
    if previous == "eager" or (special and previous != "sdpa"):
        eager = _eager_function(module)
        if eager is not None:
            causal = options.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            mask = _eager_mask(mask, query, key, causal)
            out, weights = eager(module, query, key, value, mask, **options)[:2]
            return out, weights
        if special:
            raise UnsupportedModelError(
                f"{type(module).__name__} has a soft cap or sinks, but no eager attention function that "
                "regaze can find"
            )
    return sdpa_attention_forward(module, query, key, value, mask, **options)[0], None


def plain_function(previous: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """`plain_attention` of a model whose own implementation is `previous`."""
    return sdpa_attention_forward if previous == "sdpa" else partial(plain_attention, previous)


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


#: Arguments of few models' layers: keys that each query chooses (see `sparse_mask`), a bias of positions, and
#: sinks of each token.
RARE_ARGUMENTS = frozenset({"indices", "block_indices", "position_bias", "sinks"})


def sparse_mask(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]
) -> Tensor | None:
    """The mask of a layer that chooses the keys each query sees, in the form of `mask` (bool or added).

    DeepSeek-V3.2 and models like it put their choice into the mask where the implementation is "sdpa" or
    "eager", and under every other name only pass it on: `indices` [B, Lq, n], keys; or, in MiniMax M3,
    `block_indices`, blocks of keys for each group of heads.
    """
    chosen, blocks = options.get("indices"), options.get("block_indices")
    if chosen is not None:
        seen = chosen.new_zeros((*chosen.shape[:2], key.shape[2]), dtype=torch.bool)
        seen = seen.scatter(-1, chosen.long(), True)[:, None]
        if mask is None or mask.dtype == torch.bool:
            return seen if mask is None else mask & seen
        return mask.masked_fill(~seen, torch.finfo(query.dtype).min)
    if blocks is not None:
        positions = options.get("position_ids")
        if positions is None:
            positions = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device)
        positions = positions.expand(query.shape[0], -1)
        indexer: Any = module.indexer
        built: Tensor = indexer.build_block_mask(
            blocks, mask, key.shape[2], query.dtype, query.device, positions
        )
        return built
    return mask


def register(function: Any) -> None:
    """Make `function` an attention implementation. Without its mask function, padding would be dropped."""
    AttentionInterface.register(IMPLEMENTATION, function)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def current_attention(model: PreTrainedModel) -> str:
    return held_config(model)._attn_implementation


def set_attention(model: PreTrainedModel, implementation: str) -> None:
    """Set the attention of the language model only, and check that it is set.

    Raises:
        UnsupportedModelError: the model does not dispatch its attention through transformers' interface.
    """
    _drop_no_queries(model, implementation == IMPLEMENTATION)
    config = held_config(model)
    own = config is model.config  # then "" leaves the configurations of its encoders as they are
    key = "" if own else _sub_config_key(model.config, config)
    requested = {key: implementation} if config.sub_configs or not own else implementation
    model.set_attn_implementation(requested)
    if config._attn_implementation != implementation:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps its attention {config._attn_implementation!r}: it does not go "
            "through transformers' attention interface, so regaze cannot reach it"
        )


#: Gemma 4's method that leaves the last queries alone to its last layers, which reuse keys of earlier ones.
_DROPS_QUERIES = "_maybe_slice_kv_shared_inputs"


def _drop_no_queries(model: PreTrainedModel, wanted: bool) -> None:
    """Let a model keep all queries where it may drop them only under a mask, which SDPA need not have.

    Its own test for that goes by the name "sdpa". Without a number of logits it drops
    nothing.
    """
    decoder = decoder_of(model)
    decoder.__dict__.pop(_DROPS_QUERIES, None)
    own = getattr(decoder, _DROPS_QUERIES, None)
    if own is None or not wanted:
        return
    signature = inspect.signature(own)

    def drop(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options)
        keep, cache = given.arguments["logits_to_keep"], cache_argument(given.arguments)
        unmasked = any(mask is None for mask in given.arguments["causal_mask_mapping"].values())
        if unmasked and isinstance(keep, int) and (keep > 1 or getattr(cache, "is_compileable", False)):
            given.arguments["logits_to_keep"] = None
        return own(*given.args, **given.kwargs)

    decoder.__dict__[_DROPS_QUERIES] = drop


def _sub_config_key(config: PreTrainedConfig, wanted: PreTrainedConfig) -> str:
    for key in config.sub_configs:
        if getattr(config, key, None) is wanted:
            return key
    raise UnsupportedModelError(
        f"{type(config).__name__} does not list its text configuration among its sub-configs"
    )


class AttentionSite(NamedTuple):
    """The decoder layer of an attention module, and whether its keys are those of another sequence."""

    layer: int
    cross: bool = False


_ATTENTION = re.compile("att(entio)?n", re.IGNORECASE)

#: Names under which decoder layers hold the attention that looks at an encoder's output or at images.
_CROSS = ("cross_attn", "encoder_attn", "crossattention", "encoder_attention")


def attention_modules(model: PreTrainedModel) -> dict[nn.Module, AttentionSite]:
    """Modules of the language model that call the attention interface, and the site of each.

    Those of decoders have their layer's number. Encoders' do not; there the model names the class whose
    outputs are attentions.
    """
    named = decoder_of(model).named_modules()
    held = held_config(model)
    own = {m: name for name, m in named if getattr(m, "config", None) is held and _attends(m)}
    sites = {
        m: AttentionSite(number, name.rpartition(".")[2] in _CROSS)
        for m, name in own.items()
        if isinstance(number := getattr(m, "layer_idx", None), int) and number >= 0  # Phi-4's encoders: -2
    }
    return sites or {
        m: AttentionSite(i) for i, m in enumerate(recorded_modules(model, "attentions")) if m in own
    }


#: What attention modules call the matrix after their heads.
_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo", "c_proj", "attn_out", "proj")


def output_projections(model: PreTrainedModel) -> list[nn.Module | None]:
    """The output projection of each layer's self-attention; None for a layer that has none.

    Raises:
        UnsupportedModelError: attention without such a module.
    """
    found: dict[int, nn.Module] = {}
    for module, site in attention_modules(model).items():
        parts = (getattr(module, name, None) for name in _PROJECTIONS)
        projection = next((part for part in parts if isinstance(part, nn.Module)), None)
        if projection is None:
            raise UnsupportedModelError(f"{type(module).__name__} has no output projection that regaze knows")
        if not site.cross:
            found[site.layer] = projection
    return [found.get(layer) for layer in range(1 + max(found, default=-1))]


def _attends(module: nn.Module) -> bool:
    """Whether it is attention: short convolutions and gated delta nets have a layer's number, too."""
    return _ATTENTION.search(type(module).__name__) is not None


def sharing_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Modules of an encoder-decoder's encoder, which share the configuration of its decoder."""
    if not held_config(model).is_encoder_decoder:
        return []
    config, sites = held_config(model), attention_modules(model)
    return [m for m in model.modules() if getattr(m, "config", None) is config and m not in sites]
