"""HGAI: heads guided attention intervention ("Devils in middle layers")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat

from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls import UniformColumns
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.kernels import AttentionEdit, RowSelection
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class HGAI(Intervention):
    """Raise the scores of image keys in every head by their mean size over the heads of the layer.

    Source: Jiang et al., "Devils in Middle Layers of Large Vision-Language Models: Interpreting, Detecting
    and Mitigating Object Hallucinations via Attention Lens" (arXiv:2411.16724). In layers 5 to 17 of 32, in
    the rows that predict the answer, the score of an image key becomes s_h + alpha * mean over heads of |s|:
    the same amount for every head, so that all heads attend to what some of them attend to.
    """

    name: ClassVar[str] = "hgai"
    summary: ClassVar[str] = "raise the scores of image keys by their mean size over the layer's heads"
    source: ClassVar[str] = "arXiv:2411.16724"
    edits: ClassVar[str] = "scores of the rows that predict the answer before the softmax, in a layer range"
    cost: ClassVar[str] = "one forward; scores of all heads at once, so not in the fused kernels"
    facts: ClassVar[Facts] = Facts(edits=("scores",), cost="one forward", needs=("all heads",))
    release: ClassVar[str] = (
        "ZhangqiJiang07/middle_layers_indicating_hallucinations, no licence. One image span for the whole "
        "batch; no grouped-query attention. Here rows have their own image tokens, at any GQA ratio."
    )
    fixed_edits = True

    alpha: NonNegativeFloat = field(
        default=0.5, metadata={"help": "factor of the mean score size (0: no edit)"}
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last edited layer; default: 5 to 17 of 32, scaled"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (UniformColumns(self),)

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        image = tokens.mask(Role.IMAGE)
        if self.is_identity or not image.any():
            return
        state["layers"] = attention_range(context, self.layers, (5, 17))
        rows = RowSelection.where(tokens.answering() & image.any(1, keepdim=True))
        answer = AttentionEdit(head_mean_slope=self.alpha * image.float()[:, None])
        state["edits"] = answer.about(rows), answer

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        first, last = state.get("layers", (0, -1))
        return state["edits"][min(step, 1)] if first <= layer <= last else None
