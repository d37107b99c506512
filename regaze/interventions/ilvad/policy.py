"""The policy of ILVAD: some heads look more at the evidence, others more at grounded text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.interventions.gift.policy import top_heads
from regaze.interventions.ilvad.evidence import share_of_evidence

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

    def __call__(self, masses: Tensor) -> Tensor:
        text, image, other, evidence = (masses[..., k] for k in (TEXT, IMAGE, OTHER, EVIDENCE))
        looking = top_heads(share_of_evidence(image, evidence), self.heads)
        reading = top_heads(text, self.heads)
        looks, reads = looking.to(masses.dtype), reading.to(masses.dtype)
        zero = torch.zeros_like(text)
        coefficients = torch.stack([1 - reads, 1 - looks, torch.ones_like(other), zero, looks, reads], -1)
        total = (text + image + other)[..., None]
        edited = (masses * coefficients).sum(-1, keepdim=True)
        tiny = torch.finfo(masses.dtype).tiny
        return coefficients * torch.where(edited > 0, total / edited.clamp_min(tiny), 1.0)
