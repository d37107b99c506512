"""EAH: the map of the head with most vision sinks, for all heads of an early layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls import RandomSource
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.kernels import AttentionEdit, HeadSource, Placeable
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class EAH(Intervention):
    """Let all heads of an early layer look where the head with most vision sinks looks, in the prompt.

    Source: Zhang et al., "Seeing Clearly by Layer Two: Enhancing Attention Heads to Alleviate Hallucination
    in LVLMs" (arXiv:2411.09968). While the prompt is read, the mean attention that an image token receives
    from the rows after it is measured in each head. The head in which most image tokens receive more than
    `threshold` lends its map to all heads of the layer, which keep their values; of equals the first. Where
    no token of any head does, the prompt is left alone. The answer's rows are plain.

    A token's mean attention is near 1 / P in a prompt of P tokens: with `relative`, `threshold` is a multiple
    of that (the paper's 0.002 is 1.3 times it with LLaVA-1.5). Tokens of several images count together.

    With `as_released=True` (`itsqyh/Shallow-Focus-Deep-Fixes`) all layers are edited, with a threshold of
    0.0008; the first head never lends, and the sum over a token's rows is divided by a number that is that of
    its rows for one length of prompt only: image end + image start - j for column j.
    """

    name: ClassVar[str] = "eah"
    summary: ClassVar[str] = "all heads of an early layer read the prompt by the map of one of them"
    source: ClassVar[str] = "arXiv:2411.09968"
    edits: ClassVar[str] = "attention weights of the whole prompt, in one early layer"
    cost: ClassVar[str] = "one forward; in that layer column sums of the prompt, beside its attention"
    facts: ClassVar[Facts] = Facts(
        edits=("weights",), cost="one forward", when=("prompt",), needs=("all heads", "whole prompt")
    )
    release: ClassVar[str] = (
        "itsqyh/Shallow-Focus-Deep-Fixes, MIT. Edits every layer, whatever layer it is given; the first head "
        "never lends; divisors for one length of prompt (as_released=True has these three). Heads, image "
        "columns and threshold are constants; of a batch only the first sample is edited, here each is."
    )
    copies_maps: ClassVar[bool] = True
    prompt_needs: ClassVar[str | None] = "whole"
    fixed_edits = True

    threshold: NonNegativeFloat | None = field(
        default=None,
        metadata={"help": "attention that makes a sink (1: no edit); default: 0.002, as released 0.0008"},
    )
    relative: bool = field(
        default=False, metadata={"help": "the threshold is a multiple of 1 / length of the prompt"}
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last edited layer; default: the second, as released all"}
    )
    as_released: bool = field(default=False, metadata={"help": "choose as the released code does"})

    @property
    def is_identity(self) -> bool:
        return not self.relative and self.threshold is not None and self.threshold >= 1.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (RandomSource(self),)

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        image, real = tokens.mask(Role.IMAGE), ~tokens.mask(Role.PAD)
        if self.is_identity or not image.any():
            return
        second, last = min(1, context.num_layers - 1), context.num_layers - 1
        layers = self.layers or ((0, last) if self.as_released else (second, second))
        first, last = attention_range(context, layers, layers)
        default = 0.0008 if self.as_released else 0.002
        threshold = torch.full((len(image), 1), default if self.threshold is None else self.threshold)
        if self.relative:
            threshold = threshold / real.sum(1, keepdim=True)
        divisor = released_divisor(image, real) if self.as_released else None
        state["chosen"] = {}
        state["edits"] = {
            layer: AttentionEdit(
                head_source=HeadSource(
                    rule=DensestHead(image, threshold, divisor, layer, state["chosen"]), rows=real
                )
            )
            for layer in range(first, last + 1)
        }

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        if layer not in state.get("edits", {}):
            return None
        if step == 0:
            edit: AttentionEdit = state["edits"][layer]
            return edit
        if context.replaying:  # the prompt's last row once more
            return AttentionEdit(head_source=HeadSource(state["chosen"][layer]))
        return None


@dataclass(frozen=True, eq=False)
class DensestHead(Placeable):
    """The head in which most image tokens are sinks is the source of all heads.

    Attributes:
        image: [B, n] bool. threshold: [B, 1], the mean attention above which a token is a sink.
        divisor: [B, n], in the place of the number of a token's rows; with it, head 0 never lends.
        layer, chosen: the choice [B, Hq] is stored in `chosen[layer]`.
    """

    image: Tensor
    threshold: Tensor
    divisor: Tensor | None
    layer: int
    chosen: dict[int, Tensor]

    def __call__(self, received: Tensor, seen: Tensor) -> Tensor:
        count = self.image.shape[1]
        rows = seen[..., :count] if self.divisor is None else self.divisor[:, None]
        mean = received[..., :count] / rows.clamp_min(1.0)
        sinks = ((mean > self.threshold[:, None]) & self.image[:, None]).sum(-1)  # [B, Hq]
        heads = torch.arange(sinks.shape[1], device=sinks.device)
        most = sinks.amax(1, keepdim=True)
        densest = torch.where(sinks == most, heads, len(heads)).amin(1, keepdim=True)
        lends = (most > 0) & (densest > 0) if self.divisor is not None else most > 0
        index = torch.where(lends, densest, heads)
        self.chosen[self.layer] = index
        return index


def released_divisor(image: Tensor, real: Tensor) -> Tensor:
    """[B, n] what the released code divides column sums by: image end + image start - j for column j.

    Columns are counted from the first real token. Its one image ends in column `image end` - 1.
    """
    place = real.long().cumsum(1) - 1
    start = torch.where(image, place, image.shape[1]).amin(1, keepdim=True)
    end = torch.where(image, place, -1).amax(1, keepdim=True) + 1
    return (end + start - place).clamp_min(1).float()
