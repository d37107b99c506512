"""FarSight: attention registers above the diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from regaze.errors import InputError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls import UniformSink
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class FarSight(Intervention):
    """Give each row a place for attention that it does not need: the positions after it.

    Source: Tang et al., "Seeing Far and Clearly: Mitigating Hallucinations in MLLMs with Attention Causal
    Decoding" (arXiv:2505.16652). In every layer, head and row the position d tokens ahead takes part in the
    softmax with the score -`sigma` d, and its weight is dropped. The n positions after a row are together one
    sink logit, ln sum_d e^(-sigma d), which no key, value or mask takes part in. Rows near the end of the
    prompt have few registers, its last row none.

    Which positions come after a row, `cache` says. "frozen": those of the prompt, so that rows of the answer
    have none, whether it is generated with a cache, without one, or given. "none": all that the forward has,
    as in the release, which computes all rows anew for each token; then generate with `use_cache=False`. A
    row's number of registers grows there as the answer does, which a cache of keys and values cannot follow.

    With `as_released` the rate of decay is no constant: sigma (1 - i / 4 (L - 1)) in row i of L, plus, with
    `alibi`, 2^(-8 (h + 1) / H) in head h of H. Padding counts as no token here, so that a batch gives what
    its samples give alone; in the release i and L count it.
    """

    name: ClassVar[str] = "farsight"
    summary: ClassVar[str] = "let rows drop attention: the positions after them join the softmax"
    source: ClassVar[str] = "arXiv:2505.16652"
    edits: ClassVar[str] = "the denominator of the softmax in the rows of the prompt, in all layers"
    cost: ClassVar[str] = "one forward"
    facts: ClassVar[Facts] = Facts(
        edits=("weights",), when=("prompt",), cost="one forward", needs=("whole prompt",)
    )
    release: ClassVar[str] = (
        "FeilongTangmonash/FarSight, MIT. Under the usual additive mask the registers vanish, and it does "
        "nothing; no cache; padding counts as tokens; a second file of that name has no registers at all. "
        "Here the registers follow from the numbers of tokens, whatever the mask."
    )
    fixed_edits = True

    sigma: PositiveFloat = field(
        default=math.log(256) / math.log(1024),
        metadata={"help": "how much a register's score falls per token of distance (1000: no edit)"},
    )
    as_released: bool = field(default=False, metadata={"help": "the release's rates of decay"})
    alibi: bool = field(
        default=True, metadata={"help": "slopes of ALiBi beside them (only with as_released)"}
    )
    cache: Literal["frozen", "none"] = field(
        default="frozen",
        metadata={"help": "registers of the prompt's rows only, or of all rows, without a cache"},
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last edited layer; default: all"}
    )

    @property
    def is_identity(self) -> bool:
        slowest = 0.75 * self.sigma if self.as_released else self.sigma
        return math.exp(-slowest) == 0.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (UniformSink(self),)

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        tokens, state = ~context.tokens.mask(Role.PAD), context.state(self)
        if self.cache == "frozen":
            tokens &= ~context.tokens.mask(Role.OUTPUT)
        rate = torch.tensor(self.sigma)
        if self.as_released:
            rate = released_rates(tokens, context.num_heads, self.sigma, self.alibi)
        state["layers"] = attention_range(context, self.layers, (0, 31))
        state["edit"] = AttentionEdit(sink=register_sink(registers(tokens), rate))

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        first, last = state.get("layers", (0, -1))
        if not first <= layer <= last:
            return None
        if step == 0:
            edit: AttentionEdit = state["edit"]
            return edit
        if self.cache == "none" and not context.replaying:
            raise InputError(
                "FarSight(cache='none') gives all rows new registers with each token, which rows in a cache "
                "do not get; pass use_cache=False to generate, or use cache='frozen'"
            )
        return None  # rows of the answer have no registers, nor has the prompt's last

    def edit_cross(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        """Nothing: in cross-attention no key comes after a row."""
        return None


def registers(tokens: Tensor) -> Tensor:
    """How many tokens come after each, [B, L] int64, of the tokens [B, L] bool."""
    return (tokens.flip(1).cumsum(1).flip(1) - 1) * tokens


def register_sink(count: Tensor, rate: Tensor) -> Tensor:
    """Sink logits ln sum_{d=1..n} e^(-rate d) of rows with n = count [B, L] registers, [B, 1 or Hq, L].

    `rate` > 0 is a number or [B, Hq, L]. -inf where there is no register.
    """
    falls = -rate * count[:, None]
    return torch.log(-torch.expm1(falls)) - rate - torch.log(-torch.expm1(-rate))


def released_rates(tokens: Tensor, heads: int, sigma: float, alibi: bool) -> Tensor:
    """The release's rates of decay [B, Hq or 1, L], in rows counted by the tokens [B, L] bool.

    They fall by a quarter from the first row to the last; `alibi` adds its slopes, one per head.
    """
    number = (tokens.cumsum(1) - 1).clamp_min(0)
    rates = sigma * (1 - 0.25 * number / (tokens.sum(1, keepdim=True) - 1).clamp_min(1))[:, None]
    if not alibi:
        return rates
    head = torch.arange(1, heads + 1, device=tokens.device)
    return rates + torch.exp2(-8.0 * head / heads)[:, None]
