"""FastV: half of the image tokens leave behind the second layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction
from regaze.interventions.pruning.base import Pruning, last_of_prompt
from regaze.kernels import AttentionEdit, RowSelection, Stats, StatsRequest
from regaze.toolkit.model.context import Context


@dataclass(frozen=True)
class FastV(Pruning):
    """Keep the image tokens that the prompt's last row attends to most, from `first_layer` on.

    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (arXiv:2403.06764). The score of an
    image token is its weight in the last row of the prompt in layer `first_layer` - 1, averaged over heads;
    of N tokens round(N (1 - dropped)) stay, halves rounded to even. The choice is made once per prompt.

    With `rechoose` each new token's row chooses anew among all image tokens, as in the release's first form,
    from which the paper's ablations are; tokens can only be hidden then.
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "image tokens that are attended to least leave behind an early layer"
    source: ClassVar[str] = "arXiv:2403.06764"
    edits: ClassVar[str] = "hidden states and cache from an early layer on"
    cost: ClassVar[str] = (
        "less than plain: fewer rows and keys in most layers; one row of one layer at the prompt"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("tokens",), cost="fewer rows", when=("prompt",), graphs="broken", needs=("whole prompt",)
    )
    release: ClassVar[str] = (
        "pkunlp-icler/FastV, no licence. The first sample of a batch chooses for all, and the padding mask "
        "is lost; the scripts take the image to begin a token late. The form for lmms-eval stores keys of "
        "the ranking layer twice. One of its forms hides tokens and chooses at each step (`rechoose`), the "
        "others remove them."
    )
    fixed_edits = True

    dropped: Fraction = field(default=0.5, metadata={"help": "share of the image tokens that leave"})
    kept: PositiveInt | None = field(
        default=None, metadata={"help": "number of image tokens that stay, instead of a share"}
    )
    first_layer: PositiveInt = field(
        default=2, metadata={"help": "first layer without them; the one before ranks them"}
    )
    rechoose: bool = field(
        default=False, metadata={"help": "choose at each step, from the new token's row (needs remove=false)"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rechoose and self.remove:
            raise BadParameterError(
                "'fastv': what has been removed cannot be chosen again: set remove=false with rechoose=true"
            )
        object.__setattr__(self, "fixed_edits", not self.rechoose)

    @property
    def is_identity(self) -> bool:
        return self.dropped == 0.0 and self.kept is None

    def stages(self, context: Context, tokens: Tensor) -> Mapping[int, Tensor]:
        return {self.first_layer: self.count(tokens)}

    def count(self, tokens: Tensor) -> Tensor:
        """How many of [B] image tokens stay."""
        if self.kept is not None:
            return torch.full_like(tokens, self.kept)
        return torch.tensor([round(count * (1.0 - self.dropped)) for count in tokens.tolist()])

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        state = context.state(self)
        if "tokens" in state:
            answer = StatsRequest(columns=state["tokens"].columns)
            prompt = replace(answer, rows=RowSelection.where(last_of_prompt(context)))
            state["requests"] = prompt.as_edit, answer.as_edit

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        if layer >= self.first_layer:
            return self.hiding(layer, context)
        if "requests" not in state or layer < self.first_layer - 1 or (step and not self.rechoose):
            return None
        request: AttentionEdit = state["requests"][min(step, 1)]
        return request

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        state, weights = context.state(self), stats.slices
        assert weights is not None
        # [batch, N]: the one row of the prompt that is active in a sample, later the last one fed.
        state["row"] = weights.mean(1).sum(1) if context.step == 0 else weights.mean(1)[:, -1]
        if context.step:
            state.pop("chosen", None)  # among all of them
            self.choose(self.first_layer, context)

    def scores(self, layer: int, context: Context) -> Tensor:
        row: Tensor = context.state(self)["row"]
        return row
