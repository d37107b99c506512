"""PyramidDrop: image tokens leave in stages, half of them at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction, Layers
from regaze.interventions.pruning.base import Pruning, last_of_prompt, scaled_layers
from regaze.kernels import AttentionEdit, RowSelection, StatsRequest
from regaze.toolkit.model.context import Context

_LAYERS, _DEPTH = (8, 16, 24), 32


@dataclass(frozen=True)
class PyramidDrop(Pruning):
    """Keep ever fewer image tokens, those that the prompt's last row attends to most.

    Source: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
    Redundancy Reduction" (arXiv:2410.17247). Before each stage, int(N share) of the prompt's N image tokens
    stay, those with the largest weights in the last row of the prompt, averaged over heads, in the attention
    of the layer that is about to run. Its queries and keys are computed once more for that.

    The release numbers positions anew after each stage. Here they stay as they were, so that removing and
    hiding tokens are the same.
    """

    name: ClassVar[str] = "pyramiddrop"
    summary: ClassVar[str] = "half of the image tokens leave at each of three depths"
    source: ClassVar[str] = "arXiv:2410.17247"
    edits: ClassVar[str] = "hidden states and cache from each of three layers on"
    cost: ClassVar[str] = (
        "less than plain: fewer rows and keys in later layers; at the prompt queries and keys of three layers"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("tokens",), cost="fewer rows", when=("prompt",), graphs="broken", needs=("whole prompt",)
    )
    release: ClassVar[str] = (
        "Cooperx521/PyramidDrop, MIT. Positions are numbered anew; grouped queries fail, the padding mask is "
        "lost, and only right padding is known. Its models are trained with the method."
    )
    fixed_edits = True

    layers: Layers | None = field(
        default=None, metadata={"help": "layers before which tokens leave (null: 8, 16, 24 of 32, scaled)"}
    )
    kept: Annotated[Sequence[Fraction], Field(min_length=1)] = field(
        default=(0.5, 0.25, 0.125),
        metadata={"help": "share of the image tokens that each of these layers has"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(_LAYERS if self.layers is None else self.layers)
        if len(self.kept) != count:
            raise BadParameterError(
                f"'pyramiddrop': kept must have a share for each of the {count} layers, got {self.kept!r}"
            )

    @property
    def is_identity(self) -> bool:
        return min(self.kept) == 1.0

    def stages(self, context: Context, tokens: Tensor) -> Mapping[int, Tensor]:
        layers = self.layers or scaled_layers(_LAYERS, _DEPTH, context.num_layers)
        return {
            layer: torch.tensor([int(count * share) for count in tokens.tolist()])
            for layer, share in zip(layers, self.kept, strict=True)
        }

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        state = context.state(self)
        if "tokens" in state:
            rows = RowSelection.where(last_of_prompt(context))
            state["request"] = StatsRequest(rows=rows, columns=state["tokens"].columns)

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return self.hiding(layer, context)

    def scores(self, layer: int, context: Context) -> Tensor:
        weights = context.look_ahead(context.state(self)["request"]).slices
        assert weights is not None
        return self.shares(weights, context).mean(1).sum(1)  # one row of a sample is active
