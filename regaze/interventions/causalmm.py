"""CausalMM: counterfactual attention in the language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor

from regaze.interventions.contrastive import Contrastive
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role

#: Keys for which random weights are drawn before there are so many.
_AHEAD = 256


@dataclass(frozen=True)
class CausalMM(Contrastive):
    """Contrast with the same prompt under attention that does not depend on what is attended to.

    Source: Zhou et al., "Mitigating Modality Prior-Induced Hallucinations in Multimodal Large Language Models
    via Deciphering Attention Causality" (arXiv:2410.04780), the intervention in the language model. In the
    branch, every row of every head attends to all keys that it sees alike ("uniform"), or by weights drawn
    for each head and position ("random"), which are the same in all rows. Rows sum to 1. `alpha` is the
    paper's gamma, `beta` its epsilon. Which layers and rows are meant, the source leaves open: here all rows,
    by default of all layers.

    Not here: the intervention in the vision tower, which in the release multiplies each patch by a cell of
    the resized attention matrix, and with its default ("shuffle") leaves next to nothing of the image; VCD at
    its noisiest step is that contrast. Nor "reverse" and "shuffle" in the language model.
    """

    name: ClassVar[str] = "causalmm"
    summary: ClassVar[str] = "contrast with uniform or random attention in the language model"
    source: ClassVar[str] = "arXiv:2410.04780"
    edits: ClassVar[str] = "logits at every step; attention of all rows of the branch"
    cost: ClassVar[str] = (
        "two rows per prompt in one forward, with the cache of both; images are encoded once"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("scores", "logits"), cost="two rows", graphs="compiled", needs=("second context",)
    )
    release: ClassVar[str] = (
        "The-Martyr/CausalMM, MIT. The branch of the second token on reads the user's cache, so that nothing "
        "is contrasted after the first; for the language model it has only a listing, whose uniform and "
        "random rows do not sum to 1. Its POPE script has beta = 0.6, which under sampling decides most."
    )

    attention: Literal["uniform", "random"] = field(
        default="uniform", metadata={"help": "weights of the branch: alike for all keys, or drawn"}
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last layer with such attention; default: all"}
    )
    seed: NonNegativeInt = field(default=0, metadata={"help": "seed of the random weights"})

    def negative(self, context: Context) -> Branch:
        first, _ = attention_range(context, self.layers, (0, 31))
        return Branch(first_layer=first)

    def prepare(self, context: Context) -> None:
        state = context.state(self)
        if "branch" not in state:
            return
        state["layers"] = attention_range(context, self.layers, (0, 31))
        gain = torch.ones(context.batch, context.num_heads)
        gain[context.rows(state["branch"])] = 0.0  # all scores become 0, so that all keys are alike
        state["gain"], state["uniform"] = gain, AttentionEdit(head_score_gain=gain)

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        first, last = state.get("layers", (0, -1))
        if not first <= layer <= last:
            return None
        if self.attention == "uniform":
            return state["uniform"]
        length = context.cache_length + context.fed if context.step else context.prompt_length
        gain, bias = self._drawn(layer, length, context)
        return AttentionEdit(head_score_gain=gain, bias=bias)

    def _drawn(self, layer: int, length: int, context: Context) -> tuple[Tensor, Tensor]:
        """Factors of the scores, [batch, Hq], and the logarithms of weights [batch, Hq, length].

        They are drawn ahead and stay on the layer's device.
        """
        tables: dict[int, tuple[Tensor, Tensor]] = context.state(self).setdefault("tables", {})
        if layer not in tables or tables[layer][1].shape[-1] < length:
            gain, bias = context.state(self)["gain"], self._table(layer, length + _AHEAD, context)
            tables[layer] = gain.to(context.device), bias.to(context.device)
        gain, bias = tables[layer]
        return gain, bias[..., :length]

    def _table(self, layer: int, length: int, context: Context) -> Tensor:
        """[batch, Hq, length], 0 in rows of other contexts.

        A key's weight follows from its position in the prompt, so that padding changes none.
        """
        state = context.state(self)
        prompt = context.tokens.mask(Role.PAD).logical_not()
        visible = F.pad(prompt, (0, length - prompt.shape[1]), value=True)
        positions = (visible.cumsum(1) - 1).clamp_min(0)
        generator = torch.Generator().manual_seed(self.seed * 10_000 + layer)
        drawn = torch.rand(length, context.num_heads, generator=generator).clamp_min(1e-6).log()
        return drawn[positions].transpose(1, 2) * (state["gain"] == 0.0)[..., None]
