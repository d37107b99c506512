"""VAF: visual amplification fusion (ClearSight)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import NonNegativeFloat

from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls import UniformColumns
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.kernels import AttentionEdit, RowSelection
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class VAF(Intervention):
    """Multiply the scores of image keys and of system keys in the middle layers.

    Source: Yin et al., "ClearSight: Visual Signal Enhancement for Object Hallucination Mitigation in
    Multimodal Large Language Models" (arXiv:2503.13107). In layers 9 to 14 of 32, in all heads and all rows
    after the image, scores of image keys are multiplied by `enhance` and those of system keys by `suppress`,
    before the softmax. This sharpens rather than shifts: a negative score of an image key falls. The rows of
    the question are edited as well, so that keys and values of the prompt change in later layers.
    """

    name: ClassVar[str] = "vaf"
    summary: ClassVar[str] = "multiply the scores of image keys and of system keys in the middle layers"
    source: ClassVar[str] = "arXiv:2503.13107"
    edits: ClassVar[str] = "scores of all rows after the image before the softmax, in a range of layers"
    cost: ClassVar[str] = "one forward"
    facts: ClassVar[Facts] = Facts(edits=("scores",), cost="one forward")
    release: ClassVar[str] = (
        "ustc-hyin/ClearSight, no licence. Image and system columns are constants (35 and 576), whatever the "
        "prompt; batches of one. Here every row has its own columns."
    )
    fixed_edits = True

    enhance: NonNegativeFloat = field(default=1.15, metadata={"help": "factor of the scores of image keys"})
    suppress: NonNegativeFloat = field(default=0.95, metadata={"help": "factor of the scores of system keys"})
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last edited layer; default: 9 to 14 of 32, scaled"}
    )

    @property
    def is_identity(self) -> bool:
        return self.enhance == self.suppress == 1.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (UniformColumns(self),)

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        image = tokens.mask(Role.IMAGE)
        if self.is_identity or not image.any():
            return
        system = tokens.mask(Role.SYSTEM) & image.any(1, keepdim=True)  # prompts without an image stay
        state["layers"] = attention_range(context, self.layers, (9, 14))
        gain = 1.0 + (self.enhance - 1.0) * image + (self.suppress - 1.0) * system
        answer = AttentionEdit(score_gain=gain[:, None])
        state["edits"] = answer.about(RowSelection.where(tokens.after_image())), answer

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        first, last = state.get("layers", (0, -1))
        return state["edits"][min(step, 1)] if first <= layer <= last else None
