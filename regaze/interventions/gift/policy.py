"""The policy of GIFT: the image is re-weighted in the heads that attend to it most, and the query with it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regaze.caching import cached_property
from regaze.errors import BadParameterError
from regaze.kernels import HeadChoice, HeadStep, ScaleHeads, TritonPart


@dataclass(frozen=True)
class AmplifyTopHeads:
    """Re-weight the image in the heads with most image mass, and amplify the query by the gain of that.

    Of the channels named, `image` and `query` are 0/1 groups and `salient` holds the weights w_j >= 0 of the
    image keys (0 elsewhere); all others are groups, too. Per row, the `heads` heads with most image mass have
    their image weights multiplied by w_j; the pooled ratio of those heads' image mass after and before is the
    realised gain r; the `heads` heads with most query mass have their query weights multiplied by
    `query_gain` * r. Every row keeps its total mass. The choice of heads couples the heads of a row, not rows
    or samples; of equal masses the lower head number wins.

    Source: GIFT (arXiv:2510.22067), equations of the enhancement step.

    Attributes:
        channels: number K of channels.
        image, query, salient: channel numbers.
        heads: how many heads are chosen by image mass and, separately, by query mass.
        query_gain: the paper's beta.
    """

    channels: int
    image: int
    query: int
    salient: int
    heads: int
    query_gain: float = 1.0

    def __post_init__(self) -> None:
        named = (self.image, self.query, self.salient)
        if len(set(named)) != 3 or not all(0 <= channel < self.channels for channel in named):
            raise BadParameterError(
                f"image, query and salient must be three channels in 0..{self.channels - 1}, got {named}"
            )
        if self.heads < 0 or not self.query_gain > 0.0:
            raise BadParameterError(
                f"heads must not be negative and query_gain must be positive, got {self.heads} and "
                f"{self.query_gain}"
            )

    @cached_property
    def rule(self) -> ScaleHeads:
        """The same as two steps over the heads."""
        image, query = (HeadChoice(k, top=self.heads) for k in (self.image, self.query))
        reweighted = HeadStep(image, self._ones({self.image: 0.0}), self._ones({self.salient: 0.0}))
        amplified = HeadStep(query, self._ones({self.query: self.query_gain}), self._ones({}), self.query)
        return ScaleHeads((reweighted, amplified), renormalise=True, weighted=(self.salient,))

    def _ones(self, others: dict[int, float]) -> tuple[float, ...]:
        return tuple(others.get(k, 1.0) for k in range(self.channels))

    def __call__(self, masses: Tensor) -> Tensor:
        return self.rule(masses)

    def triton_part(self, heads: int) -> TritonPart:
        return self.rule.triton_part(heads)
