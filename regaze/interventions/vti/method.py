"""VTI: visual and textual intervention, along directions fitted once per model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.caching import cached_property
from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.interventions.facts import Facts
from regaze.interventions.fitting import FittedIntervention
from regaze.interventions.vti.fit import VTIFit
from regaze.interventions.vti.steering import UnitDirections, steer
from regaze.toolkit.model.context import Context


@dataclass(frozen=True)
class VTI(FittedIntervention):
    """Turn MLP outputs towards true captions, and those of the vision tower towards what masking leaves.

    Source: Liu et al., "Reducing Hallucinations in Vision-Language Models via Latent Space Steering"
    (arXiv:2410.15778). Text directions: the residual stream after each layer at the end of a caption, true
    minus invented, mean over pairs plus their first principal component. Vision directions: hidden states of
    the tower, mean over copies with nearly all patches masked minus the image's own, per token. See `VTIFit`.

    Every MLP output x of every layer, at every token of prompt and answer, becomes
    normalise(x/|x| + 0.1 strength d/|d|) |x|.
    """

    name: ClassVar[str] = "vti"
    summary: ClassVar[str] = "steer MLP outputs of language model and vision tower along fitted directions"
    source: ClassVar[str] = "arXiv:2410.15778"
    edits: ClassVar[str] = "MLP outputs of the vision tower, and of all layers at prefill and every step"
    cost: ClassVar[str] = (
        "one forward; fitted once per model with two forwards and 51 passes of the vision tower per pair"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("vision tower", "MLP outputs"),
        cost="one forward",
        graphs="broken",
        needs=("fit", "vision tower"),
    )
    release: ClassVar[str] = (
        "shengliu66/VTI, no licence. Vision directions are fitted on groups of features that mix tokens and "
        "layers, and further components take their signs from the first (as_released=True of the fit: both); "
        "the last layer's direction is fitted after the final norm; everything becomes fp16; the vision "
        "strength is 0 by default. Here groups are tokens, each component has its own sign, and the residual "
        "stream is read before the norm."
    )
    fit: ClassVar[type[VTIFit]] = VTIFit
    needs_pixels: ClassVar[bool] = True  # so that the tower runs inside the prompt's forward

    text: NonNegativeFloat = field(
        default=0.9, metadata={"help": "strength in the language model, in tenths of x (0: none)"}
    )
    vision: NonNegativeFloat = field(
        default=0.9, metadata={"help": "strength in the vision tower, in tenths of x (0: none)"}
    )

    @property
    def is_identity(self) -> bool:
        return self.text == 0.0 and self.vision == 0.0

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "edited"

    @property
    def inactive(self) -> frozenset[str]:  # type: ignore[override]
        strengths = {"edit_mlp": self.text, "edit_vision_mlp": self.vision}
        return frozenset(name for name, strength in strengths.items() if strength == 0.0)

    @cached_property
    def _unit(self) -> dict[str, UnitDirections]:
        return {name: UnitDirections.of(self.given()[name]) for name in self.given().names}

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        directions = self.checked(context)
        for name in ("text", "vision"):
            if getattr(self, name) and name not in directions:
                raise BadParameterError(
                    f"'vti': the directions have no part {name!r}: set {name}=0, or fit them with it"
                )

    def edit_mlp(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        return steer(hidden, self._unit["text"].to(hidden.device).rows[layer], self.text)

    def edit_vision_mlp(self, block: int, hidden: Tensor, context: Context) -> Tensor:
        unit = self._unit["vision"].to(hidden.device).rows
        if block >= len(unit) or hidden.shape[1:] != unit.shape[1:]:
            raise UnsupportedModelError(
                f"'vti': the directions are of a vision tower with {len(unit)} blocks and tokens "
                f"{list(unit.shape[1:])}, but block {block} of this one has {list(hidden.shape[1:])}: images "
                "of one size, or vision=0"
            )
        return steer(hidden, unit[block], self.vision)
