"""After AttnReal: attention that output tokens draw too much of is given to the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from regaze.interventions.base import Intervention, Method
from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.controls import UniformColumns
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.interventions.parameters import Fraction
from regaze.kernels import AttentionEdit, Channels, Outstanding, RowSelection
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role

#: Groups of a row's keys. Keys generated later are in group 0.
_OUTPUT, _IMAGE, _PROMPT, _SINK = range(4)


@dataclass(frozen=True)
class AttnReal(Intervention):
    """Take attention from the sinks among the tokens of the answer, and give it to the image.

    After Tu et al., "Attention Reallocation: Towards Zero-cost and Controllable Hallucination Mitigation of
    MLLMs" (arXiv:2503.08342); no reproduction. In the answer's rows, in `layers`, the weights of output
    sinks are multiplied by `rho`; what they lose goes to the image's tokens in proportion to their weights.
    Everything else stays, and so does the row's total. Rows that see no image are left alone.

    What we could not read is how sinks are chosen, whether the image's share is proportional, layers and rho.
    Here a sink is an output token that a row, head by head, weighs more than `above` times its mean weight
    (ours), or the tokens of the answer that `sinks` lists, 0 the first. Layers 12 to 31 of 32 and rho of 0.5
    are those of a later paper that uses this rule.
    """

    name: ClassVar[str] = "attnreal"
    summary: ClassVar[str] = "give attention that sinks among the answer's tokens draw to the image"
    source: ClassVar[str] = "after arXiv:2503.08342"
    edits: ClassVar[str] = "attention weights of the answer's rows, in a layer range"
    cost: ClassVar[str] = "one forward; masses of all heads, in plain torch unless sinks are listed"
    facts: ClassVar[Facts] = Facts(edits=("weights",), cost="one forward", when=("answer",))
    release: ClassVar[str] = (
        "No code and no threshold is published: this is the rule as papers state it, with a choice of sinks "
        "and settings that are not the authors'."
    )
    fixed_edits = True

    rho: Fraction = field(default=0.5, metadata={"help": "factor of a sink's attention (1: no edit)"})
    above: NonNegativeFloat = field(
        default=5.0, metadata={"help": "an output token with more than so many times the mean is a sink"}
    )
    sinks: Annotated[Sequence[NonNegativeInt], Field(min_length=1)] | None = field(
        default=None, metadata={"help": "numbers of the answer's tokens that are sinks instead"}
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last edited layer; default: 12 to 31 of 32, scaled"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks is not None:  # columns that are there from some step on
            object.__setattr__(self, "fixed_edits", False)

    @property
    def is_identity(self) -> bool:
        return self.rho == 1.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (UniformColumns(self),)

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        image, output = tokens.mask(Role.IMAGE), tokens.mask(Role.OUTPUT)
        if self.is_identity or not image.any():
            return
        state["layers"] = attention_range(context, self.layers, (12, 31))
        state["groups"] = torch.where(image, _IMAGE, torch.where(output, _OUTPUT, _PROMPT)).to(torch.uint8)
        state["answers"] = output.int().argmax(1).masked_fill(~output.any(1), tokens.length)
        # Of a prompt these rows are a part of the answer; its last row may run by itself.
        last = (output & tokens.last()).any(1, keepdim=True)
        state["rows"] = [RowSelection.where(mask) if mask.any() else None for mask in (output, last)]
        state["edits"] = {}

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        first, last = state.get("layers", (0, -1))
        if not first <= layer <= last:
            return None
        prompt = step == 0 or context.replaying
        rows = state["rows"][context.replaying] if prompt else None
        if prompt and rows is None:
            return None
        known = 0 if self.sinks is None else self._listed(context)
        if (rows, known) not in state["edits"]:
            channels = self._channels(state, known)
            state["edits"][rows, known] = AttentionEdit(rows, channels=channels, policy=self.policy)
        edit: AttentionEdit = state["edits"][rows, known]
        return edit

    @property
    def policy(self) -> MoveMass:
        """Moves 1 - rho of the sinks' mass to the image, in every head that sees it."""
        return MoveMass(4, (_SINK,), (_IMAGE,), (_IMAGE,), 1.0 - self.rho, min_share=0.0, min_mass=0.0)

    def _listed(self, context: Context) -> int:
        """How many keys of this forward the list can name."""
        assert self.sinks is not None
        end = context.prompt_length + max(self.sinks) + 1
        return min(context.cache_length + context.fed, end)

    def _channels(self, state: dict[Any, Any], known: int) -> Channels:
        groups: Tensor = state["groups"]
        if self.sinks is None:
            return Channels(groups, 4, outstanding=Outstanding(_OUTPUT, _SINK, self.above))
        groups = F.pad(groups, (0, max(0, known - groups.shape[1])), value=_OUTPUT)
        columns = state["answers"][:, None] + torch.tensor(self.sinks)
        places = torch.arange(groups.shape[1])
        listed = (places == columns[..., None]).any(1) & (groups == _OUTPUT)
        return Channels(groups.masked_fill(listed, _SINK), 4)
