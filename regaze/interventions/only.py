"""ONLY: one-layer intervention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.contrastive import (
    gated_logits,
    has_image,
    logits_to_constrain,
    rows_with_image,
)
from regaze.interventions.controls import PlausibilityCut, Sharpen
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import require_attention
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.side_stream import SideStream
from regaze.toolkit.prompts.token_map import Role

#: In the entropies of `text_heavy`, as in the release.
_EPSILON = 1e-6


@dataclass(frozen=True)
class ONLY(Intervention):
    """Add or contrast the logits of a stream that attends to the text in one layer and skips the rest.

    Source: Wan et al., "ONLY: One-Layer Intervention Sufficiently Mitigates Hallucinations in Large
    Vision-Language Models" (arXiv:2507.00898). In `layer`, the attention of the row that predicts loses its
    outliers, weights more than a deviation above the mean of their kind (text or image), and then the heads
    whose text attention is spread less, relative to that on the image, than the average head's: entropy of
    the text's weights over entropy of the image's. Nothing is renormalised, and the first token keeps its
    weight. The output z of this attention alone skips all layers but the MLP of the last:
    z1 = norm(z) + residual x, with the stream x that enters the last layer, z2 = z1 + MLP(norm(z1)), and
    logits n = W (final norm of z2 + final_residual * final norm of the model's own last stream).

    Where the two distributions are alike, sum |p - q| below `gamma`, scores = l + alpha_pos n; elsewhere
    (1 + alpha_neg) l - alpha_neg n. Tokens less likely than `beta` times the likeliest are excluded, by l.
    Every sample and token has its own gate; all images of a prompt are one kind of columns. Rows of a prompt
    are computed like those of the answer, so that a forward over both gives what generating gives. Prompts
    without an image are left alone. The release's gamma is 0.2 on POPE, 0.25 for captions and on MME, where
    its beta is 0.4.
    """

    name: ClassVar[str] = "only"
    summary: ClassVar[str] = "add or contrast a stream that attends to the text in one layer"
    source: ClassVar[str] = "arXiv:2507.00898"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "one forward; for each token a row of attention, an MLP and the output head again"
    facts: ClassVar[Facts] = Facts(
        edits=("logits",),
        cost="output head",
        graphs="broken",
        needs=("hidden states", "layer logits", "attention rows", "all heads"),
    )
    release: ClassVar[str] = (
        "zifuwan/ONLY, MIT. One prompt at a time, with the columns of LLaVA-1.5's image and the layers 0 and "
        "31 written in: a deeper model is tapped in the middle, a shallower one skips the MLP silently. "
        "The distance, called total variation, is twice that; it is summed over a batch, for one gate. Here "
        "samples are separate, and the last layer is the model's."
    )

    layer: NonNegativeInt = field(default=0, metadata={"help": "the layer that the second stream leaves"})
    gamma: NonNegativeFloat = field(
        default=0.2, metadata={"help": "sum |p - q| below which both agree (0: never, above 2: always)"}
    )
    alpha_pos: NonNegativeFloat = field(
        default=3.0, metadata={"help": "weight of the stream's logits where both agree"}
    )
    alpha_neg: NonNegativeFloat = field(
        default=1.0, metadata={"help": "strength of the contrast where they do not"}
    )
    beta: Fraction = field(
        default=0.1, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )
    residual: NonNegativeFloat = field(
        default=0.2,
        metadata={"help": "share of the model's stream that the other takes up in the last layer"},
    )
    final_residual: NonNegativeFloat = field(
        default=0.5, metadata={"help": "and of the last stream, after the final norm"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.alpha_pos == self.alpha_neg == self.beta == 0.0

    def controls(self) -> Sequence[Method]:
        cut = [PlausibilityCut(self.beta)] if self.alpha_neg and self.beta else []
        return (*cut, *([Sharpen(self.alpha_pos, self.beta)] if self.alpha_pos and self.gamma else []))

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        if context.has_cross_attention:
            raise UnsupportedModelError(
                "ONLY tells the prompt's image tokens from its text, but this model sees images through "
                "cross-attention"
            )
        if not has_image(context).any():
            return
        state = context.state(self)
        state["where"] = rows_with_image(context)
        if self.alpha_pos == self.alpha_neg == 0.0:  # the constraint alone needs no stream
            return
        last = context.num_layers - 1
        if self.layer >= last:
            raise BadParameterError(
                f"the second stream must leave before the last layer, {last}, but layer is {self.layer}"
            )
        require_attention(context, (self.layer,))
        state["stream"] = SideStream(context.model, self.layer, last)
        real = ~context.tokens.mask(Role.PAD)
        state["image"], state["first"] = context.tokens.mask(Role.IMAGE), real & (real.cumsum(1) == 1)
        context.capture_hidden((last, last + 1))

    def on_attention(self, layer: int, call: AttentionCall, context: Context) -> None:
        state = context.state(self)
        if layer != self.layer or "stream" not in state:
            return
        for name in ("image", "first"):
            state[name] = state[name].to(call.query.device)
        rows, read = call.query.shape[2], context.inputs.get("logits_to_keep")
        first = max(0, rows - read) if context.step == 0 and isinstance(read, int) and read else 0
        heads = torch.cat([self._heads(call, block, state) for block in call.blocks(first)], 1)
        if context.replaying and "heads" in state:  # not in an adopted prompt
            heads = torch.cat([state["heads"][:, :-1], heads], 1)
        state["heads"] = heads

    def _heads(self, call: AttentionCall, rows: slice, state: dict[Any, Any]) -> Tensor:
        """What the heads give in a block of rows after the intervention, [batch, R, Hq, Dv]."""
        weights, seen = call.weights(rows), call.visible(rows)
        end = call.first_key + weights.shape[-1]
        image, first = (
            F.pad(state[name], (0, end - state[name].shape[1]))[:, None, call.first_key :]
            for name in ("image", "first")
        )
        kept = text_heavy(weights, seen & ~image & ~first, seen & image & ~first)
        batch, heads, count, keys = kept.shape
        value = call.value[:, :, :keys]
        grouped = kept.to(value.dtype).view(batch, value.shape[1], -1, keys)  # heads that share values
        return (grouped @ value).view(batch, heads, count, -1).transpose(1, 2)

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state, logits = context.state(self), context.logits()
        if "where" not in state:
            return None
        if "stream" not in state:
            constrained = logits_to_constrain(logits, state["where"])
            return LogitsCombination(plausibility=self.beta, plausibility_logits=constrained)
        return self.combined(logits, self._second(logits.shape[1], context), state["where"])

    def _second(self, count: int, context: Context) -> Tensor:
        """[B, T, V] logits of the second stream in the last T = `count` rows."""
        state, last = context.state(self), context.num_layers - 1
        stream: SideStream = state["stream"]
        hidden = stream.enter(stream.project(state["heads"][: context.user_batch, -count:]))
        hidden = stream.feed_forward(hidden + self.residual * context.user_hidden(last).to(hidden.device))
        hidden = stream.normalise(hidden)
        own = stream.normalise(context.user_hidden(last + 1)).to(hidden.device)
        return context.read_logits(hidden + self.final_residual * own, normalise=False)

    def combined(self, logits: Tensor, other: Tensor, where: Tensor | None = None) -> LogitsCombination:
        """The user's logits and the stream's, [B, T, V], by each token's gate, in rows `where` [B, 1, 1]."""
        apart = (logits.float().softmax(-1) - other.float().softmax(-1)).abs().sum(-1, keepdim=True)
        strengths = self.alpha_pos, self.alpha_neg
        return gated_logits(logits, other, apart < self.gamma, strengths, self.beta, where)


def text_heavy(weights: Tensor, text: Tensor, image: Tensor) -> Tensor:
    """Attention weights without outliers, and without heads whose text attention is narrower than average.

    Args:
        weights: [B, Hq, R, K] fp32.
        text, image: [B, R, K] bool, the columns of either kind that a row sees. Others keep their weight in
            the heads that are left.

    Returns:
        [B, Hq, R, K], 0 where a weight was removed, the rest unchanged.
    """
    spread = []
    for kind in (text[:, None], image[:, None]):
        weights = weights.masked_fill(kind & (weights > _outlying(weights, kind)), 0.0)
        part = weights * kind
        share = part / part.sum(-1, keepdim=True).clamp_min(torch.finfo(part.dtype).tiny)
        spread.append(-(share * (share + _EPSILON).log()).sum(-1))  # [B, Hq, R]
    seen = (weights * image[:, None]).sum(-1) > 0.0
    ratio = torch.where(seen, spread[0] / spread[1], 0.0)
    removed = ratio < ratio.mean(1, keepdim=True)
    return weights.masked_fill(removed[..., None], 0.0)


def _outlying(weights: Tensor, kind: Tensor) -> Tensor:
    """A deviation above the mean of the columns `kind` [B, 1, R, K]: [B, Hq, R, 1], inf below two columns."""
    count = kind.sum(-1, keepdim=True)
    mean = (weights * kind).sum(-1, keepdim=True) / count.clamp_min(1)
    squares = ((weights - mean).square() * kind).sum(-1, keepdim=True)
    threshold = mean + (squares / (count - 1).clamp_min(1)).sqrt()
    return threshold.masked_fill(count < 2, torch.inf)
