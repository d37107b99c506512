"""The policy of ILVAD: some heads look more at the evidence, others more at grounded text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regaze.caching import cached_property
from regaze.kernels import HeadChoice, HeadStep, ScaleHeads, TritonPart

#: Channels of a row: text after the image (later keys are there, too), the image, everything else; then the
#: evidence of image tokens, their gains, the factors of text tokens.
TEXT, IMAGE, OTHER, EVIDENCE, GAIN, FACTOR = range(6)


@dataclass(frozen=True)
class RaiseEvidence:
    """Multiply image weights by their gains in some heads, text weights by their factors in some.

    The first are the `heads` heads with most evidence in proportion to their image mass, the second those
    with most mass on the text; of equals the lower ones. Every row keeps its total.

    Attributes:
        heads: how many heads are chosen, each time.
    """

    heads: int

    @property
    def channels(self) -> int:
        return 6

    @cached_property
    def rule(self) -> ScaleHeads:
        """The same as two steps over the heads."""
        looking = HeadChoice(EVIDENCE, over=IMAGE, top=self.heads)
        reading = HeadChoice(TEXT, top=self.heads)
        steps = (
            HeadStep(looking, (1.0, 0.0, 1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0, 0.0, 1.0)),
            HeadStep(reading, (0.0, 1.0, 1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0, 1.0, 0.0)),
        )
        return ScaleHeads(steps, renormalise=True, weighted=(EVIDENCE, GAIN, FACTOR))

    def __call__(self, masses: Tensor) -> Tensor:
        return self.rule(masses)

    def triton_part(self, heads: int) -> TritonPart:
        return self.rule.triton_part(heads)
