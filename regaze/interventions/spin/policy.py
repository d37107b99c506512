"""The policy of SPIN: heads with little mass on a channel are damped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regaze.caching import cached_property
from regaze.kernels import HeadChoice, HeadStep, ScaleHeads, TritonPart


@dataclass(frozen=True)
class DampLowHeads:
    """Multiply all weights of a head by `factor`, unless it is among the `kept` with most of a channel.

    Nothing is renormalised. Of equal heads the lower ones are kept; a row in which no head has any of the
    channel is left alone.

    Attributes:
        channels: number K of channels.
        channel: the one whose mass ranks the heads.
        kept: how many heads of a row stay as they are.
        factor: of the others.
    """

    channels: int
    channel: int
    kept: int
    factor: float

    def __post_init__(self) -> None:
        _ = self.rule  # which refuses a channel that is not there

    @cached_property
    def rule(self) -> ScaleHeads:
        """The same as a step over the heads."""
        stay, damped = (1.0,) * self.channels, (float(self.factor),) * self.channels
        return ScaleHeads((HeadStep(HeadChoice(self.channel, top=self.kept), stay, damped),))

    def __call__(self, masses: Tensor) -> Tensor:
        return self.rule(masses)

    def triton_part(self, heads: int) -> TritonPart:
        return self.rule.triton_part(heads)
