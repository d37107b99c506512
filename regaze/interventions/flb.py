"""FLB: first logit boosting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.errors import InputError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls import PlausibilityCut
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.answer_count import AnswerCount
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination


@dataclass(frozen=True)
class FLB(Intervention):
    """Add the logits of the answer's first token to those of all later ones, more the longer the answer is.

    Source: "First Logit Boosting" (arXiv:2604.00455). With t = 0 for the first token, scores = logits_t +
    gamma (1 - exp(-decay t)) logits_0, and -inf where the plain logits_t are more than ln(1 / beta) below
    their maximum. The first logits come from the whole prompt, image and question. The first token gets the
    cut alone, so that answers of one word measure nothing else; `gamma = 0` is the cut alone for all tokens.
    `gamma = beta = 0` switches the method off. Works for text-only models.

    A further turn over the cache of a chat begins with first logits of its own.
    """

    name: ClassVar[str] = "flb"
    summary: ClassVar[str] = "add the logits of the answer's first token to all later ones"
    source: ClassVar[str] = "arXiv:2604.00455"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "one forward; the logits of one row per sequence in memory"
    counts_steps: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(edits=("logits",), cost="one forward")
    release: ClassVar[str] = (
        "jiwooha20/FLB, Apache-2.0. Acts on samples only: with do_sample=False or beams nothing happens. "
        "Positional arguments of its LLaVA script collide, and without any it samples plainly (use_flb is "
        "false). Together with VCD it cuts twice and boosts VCD's scores; here both read the plain logits."
    )

    gamma: NonNegativeFloat = field(
        default=0.3, metadata={"help": "weight of the first logits late in an answer (0: none)"}
    )
    decay: NonNegativeFloat = field(
        default=0.05, metadata={"help": "lambda, how fast the weight grows per token"}
    )
    beta: Fraction = field(
        default=0.1, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.gamma == 0.0 and self.beta == 0.0

    def controls(self) -> Sequence[Method]:
        return (PlausibilityCut(self.beta),) if self.gamma and self.beta else ()

    def prepare(self, context: Context) -> None:
        if self.gamma > 0.0:
            context.state(self)["count"] = AnswerCount(context)

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        count = context.state(self).get("count")
        if count is None:  # the constraint alone
            return LogitsCombination(plausibility=self.beta) if self.beta else None
        logits = context.logits()
        weight = self.weight(count.advance(context, logits.shape[1]) - 1)
        if context.step == 0:
            self._keep(context, _first_rows(logits, count))
        elif context.turn_begins:
            self._keep(context, logits[:, -1])
        first = context.row_state(self)["first"][: context.user_batch, None]
        return LogitsCombination(others=[(weight.to(first.device), first)], plausibility=self.beta)

    def weight(self, t: Tensor) -> Tensor:
        """Weight [B, T, 1] of the first logits for the t-th tokens, [B, T] from 0."""
        return -self.gamma * torch.expm1(-self.decay * t.clamp_min(0).float())[..., None]

    def _keep(self, context: Context, first: Tensor) -> None:
        """Keep the first logits [B, V]; a token that was impossible then is not made so for good."""
        first = first.masked_fill(first.isneginf(), 0.0)
        context.row_state(self)["first"] = first.repeat(context.batch // context.user_batch, 1)


def _first_rows(logits: Tensor, count: AnswerCount) -> Tensor:
    """[B, V] of the rows that predict the first tokens, from the logits [B, T, V] of a prefill."""
    rows = count.first - (count.prompt.shape[1] - logits.shape[1])
    if int(rows.min()) < 0:
        raise InputError(
            "FLB needs the logits of the row that predicts the first token, which this forward does not "
            "return: pad prompts on the left, and leave out logits_to_keep where an answer has begun"
        )
    return logits[torch.arange(len(rows)), rows]
