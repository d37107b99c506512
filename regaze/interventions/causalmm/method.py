"""CausalMM: counterfactual attention in the language model, the vision tower, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor

from regaze.errors import BadParameterError, InputError, UnsupportedModelError
from regaze.interventions.causalmm.counterfactual_maps import Kind, counterfactual_map, patch_gain
from regaze.interventions.contrastive import Contrastive, logits_to_constrain
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.model.vision import tower_map, vision_blocks, vision_tower
from regaze.toolkit.prompts.token_map import Role

#: Keys for which random weights are drawn before there are so many.
_AHEAD = 256


@dataclass(frozen=True)
class CausalMM(Contrastive):
    """Contrast with the same prompt under attention that does not depend on what is attended to.

    Source: Zhou et al., "Mitigating Modality Prior-Induced Hallucinations in Multimodal Large Language Models
    via Deciphering Attention Causality" (arXiv:2410.04780). `alpha` is the paper's gamma, `beta` its epsilon.

    `where="language"`: in the branch, every row of every head attends to all keys that it sees alike
    ("uniform"), or by weights drawn for each head and position ("random"), which are the same in all rows.
    Rows sum to 1. Which layers and rows are meant, the source leaves open: here all rows, by default of all
    layers. Its "reverse" and "shuffle" are not here for the language model.

    `where="vision"`: what the release computes. The attention map of the block whose features the model
    reads becomes another one ("uniform": its mean; "random": drawn from 0 to 2; "shuffle": its entries in
    another order; "reversed": its maximum minus it), is resized to the grid of patches as though it were a
    picture, and its mean over heads multiplies the features of the patches. So "uniform" divides them by the
    number of tokens, and "shuffle", the release's default, leaves next to nothing of the image either. With
    `as_released=True` only the first token is contrasted, and later ones are cut alone.

    `where="both"`: (1 + 2 alpha) logits - alpha (those of either branch).
    """

    name: ClassVar[str] = "causalmm"
    summary: ClassVar[str] = "contrast with uniform or random attention in language model or vision tower"
    source: ClassVar[str] = "arXiv:2410.04780"
    edits: ClassVar[str] = "logits at every step; attention of all rows of the branch, or its image features"
    cost: ClassVar[str] = (
        "two rows per prompt in one forward (three with where='both'), with the cache of each; images are "
        "encoded once, in the tower's branch again, after one more pass for its maps"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("scores", "logits"), cost="two rows", graphs="compiled", needs=("second context",)
    )
    release: ClassVar[str] = (
        "The-Martyr/CausalMM, MIT. The branch of the second token on reads the user's cache, so that nothing "
        "is contrasted after the first; for the language model it has only a listing, whose uniform and "
        "random rows do not sum to 1. Its POPE script has beta = 0.6, which under sampling decides most."
    )

    attention: Kind = field(
        default="uniform",
        metadata={"help": "the branch's map: alike, drawn, or (in the tower) shuffled or reversed"},
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last layer with such attention; default: all"}
    )
    seed: NonNegativeInt = field(default=0, metadata={"help": "seed of the random weights"})

    where: Literal["language", "vision", "both"] = field(
        default="language", metadata={"help": "language model, vision tower, or each in a branch of its own"}
    )
    as_released: bool = field(
        default=False, metadata={"help": "vision: contrast the first token only, as the code does"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where != "vision" and self.attention in ("shuffle", "reversed"):
            raise BadParameterError(
                f"'causalmm': attention={self.attention!r} is for the vision tower alone (where='vision')"
            )
        if self.where != "vision" and self.as_released:
            raise BadParameterError("'causalmm': as_released is about the vision tower (where='vision')")

    def branches(self, context: Context) -> Mapping[str, Branch]:
        found = dict(super().branches(context))
        if found and self.where == "both":
            context.state(self)["second"] = second = f"{self.branch} in the tower"
            found[second] = self._in_tower(context)
        return found

    def negative(self, context: Context) -> Branch:
        if self.where == "vision":
            return self._in_tower(context)
        first, _ = attention_range(context, self.layers, (0, 31))
        return Branch(first_layer=first)

    def _in_tower(self, context: Context) -> Branch:
        pixels = context.inputs.get("pixel_values")
        if pixels is None:
            raise InputError("CausalMM reads `pixel_values`, but the model was called without them")
        layer = getattr(context.model.config, "vision_feature_layer", None)
        if pixels.dim() != 4 or not isinstance(layer, int) or not layer:
            raise UnsupportedModelError(
                f"CausalMM in the vision tower needs one picture per image and features of one layer; "
                f"{type(context.model).__name__} has pixel_values {list(pixels.shape)} and layer {layer}"
            )
        _, before = vision_blocks(vision_tower(context.model))
        block = layer if layer < 0 else layer - 1  # hidden states begin with the embeddings

        def gain(attention: Tensor) -> Tensor:
            return patch_gain(
                counterfactual_map(attention, self.attention, self.seed), attention.shape[-1] - before
            )

        return Branch(feature_gain=tower_map(context.model, pixels, block, gain))

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state = context.state(self)
        if "branch" not in state:
            return super().combine_logits(context)
        logits, where = context.logits(), state["where"]
        weight: Any = self.alpha if where is None else self.alpha * where.to(logits.device)
        if self.as_released:
            weight = weight * _first_token(logits, context)
        branches = [state[name] for name in ("branch", "second") if name in state]
        return LogitsCombination(
            1.0 + len(branches) * weight,
            [(-weight, context.logits(branch)) for branch in branches],
            plausibility=self.beta,
            plausibility_logits=logits_to_constrain(logits, where),
        )

    def prepare(self, context: Context) -> None:
        state = context.state(self)
        if "branch" not in state or self.where == "vision":
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


def _first_token(logits: Tensor, context: Context) -> Tensor:
    """[B, T, 1] of logits [B, T, V]: 0 where they are those of a later token of the answer, 1 elsewhere."""
    if context.step and not context.replaying:
        return logits.new_zeros(1, 1, 1)
    answer = context.tokens.mask(Role.OUTPUT)[: context.user_batch, -logits.shape[1] :, None]
    return (~answer).to(logits)
