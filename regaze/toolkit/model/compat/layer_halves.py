"""The parts of a decoder layer that act on each token by itself: all but its attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from regaze.toolkit.model.compat.attention import AttentionSite, attention_modules, output_projections
from regaze.toolkit.model.compat.layout import mlp_of


class LayerHalves(NamedTuple):
    """What a layer makes of the residual stream x, its attention's output added: x + factor MLP(norm(x)).

    Attributes:
        attention_norm: of what a layer is given, before its attention.
        norm, mlp: of the second half. after: the norm of its MLP's output, if there is one.
        factor: of what a half adds to the stream.
    """

    attention_norm: Any
    norm: Any
    mlp: Any
    after: Any = None
    factor: float = 1.0

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """The second half with its residual: [B, T, D] -> [B, T, D]."""
        added = self.mlp(self.norm(hidden))
        if isinstance(added, tuple):  # experts give their router's choice, too
            added = added[0]
        if self.after is not None:
            added = self.after(added)
        return hidden + (added if self.factor == 1.0 else self.factor * added)


class _Layout(NamedTuple):
    """The names of a layer's norms: before attention, before the MLP, after the MLP, after attention."""

    attention: str
    mlp: str
    after_mlp: str | None = None
    after_attention: str | None = None


_LAYOUTS = (
    _Layout("input_layernorm", "post_attention_layernorm"),
    _Layout(
        "input_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
        "post_attention_layernorm",
    ),
)
#: The factor of both halves (Granite, MiniCPM 3).
_FACTORS = ("residual_multiplier", "residual_scale")


def layer_halves(layer: nn.Module) -> LayerHalves | None:
    """The halves of a layer; None where it is not built as those of Llama, Gemma 2 or Granite.

    One with further parts, or parameters of its own, may do more to its stream.
    """
    mlp, parts = mlp_of(layer), _acting(layer)
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    if mlp is None or own or getattr(layer, "use_parallel_residual", False):  # GPT-NeoX
        return None
    for layout in _LAYOUTS:
        norms = {name for name in layout if name is not None}
        if norms <= set(parts) and len(parts) == len(norms) + 2:  # attention and MLP
            factors = (getattr(layer, name, None) for name in _FACTORS)
            factor = next((float(value) for value in factors if value is not None), 1.0)
            after = None if layout.after_mlp is None else parts[layout.after_mlp]
            return LayerHalves(parts[layout.attention], parts[layout.mlp], mlp, after, factor)
    return None


#: What attention modules do before their heads have an output.
_BEFORE_HEADS = {
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "q_norm", "k_norm", "q_layernorm", "k_layernorm"),
    *("rotary_emb", "rotary_fn"),
}


def straight_projection(model: PreTrainedModel, layer: int) -> nn.Module | None:
    """The output projection of a layer's self-attention, where it is given what the heads give and no more.

    None where that is gated (Qwen3-Next), has a norm (BitNet), or is made of other parts than these.
    """
    attention = next(m for m, site in attention_modules(model).items() if site == AttentionSite(layer))
    projection = output_projections(model)[layer]
    parts = {name: part for name, part in _acting(attention).items() if part is not projection}
    width = getattr(projection, "in_features", None)
    gated = width != getattr(parts.get("q_proj"), "out_features", width)  # its queries have gates beside them
    return projection if parts.keys() <= _BEFORE_HEADS and not gated else None


def _acting(module: nn.Module) -> Mapping[str, nn.Module]:
    """The parts of a module that do something in evaluation."""
    idle = (nn.Dropout, nn.Identity)
    return {name: part for name, part in module.named_children() if not isinstance(part, idle)}
