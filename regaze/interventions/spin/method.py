"""SPIN: image-guided head suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat

from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls.random_heads import RandomHeads
from regaze.interventions.controls.variants import with_behaviour
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.interventions.parameters import Fraction
from regaze.interventions.spin.damp_random_heads import DampRandomHeads
from regaze.interventions.spin.policy import DampLowHeads
from regaze.kernels import AttentionEdit, Channels, RowSelection, ScoreGate
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class SPIN(Intervention):
    """Damp the heads that look least at the image, in every row that predicts a token.

    Source: Sarkar et al., "Mitigating Hallucinations in Vision-Language Models through Image-Guided Head
    Suppression" (arXiv:2505.16411). In each layer and row the heads are ranked by their attention on the
    image; the share `kept` of them stays, the output of the others is multiplied by `factor`. Nothing is
    renormalised. All images of a prompt count together.

    The rank is by attention after the softmax, which is what the paper says. The release ranks by the sum of
    the scores before it (`by="scores"`), which chooses other heads: a head with scores of -2 and 3 counts
    less there than one with 1 and 0.5. A model's soft cap is no part of these scores.
    """

    name: ClassVar[str] = "spin"
    summary: ClassVar[str] = "damp the heads that look least at the image, anew in every row"
    source: ClassVar[str] = "arXiv:2505.16411"
    edits: ClassVar[str] = "outputs of heads in the rows that predict the answer, in a layer range"
    cost: ClassVar[str] = "one forward; masses of all heads at once, or the image's keys once more"
    facts: ClassVar[Facts] = Facts(edits=("head outputs",), cost="one forward", needs=("all heads",))
    release: ClassVar[str] = (
        "YUECHE77/SPIN, MIT. Ranks by sums of raw scores; in a batch the prompt's gates of all samples land "
        "on the last sample; no grouped-query attention. kept, factor and layers differ by model and "
        "benchmark (0.8 and 0.1 on POPE)."
    )
    fixed_edits = True

    kept: Fraction = field(default=0.95, metadata={"help": "share of a layer's heads that stay (1: no edit)"})
    factor: NonNegativeFloat = field(
        default=0.08, metadata={"help": "of the other heads' output (1: no edit)"}
    )
    by: Literal["mass", "scores"] = field(
        default="mass",
        metadata={"help": "rank heads by attention on the image, or by the sum of scores, as released"},
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last edited layer; default: all"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.kept == 1.0 or self.factor == 1.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (RandomHeads(self),)

    def with_random_heads(self, seed: int) -> Intervention:
        """The method with as many heads of each layer damped, drawn once for all rows."""
        return with_behaviour(self, DampRandomHeads, head_seed=seed, fixed_edits=True)

    def count(self, heads: int) -> int:
        """How many of `heads` heads stay."""
        return int(self.kept * heads + 1e-9)  # 0.58 of 50 are 29, in floating point 28.99...

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        image = tokens.mask(Role.IMAGE)
        if self.is_identity or not image.any():
            return
        state["layers"] = attention_range(context, self.layers, (0, 31))
        predicting = tokens.answering() & image.any(1, keepdim=True)
        if self.by == "scores":
            gate = ScoreGate(image, self.count(context.num_heads), self.factor)
            prompt = replace(gate, rows=predicting)
            state["edits"] = AttentionEdit(score_gate=prompt), AttentionEdit(score_gate=gate)
            return
        policy = DampLowHeads(2, channel=1, kept=self.count(context.num_heads), factor=self.factor)
        answer = AttentionEdit(channels=Channels(groups=image.to(torch.uint8), num_groups=2), policy=policy)
        state["edits"] = answer.about(RowSelection.where(predicting)), answer

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        first, last = state.get("layers", (0, -1))
        return state["edits"][min(step, 1)] if first <= layer <= last else None
