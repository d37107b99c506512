"""DoLa: decoding by contrasting layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls import PlausibilityCut
from regaze.interventions.divergences import jensen_shannon, reversed_jensen_shannon
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction, Layers
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination, combine

#: Largest size of a bucket; the paper has more buckets for models with more layers.
_BUCKET = 20


@dataclass(frozen=True)
class DoLa(Intervention):
    """Contrast the model's logits with those of an early layer, which is chosen for every token.

    Source: Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language
    Models" (arXiv:2309.03883). scores = log p - log p_j among tokens at least `beta` times as likely as the
    likeliest; of the candidates, j is the layer whose distribution has the largest Jensen-Shannon divergence
    from p, per token and per row (the first of equals). Layer j means the residual stream that enters layer
    j, 0 the embeddings. "low" is every other layer of the first half (0, 2 .. 14 of 32: short answers, the
    choice of vision-language papers), "high" of the second (16 .. 30: TruthfulQA), at most the first or last
    20 layers. Without `norm` early exits skip the final norm, as in the release. Works for text-only models.

    Where input and output embeddings are one matrix, layer 0 always predicts the token that was just read, so
    that "low" begins at 2 (or 1, in a model of few layers). The paper decodes with a repetition penalty of
    1.2; pass it to `generate`. `weight = 0` switches the method off.

    With `as_released=True` (`voidism/DoLa`) the divergence has the arguments of its terms exchanged,
    KL(m || p) for KL(p || m), which can choose another layer.
    """

    name: ClassVar[str] = "dola"
    summary: ClassVar[str] = "contrast with the logits of an early layer"
    source: ClassVar[str] = "arXiv:2309.03883"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "one forward, and the output head once per candidate layer"
    facts: ClassVar[Facts] = Facts(
        edits=("logits",), cost="output head", graphs="broken", needs=("layer logits",)
    )
    release: ClassVar[str] = (
        "voidism/DoLa, no licence. The Jensen-Shannon divergence has its arguments exchanged "
        "(as_released=True); in a batch, divergences are averaged and the first row's threshold is used for "
        "all, neither of which is reproduced: here every row is separate."
    )

    bucket: Literal["low", "high"] = field(
        default="low", metadata={"help": "half of the layers the candidates are from"}
    )
    layers: Layers | None = field(
        default=None, metadata={"help": "candidate layers instead of a bucket; one: always that one"}
    )
    beta: Fraction = field(
        default=0.1, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )
    norm: bool = field(default=False, metadata={"help": "apply the final norm to early layers, too"})
    weight: NonNegativeFloat = field(
        default=1.0, metadata={"help": "of the early log-probabilities (ours; the paper has 1, 0: off)"}
    )
    as_released: bool = field(
        default=False, metadata={"help": "choose the layer by the released code's divergence"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.weight == 0.0

    def controls(self) -> Sequence[Method]:
        return (PlausibilityCut(self.beta),) if self.weight and self.beta else ()

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        layers = self.layers or candidates(context.num_layers, self.bucket, context.head_is_tied)
        if layers[-1] >= context.num_layers:
            raise BadParameterError(
                f"layer {layers[-1]} is no early layer: the model has layers 0..{context.num_layers - 1}"
            )
        context.state(self)["layers"] = layers
        context.capture_hidden(tuple(layers))

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        layers = context.state(self).get("layers")
        if layers is None:
            return None
        early = (context.layer_logits(layer, self.norm) for layer in layers)
        return self.contrast(context.logits(), early)

    def contrast(self, logits: Tensor, early: Iterable[Tensor]) -> LogitsCombination:
        """Contrast with the early logits that diverge most; all are [B, T, V], the earliest layer first."""
        chosen, farthest = None, None
        final = logits.float().log_softmax(-1)
        for candidate in early:
            divergence = self.divergence(final, candidate.float().log_softmax(-1))
            if chosen is None or farthest is None:
                chosen, farthest = candidate, divergence
                continue
            chosen = torch.where((divergence > farthest)[..., None], candidate, chosen)
            farthest = torch.maximum(farthest, divergence)
        assert chosen is not None
        return LogitsCombination(1.0, [(-self.weight, chosen)], log_softmax=True, plausibility=self.beta)

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Jensen-Shannon divergence in nats of log-probabilities [..., V], or the released variant: [...]."""
        return (reversed_jensen_shannon if self.as_released else jensen_shannon)(log_p, log_q)

    def sequence_score(self, logits: Tensor, early: Iterable[Tensor], ids: Tensor) -> Tensor:
        """Log-probability of continuations, as the paper ranks given answers: [B].

        Args:
            logits, early: [B, T, V] final and early logits of the rows that predict `ids`.
            ids: [B, T]. A token that the plausibility constraint excludes counts -1000.
        """
        combination = self.contrast(logits, early)
        scores = combine(logits, [replace(combination, plausibility=0.0)]).log_softmax(-1)
        excluded = combine(logits, [combination]).isinf()
        return scores.masked_fill(excluded, -1000.0).gather(-1, ids[..., None]).sum((1, 2))


def candidates(num_layers: int, bucket: str, tied: bool) -> tuple[int, ...]:
    """The early layers of a bucket; `tied`: input and output embeddings are one matrix."""
    size = min(max(num_layers // 2, 1), _BUCKET)
    if bucket == "high":
        return tuple(range(num_layers - size, num_layers, 2))
    first = (2 if size > 2 else 1) if tied and num_layers > 1 else 0
    return tuple(range(first, max(size, first + 1), 2))
