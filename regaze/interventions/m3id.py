"""M3ID: multi-modal mutual-information decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.interventions.base import Intervention, Method
from regaze.interventions.contrastive import WITHOUT_IMAGE, has_image, logits_to_constrain, rows_with_image
from regaze.interventions.controls import PlausibilityCut
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction, PositiveFraction
from regaze.toolkit.model.answer_count import AnswerCount
from regaze.toolkit.model.branches import without_image
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch


@dataclass(frozen=True)
class M3ID(Intervention):
    """Favour tokens that the image makes likelier, with a weight that grows with the answer's length.

    Source: Favero et al., "Multi-Modal Hallucination Control by Visual Information Grounding"
    (arXiv:2403.14003). On log-probabilities with and without the image, scores = l + w (l - l_text) with
    w = (1 - gamma_t) / gamma_t = exp(decay t) - 1 for the t-th token of the answer (from 1), where the model
    is unsure: its likeliest token has a probability below `kappa`. The weight is 0.02 at the first token, so
    that one-word answers hardly change, and 6.4 at the 100th; `max_weight` (ours) bounds it, so that long
    answers stay coherent. By default the bound is reached at token 70. `decay = 0` switches the method off.

    Without `as_released` it has no control of its own: with the same logits in the branch it is the plain
    model, and there is no cut.

    No code of the authors is known. `as_released=True` is the re-implementation in `sangminwoo/AvisC`: every
    token, no bound on the weight, and a plausibility constraint `beta`. The default decay is its value; the
    paper's kappa could not be verified.
    """

    name: ClassVar[str] = "m3id"
    summary: ClassVar[str] = "contrast with the text-only prompt, growing with the length of the answer"
    source: ClassVar[str] = "arXiv:2403.14003"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "two rows per prompt in one forward, with the cache of both"
    counts_steps: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(edits=("logits",), cost="two rows", needs=("second context",))
    release: ClassVar[str] = (
        "None by the authors. The re-implementation in sangminwoo/AvisC (MIT) omits the confidence test, "
        "adds a plausibility constraint, and lets the weight grow without bound (as_released=True)."
    )

    decay: NonNegativeFloat = field(
        default=0.02, metadata={"help": "lambda, how fast the image is forgotten per token (0: off)"}
    )
    kappa: PositiveFraction = field(
        default=0.3, metadata={"help": "the model is unsure when its best token is less likely (1: always)"}
    )
    max_weight: NonNegativeFloat | None = field(
        default=3.0, metadata={"help": "bound on the weight of the contrast (ours; null: none)"}
    )
    beta: Fraction = field(
        default=0.1,
        metadata={"help": "exclude tokens less likely than beta times the likeliest; only with as_released"},
    )
    as_released: bool = field(
        default=False,
        metadata={"help": "as in AvisC's code: no confidence test, no bound, a plausibility constraint"},
    )

    @property
    def is_identity(self) -> bool:
        return self.decay == 0.0

    def controls(self) -> Sequence[Method]:
        cuts = self.as_released and self.decay and self.beta
        return (PlausibilityCut(self.beta),) if cuts else ()

    def branches(self, context: Context) -> Mapping[str, Branch]:
        if self.is_identity or not has_image(context).any():
            return {}
        state = context.state(self)
        state["where"] = rows_with_image(context)
        state["count"] = AnswerCount(context)
        return {WITHOUT_IMAGE: without_image(context)}

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state = context.state(self)
        if "where" not in state:
            return None
        logits, text_only = context.logits(), context.logits(WITHOUT_IMAGE)
        weight = self.weight(logits, state["count"].advance(context, logits.shape[1]))
        where = state["where"]
        if where is not None:
            weight = weight * where.to(logits.device)
        plausibility = self.beta if self.as_released else 0.0
        plausibility_logits = logits_to_constrain(logits, where) if plausibility else None
        return LogitsCombination(
            1.0 + weight,
            [(-weight, text_only)],
            log_softmax=True,
            plausibility=plausibility,
            plausibility_logits=plausibility_logits,
        )

    def weight(self, logits: Tensor, t: Tensor) -> Tensor:
        """Weight of the contrast, [B, T, 1], for logits [B, T, V] that predict the t-th tokens [B, T]."""
        weight = torch.expm1(self.decay * t.to(logits.device).float())[..., None]
        if self.as_released:
            return weight
        likeliest = logits.float().log_softmax(-1).amax(-1, keepdim=True)
        unsure = likeliest < math.log(self.kappa)
        return (weight if self.max_weight is None else weight.clamp_max(self.max_weight)) * unsure
