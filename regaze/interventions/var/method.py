"""VAR: visual attention redistribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from regaze.interventions.base import Intervention, Method
from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.controls import UniformColumns
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction
from regaze.kernels import AttentionEdit, Channels, Placeable, RowSelection
from regaze.toolkit.analysis.sink_profile import SinkProfile, published_sinks, sink_profile, sink_values
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role, TokenMap

#: Channels of a row. Generated keys belong to group 0 by construction, so they are never sinks.
_OTHER, _TEXT_SINK, _IMAGE_SINK, _IMAGE = range(4)


@dataclass(frozen=True, eq=False)
class PromptMasks(Placeable):
    """Tokens of the prompts, [B, L] bool each: those of an image, and those that can be sinks."""

    image: Tensor
    candidates: Tensor

    @classmethod
    def of(cls, tokens: TokenMap) -> PromptMasks:
        return cls(tokens.mask(Role.IMAGE), ~tokens.mask(Role.PAD, Role.OUTPUT))


@dataclass(frozen=True)
class VAR(Intervention):
    """Move attention from sink tokens to the image, in heads that attend to the image.

    Source: Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models"
    (arXiv:2503.03321).

    In every layer but the first two and the last, tokens whose sink value reaches `tau` are sinks. A text row
    of a head is edited when it puts at least `min_image_mass` on the image and at least the share `rho` of
    that on image tokens that are not sinks. Then the fraction `moved` of the attention on all sinks, textual
    and visual, moves to the image tokens that are not sinks, in proportion to their attention. Rows keep
    their sum. Sinks are those of the prompt, per sample and layer.

    The release (`seilk/VisAttnSink`) has the opposite conventions, rho_code = 1 - rho and p_code = 1 - moved;
    see `from_released`. With `as_released=True` its behaviour is reproduced where it differs by design: the
    last layer is edited as well, a sink must exceed tau strictly, and a layer without a visual sink is left
    unchanged. Its defects are not reproduced: sinks that are stale after the first sample, the 7B dimensions
    used for 13B, prompts without BOS.
    """

    name: ClassVar[str] = "var"
    summary: ClassVar[str] = "move attention from sink tokens to image tokens in image-centric heads"
    source: ClassVar[str] = "arXiv:2503.03321"
    edits: ClassVar[str] = (
        "attention weights after the softmax, in text rows after the image, in all layers but the first two "
        "and the last"
    )
    cost: ClassVar[str] = "one forward; one group number per key and layer in memory"
    facts: ClassVar[Facts] = Facts(edits=("weights",), cost="one forward", needs=("hidden states",))
    release: ClassVar[str] = (
        "seilk/VisAttnSink, Apache-2.0. State of the first sample is never cleared, so that from the second "
        "on sinks are stale and image rows are edited too; the last layer is not skipped (as_released=True); "
        "13B models get the sink dimensions of 7B; prompts run without BOS; both fractions are "
        "complements of the paper's (`VAR.from_released`)."
    )
    needs_hidden_states: ClassVar[bool] = True
    fixed_edits = True

    rho: NonNegativeFloat = field(
        default=0.5,
        metadata={
            "help": "least share of a head's image attention on non-sinks (paper: 0.8 general, 0.5, 0.9; "
            "above 1: no edit)"
        },
    )
    moved: Fraction = field(
        default=0.6, metadata={"help": "fraction of the sinks' attention that is moved (0: no edit)"}
    )
    tau: PositiveFloat | None = field(
        default=None, metadata={"help": "sink threshold; default 20, or the model's own profile"}
    )
    min_image_mass: Fraction = field(default=0.2, metadata={"help": "least attention of a head on the image"})
    sink_dimensions: Sequence[int] | None = field(
        default=None, metadata={"help": "sink dimensions of the base model; default: published ones"}
    )
    as_released: bool = field(
        default=False, metadata={"help": "behave as the released code where it differs from the paper"}
    )

    @classmethod
    def from_released(cls, rho: float = 0.5, p: float = 0.6, tau: float = 20.0, summ: float = 0.2) -> VAR:
        """VAR with the values of the release's yml file, in its convention."""
        return cls(rho=1.0 - rho, moved=1.0 - p, tau=tau, min_image_mass=summ, as_released=True)

    @property
    def is_identity(self) -> bool:
        return self.moved == 0.0 or self.rho > 1.0

    @property
    def prompt_needs(self) -> Literal["values", "whole"]:  # type: ignore[override]
        return "whole" if self.as_released else "values"  # whether there are sinks at all decides for each

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (UniformColumns(self),)

    def prepare(self, context: Context) -> None:
        state = context.state(self)
        has_image = bool(context.tokens.mask(Role.IMAGE).any())
        known = self.sink_dimensions is not None or published_sinks(context.config) is not None
        if not self.is_identity and (has_image or known):
            state["profile"] = sink_profile(context.config, self.sink_dimensions, self.tau)
        if self.is_identity or not has_image:
            state["off"] = True
            return
        state["prompt"] = PromptMasks.of(context.tokens)
        state["rows"] = RowSelection.where(context.tokens.after_image())
        state["policy"] = MoveMass(
            channels=4,
            donors=(_TEXT_SINK, _IMAGE_SINK),
            receivers=(_IMAGE,),
            gate=(_IMAGE_SINK, _IMAGE),
            moved=self.moved,
            min_share=self.rho,
            min_mass=self.min_image_mass,
        )

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        if "off" in state or self._skips(layer, context):
            return None
        if step > 0:  # every row, with the sinks of the prompt
            return state[layer]
        groups = self.groups(context.row_values(self, layer), state["profile"], state["prompt"])
        edit = state[layer] = AttentionEdit(
            channels=Channels(groups=groups, num_groups=4), policy=state["policy"]
        )
        return edit.about(state["rows"])

    def _skips(self, layer: int, context: Context) -> bool:
        return layer < 2 or (layer == context.num_layers - 1 and not self.as_released)

    def row_value(self, layer: int, hidden: Tensor, context: Context) -> Tensor | None:
        """The sink value, without an image too: another prompt with the same beginning may have one.

        None where the model's sink dimensions are unknown: no prompt with an image is edited there.
        """
        profile = context.state(self).get("profile")
        if profile is None or self._skips(layer, context):
            return None
        return sink_values(hidden, profile.dimensions)

    def groups(self, phi: Tensor, profile: SinkProfile, prompt: PromptMasks) -> Tensor:
        """Channel of each prompt token from the sink values [B, L] in the layer's input: [B, L] uint8."""
        image, candidates = (prompt := prompt.to(phi.device)).image, prompt.candidates
        sink = phi > profile.tau if self.as_released else phi >= profile.tau
        sink &= candidates
        if self.as_released:
            sink &= (sink & image).any(1, keepdim=True)
        text = torch.where(sink, _TEXT_SINK, _OTHER)
        return torch.where(image, torch.where(sink, _IMAGE_SINK, _IMAGE), text).to(torch.uint8)
