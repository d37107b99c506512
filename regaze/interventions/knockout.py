"""Remove attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator

from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls import RandomHeads
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Heads
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.context import Context


@dataclass(frozen=True)
class HeadKnockout(Intervention):
    """Remove query heads, given as (layer, head) pairs.

    A layer with cross-attention instead of self-attention (Llama 3.2 Vision) counts as any other; where a
    layer has both, `cross` selects one. A head that the model does not have raises a BadParameterError when
    the first prompt runs.

    "zero" removes the head's output before the output projection: a true ablation. "uniform" sets the head's
    scores to 0 on every visible key, so that it averages all values. The release of Retrieval Head
    (`nightdessert/Retrieval_Head`) does this and calls it masking, but such a head still writes into the
    residual stream.
    """

    name: ClassVar[str] = "knockout"
    summary: ClassVar[str] = "remove the output of chosen attention heads"
    source: ClassVar[str] = "ablation; mode='uniform' as in the release of arXiv:2404.15574"
    edits: ClassVar[str] = "the output of the listed heads, in every row and step"
    cost: ClassVar[str] = "one forward"
    facts: ClassVar[Facts] = Facts(edits=("head outputs",), cost="one forward", needs=("head list",))
    release: ClassVar[str] = (
        "nightdessert/Retrieval_Head. It sets scores to 0, so that a masked head averages all "
        'values (mode="uniform"), and has no effect for Qwen2, Mixtral and Phi-3; its random heads for '
        "comparison may be retrieval heads."
    )
    fixed_edits = True

    heads: Annotated[Heads, AfterValidator(lambda heads: tuple(sorted(heads)))] = field(
        default=(), metadata={"help": "(layer, query head) pairs"}
    )
    mode: Literal["zero", "uniform"] = field(
        default="zero", metadata={"help": "remove the head's output, or let the head average all values"}
    )
    cross: bool = field(
        default=False,
        metadata={"help": "heads of cross-attention, where a layer has both (Whisper, Florence-2)"},
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "edited"

    @property
    def is_identity(self) -> bool:
        return not self.heads

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (RandomHeads(self),)

    def heads_in(self, config: Any) -> Heads:
        """The heads in which it acts in a model with this configuration."""
        return self.heads

    def prepare(self, context: Context) -> None:
        what, reached = "cross-attention", context.cross_layers
        if not self.cross:
            what, reached = "attention", reached | context.self_layers
        for layer, head in self.heads:
            if layer >= context.num_layers or head >= context.num_heads:
                raise BadParameterError(
                    f"head {(layer, head)} does not exist: the model has layers 0..{context.num_layers - 1} "
                    f"with query heads 0..{context.num_heads - 1}"
                )
            if layer not in reached:
                raise BadParameterError(
                    f"layer {layer} has no {what}, so there is no head {(layer, head)} to remove; "
                    + (f"layers {sorted(reached)} have" if reached else "this model has none at all")
                )

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return None if self.cross else self._without_heads(layer, context)

    def edit_cross(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        if not self.cross and layer in context.self_layers:
            return None
        return self._without_heads(layer, context)

    def _without_heads(self, layer: int, context: Context) -> AttentionEdit | None:
        edits = context.state(self)
        if layer not in edits:
            chosen = [head for where, head in self.heads if where == layer]
            edits[layer] = self._without(chosen, context.num_heads) if chosen else None
        return edits[layer]

    def _without(self, chosen: Sequence[int], heads: int) -> AttentionEdit:
        gain = torch.ones(1, heads)
        gain[:, chosen] = 0.0
        return AttentionEdit(head_gain=gain) if self.mode == "zero" else AttentionEdit(head_score_gain=gain)
