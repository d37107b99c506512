"""DeCo: dynamic correction decoding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls.plausibility_cut import samples_or_searches
from regaze.interventions.controls.sharpen import Sharpen
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, resolve_range
from regaze.interventions.parameters import PositiveFraction
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination


@dataclass(frozen=True)
class DeCo(Intervention):
    """Add the logits of the late layer that is surest of one of the model's own candidates.

    Source: Wang et al., "MLLM Can See? Dynamic Correction Decoding for Hallucination Mitigation"
    (arXiv:2410.11779). The candidates C are the `top_k` likeliest tokens, as many as it takes for a
    probability of `top_p`. Of the layers 20 to 28 of 32, the anchor is the one that gives any candidate the
    largest probability m (the first of equals); scores = logits + alpha m (anchor's logits) in C, -inf
    elsewhere. Every row and step has its own C and anchor. Layer j means the residual stream that enters
    layer j, read with the final norm and the output matrix. Works for text-only models.

    The cut to C also acts alone: with `alpha = 0` the likeliest token stays, and samples come from C. With
    `alpha = 0`, `top_k = 0` and `top_p = 1` the method is off.
    """

    name: ClassVar[str] = "deco"
    summary: ClassVar[str] = "add the logits of the late layer that is surest of a likely token"
    source: ClassVar[str] = "arXiv:2410.11779"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "one forward, and the output head once per anchor layer"
    facts: ClassVar[Facts] = Facts(
        edits=("logits",), cost="output head", graphs="broken", needs=("layer logits",)
    )
    release: ClassVar[str] = (
        "zjunlp/Deco, MIT. Takes one prompt at a time; reads all prompt rows of every anchor layer; its POPE "
        "script ends in an error (`args.aplha`); models of fewer than 32 layers fail. Here rows are separate "
        "and layers are scaled."
    )

    alpha: NonNegativeFloat = field(default=0.6, metadata={"help": "weight of the anchor's logits (0: none)"})
    top_p: PositiveFraction = field(
        default=0.9, metadata={"help": "candidates have at least this probability together (1: no limit)"}
    )
    top_k: NonNegativeInt = field(default=20, metadata={"help": "most candidates there are (0: no limit)"})
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last anchor layer; default: 20 to 28 of 32, scaled"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0 and not self._cuts

    def controls(self) -> Sequence[Method]:
        """Its candidates alone, and logits added where all layers agree with the last one."""
        if self.alpha == 0.0:
            return ()
        alone = (replace(self, alpha=0.0),) if self._cuts else ()
        return (*alone, Sharpen(self.alpha))

    def acts_under(self, options: Mapping[str, Any]) -> bool:
        """Whether it can change an answer: candidates alone, of which the likeliest is one, no greedy one."""
        return self.alpha != 0.0 or samples_or_searches(options)

    @property
    def _cuts(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0

    def prepare(self, context: Context) -> None:
        first, last = resolve_range(self.layers, (20, 28), 32, context.num_layers)
        layers = tuple(range(first, last + 1)) if self.alpha else ()
        context.state(self)["layers"] = layers
        context.capture_hidden(layers)

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        if self.is_identity:
            return None
        layers = context.state(self)["layers"]
        late = (context.layer_logits(layer, normalise=True) for layer in layers)
        return self.correct(context.logits(), late)

    def correct(self, logits: Tensor, late: Iterable[Tensor]) -> LogitsCombination:
        """The correction of logits by those of the layers, [B, T, V] each, the earliest layer first."""
        candidates = self.candidates(logits)
        anchor, best = None, torch.zeros(())
        for layer in late:
            probability = layer.float().softmax(-1).masked_fill(~candidates, 0.0).amax(-1, keepdim=True)
            if anchor is None:
                anchor, best = layer, probability
                continue
            anchor = torch.where(probability > best, layer, anchor)
            best = torch.maximum(probability, best)
        others = [] if anchor is None else [(self.alpha * best, anchor)]
        return LogitsCombination(others=others, allowed=candidates if self._cuts else None)

    def candidates(self, logits: Tensor) -> Tensor:
        """C of each row, which always holds the likeliest token: [B, T, V] bool."""
        if not self._cuts:
            return torch.ones_like(logits, dtype=torch.bool)
        most = min(self.top_k or logits.shape[-1], logits.shape[-1])
        likeliest = logits.float().softmax(-1).topk(most, sorted=True)
        likelier = F.pad(likeliest.values.cumsum(-1)[..., :-1], (1, 0))  # probability of those before each
        chosen = likelier < (self.top_p if self.top_p < 1.0 else torch.inf)
        return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, likeliest.indices, chosen)
