"""SID: self-introspective decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from regaze.errors import BadParameterError, CompositionError
from regaze.interventions.base import Method
from regaze.interventions.common.ranking import least_attended
from regaze.interventions.contrastive import Contrastive
from regaze.interventions.controls.random_tokens import random_scores
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import PositiveFraction
from regaze.kernels import AttentionEdit, RowSelection, Stats, StatsRequest
from regaze.toolkit.model.callback import overrides
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.columns import column_index, scatter_columns
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class SID(Contrastive):
    """Contrast with the image tokens that the last row attends to least.

    Source: Huo et al., "Self-Introspective Decoding: Alleviating Hallucinations for Large Vision-Language
    Models" (arXiv:2408.02032). The branch has the same prompt and image. In each forward, the attention of
    the last row in layer `first_layer` - 1, averaged over heads, ranks the image tokens; from `first_layer`
    on the branch sees only the lowest of them, in all rows. The choice is made anew at every step, from the
    new token's row; what is hidden at one step stays in the cache and may be seen at the next. Several images
    of a prompt count as one set of tokens. As the branch does not differ before `first_layer`, a prompt is
    embedded once, images too, and runs through the layers before once.

    With a `seed` the branch sees as many random tokens, the same at every step: what is left of the gain is
    that of any pruned image. (An audit, arXiv:2504.10020, has measured this in the place of SID.)

    The paper's alpha could not be read; 0.5 is what the released scripts run with. `beta = 0` is what its
    greedy search does. A forward over a prompt and an answer hides what its last row attends to, so that it
    differs from generating the answer.
    """

    name: ClassVar[str] = "sid"
    summary: ClassVar[str] = "contrast with the image tokens that are attended to least"
    source: ClassVar[str] = "arXiv:2408.02032"
    edits: ClassVar[str] = "logits at every step; scores of all rows of the branch, in all but early layers"
    cost: ClassVar[str] = (
        "two rows per prompt in one forward, with the cache of both; of the prompt itself, one row in the "
        "image encoder and before first_layer"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("scores", "logits"),
        cost="two rows",
        graphs="compiled",
        needs=("second context", "all heads", "whole prompt"),
    )
    release: ClassVar[str] = (
        "huofushuo/SID, no licence. Greedy search takes the contrast without the cut (beta=0); the command "
        "line's alpha and beta are not passed on (0.5 and 0.1 are in force), and the README's commands for "
        "VCD and ICD on POPE run SID. In a batch the first sample's choice is everyone's and the padding "
        "mask is lost; more tokens than the image has are an error. Here samples are separate."
    )

    alpha: NonNegativeFloat = field(
        default=0.5, metadata={"help": "strength of the contrast with the negative branch (0: none)"}
    )
    share: PositiveFraction = field(
        default=0.174, metadata={"help": "share of the image tokens that the branch sees (100 of 576)"}
    )
    kept: PositiveInt | None = field(
        default=None, metadata={"help": "number of image tokens that the branch sees, instead of a share"}
    )
    first_layer: PositiveInt = field(
        default=2, metadata={"help": "layer from which on the others are hidden; the one before ranks them"}
    )
    seed: NonNegativeInt | None = field(
        default=None, metadata={"help": "control: the branch sees random image tokens, drawn with this seed"}
    )

    def controls(self) -> Sequence[Method]:
        found = super().controls()
        return (*found, replace(self, seed=0)) if self.alpha and self.seed is None else found

    def negative(self, context: Context) -> Branch:
        if self.first_layer >= context.num_layers:
            raise BadParameterError(
                f"first_layer {self.first_layer} does not exist: the model has layers "
                f"0..{context.num_layers - 1}"
            )
        return Branch(first_layer=self.first_layer)

    def prepare(self, context: Context) -> None:
        state = context.state(self)
        if "branch" not in state:
            return
        for other in context.callbacks:
            if overrides(other, "leaving") and "leaving" not in other.inactive:
                raise CompositionError(
                    "SID contrasts with the image tokens that are attended to least, and "
                    f"{type(other).__name__} takes these away; use one of them"
                )
        image = context.tokens.mask(Role.IMAGE)
        branch = torch.zeros(context.batch, 1, dtype=torch.bool)
        branch[context.rows(state["branch"])] = True
        image = image & branch  # other contexts see everything
        columns = column_index(image)
        state["columns"], state["kept"] = columns, self.count(image.sum(1))
        if self.seed is not None:
            self._hide(random_scores(columns >= 0, self.seed), context)
            return
        answer = StatsRequest(columns=columns)
        prompt = replace(answer, rows=RowSelection.where(context.tokens.last()))
        state["requests"] = prompt.as_edit, answer.as_edit

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        if layer >= self.first_layer:
            hiding: AttentionEdit | None = state.get("hiding")
            return hiding
        if "requests" not in state or layer < self.first_layer - 1:
            return None
        request: AttentionEdit = state["requests"][min(step, 1)]
        return request

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        assert stats.slices is not None
        weights = stats.slices.mean(1)
        # [batch, n]: the one row of the prompt that is active in a sample, later the last one fed.
        self._hide(weights.sum(1) if context.step == 0 else weights[:, -1], context)

    def _hide(self, weights: Tensor, context: Context) -> None:
        """From here on the branch sees the image tokens with the smallest weights [batch, n]."""
        state = context.state(self)
        if context.step == 0 or context.replaying:
            state["columns"], state["kept"] = (state[name].to(weights.device) for name in ("columns", "kept"))
        hidden = least_attended(weights, state["columns"] >= 0, state["kept"]).logical_not()
        bias = torch.zeros_like(weights).masked_fill(hidden, -torch.inf)
        bias = scatter_columns(bias, state["columns"], context.prompt_length, 0.0)
        state["hiding"] = AttentionEdit(bias=bias[:, None])

    def count(self, tokens: Tensor) -> Tensor:
        """How many of [B] image tokens the branch sees."""
        if self.kept is not None:
            return torch.full_like(tokens, self.kept)
        return (self.share * tokens).round().long().clamp_min(1)
