"""ICT: image-object cross-level trusted intervention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn

from regaze.caching import cached_property
from regaze.errors import BadParameterError
from regaze.interventions.facts import Facts
from regaze.interventions.fitting import Directions, FittedIntervention
from regaze.interventions.ict.fit import ICTFit
from regaze.kernels import Placeable
from regaze.toolkit.model import compat
from regaze.toolkit.model.context import Context


@dataclass(frozen=True, eq=False)
class Added(Placeable):
    """What is added to the attention's output of a layer, [D], and in which rows of the prompt, [B, L, 1]."""

    vector: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class HeadShifts(Placeable):
    """What is added to the heads of all layers, [L, H d], and the layers in which that is something."""

    heads: Tensor
    layers: tuple[int, ...]


@dataclass(frozen=True)
class ICT(FittedIntervention):
    """Shift the heads that tell trusted from untrusted inputs best, in the rows that predict the answer.

    Source: Chen et al., "ICT: Image-Object Cross-Level Trusted Intervention for Mitigating Object
    Hallucination in Large Vision-Language Models" (arXiv:2411.15268). Each of the chosen heads gets
    strength times its shift before the output projection, which makes one vector per layer of it. See
    `ICTFit` for the shifts and for how heads are scored; image and object level choose their own.
    """

    name: ClassVar[str] = "ict"
    summary: ClassVar[str] = "shift heads towards what they do on images that can be trusted"
    source: ClassVar[str] = "arXiv:2411.15268"
    edits: ClassVar[str] = "attention outputs in the rows that predict the answer"
    cost: ClassVar[str] = "one forward; fitted once per model with two or three forwards per question"
    facts: ClassVar[Facts] = Facts(
        edits=("attention outputs",), cost="one forward", graphs="broken", needs=("fit",)
    )
    release: ClassVar[str] = (
        "THU-BPM/ICT, no licence. Its heads are blocks of the attention's output after the projection "
        "(blocks=128 of the fit), which are no heads; every untrusted sequence of the image level ends in "
        '"yes" (as_released=True of the fit); it is fitted on the questions that are evaluated, with their '
        "labels; and the probes' solver stops early, so that heads differ between runs. The scripts for 13B "
        "halve the shifts of a head that both levels chose (as_released=True)."
    )
    fit: ClassVar[type[ICTFit]] = ICTFit

    alpha: NonNegativeFloat = field(default=8.0, metadata={"help": "strength of the image level (0: none)"})
    beta: NonNegativeFloat | None = field(
        default=None,
        metadata={"help": "strength of the object level; default: alpha, or 0 where it was not fitted"},
    )
    heads: NonNegativeInt | None = field(
        default=None, metadata={"help": "K, heads of each level; default: 256 of 1024, scaled"}
    )
    as_released: bool = field(
        default=False, metadata={"help": "half of each shift for a head that both levels chose"}
    )

    @property
    def is_identity(self) -> bool:
        return self.heads == 0 or (self.alpha == 0.0 and not self.beta)

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    def shifts(self, found: Directions) -> Tensor:
        """[L, H, d] what is added to the heads.

        Raises:
            BadParameterError: `beta` is given, but the object level was not fitted.
        """
        strengths = {"image": self.alpha, "object": self.alpha if self.beta is None else self.beta}
        if self.beta is None and "object" not in found:
            del strengths["object"]
        elif self.beta and "object" not in found:
            raise BadParameterError(
                "'ict': the directions have no object level: their data named no object_image; set beta=0"
            )
        used = {
            level: chosen_heads(found[f"{level}_score"], self.heads)
            for level, strength in strengths.items()
            if strength
        }
        if not used:
            return torch.zeros_like(found["image"])
        total = sum(strengths[level] * found[level] * heads[..., None] for level, heads in used.items())
        assert isinstance(total, Tensor)
        if self.as_released and len(used) == 2:
            both = used["image"] & used["object"]
            total = total * torch.where(both, 0.5, 1.0)[..., None]
        return total

    @cached_property
    def _shifts(self) -> HeadShifts:
        heads = self.shifts(self.given()).flatten(1)
        return HeadShifts(heads, tuple(heads.any(1).nonzero().flatten().tolist()))

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        found = self.checked(context)
        shifts, state = self._shifts, context.state(self)
        rows = context.tokens.answering()[..., None]
        in_blocks = found.about["settings"].get("blocks") is not None
        for layer, projection in enumerate(compat.output_projections(context.model)):
            if projection is not None and layer in shifts.layers:
                given = shifts.heads[layer] if in_blocks else projected(projection, shifts, layer)
                state[layer] = Added(given, rows)

    def edit_attention_output(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        added = context.state(self).get(layer)
        if added is None:
            return hidden
        placed = added.to(hidden.device)
        if context.step or context.replaying:  # every row predicts a token of the answer
            return (hidden.float() + placed.vector).to(hidden.dtype)
        return torch.where(placed.rows, (hidden.float() + placed.vector).to(hidden.dtype), hidden)


def chosen_heads(scores: Tensor, count: int | None) -> Tensor:
    """[L, H] bool, the heads with the best scores [L, H]; of equal ones the first."""
    flat = scores.flatten()
    count = round(flat.numel() / 4) if count is None else min(count, flat.numel())
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[:count]] = True
    return chosen.view(scores.shape) & (scores > 0)


def projected(projection: Any, shifts: HeadShifts, layer: int) -> Tensor:
    """[D] fp32, what an output projection makes of what is added to the heads before it."""
    weight = next(projection.parameters())
    heads = shifts.to(weight.device).heads[layer]
    width = getattr(projection, "in_features", heads.numel())
    if heads.numel() != width:
        raise BadParameterError(
            f"'ict': the directions are of {heads.numel()} channels of heads, this model has {width}"
        )
    with torch.no_grad():
        if isinstance(projection, nn.Linear) and weight.is_floating_point():
            return nn.functional.linear(heads.to(weight.dtype), weight).float()
        dtype = weight.dtype if weight.is_floating_point() else torch.float16
        out = projection(torch.stack([heads, torch.zeros_like(heads)]).to(dtype)).float()
    return out[0] - out[1]
