"""DAMRO: dive into the attention mechanism to reduce object hallucination."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from regaze.errors import InputError
from regaze.interventions.contrastive import Contrastive
from regaze.interventions.facts import Facts
from regaze.toolkit.model.branches import without_tokens
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.model.vision import class_attention, patches_on_tokens
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class DAMRO(Contrastive):
    """Contrast with the image reduced to the patches that the vision tower's class token attends to.

    Source: Gong et al., "DAMRO: Dive into the Attention Mechanism of LVLM to Reduce Object Hallucination"
    (arXiv:2410.04514). The patches with the highest class attention in the tower's last block, averaged over
    heads, are outliers with global rather than local content. Of each image the branch's prompt has only the
    `kept` highest tokens, and the tokens after them move up.

    With `as_released=True` (`coder-gx/DAMRO`) class attention is one softmax over queries and keys that are
    not split into heads.
    """

    name: ClassVar[str] = "damro"
    summary: ClassVar[str] = "contrast with the few patches that the vision tower's class token attends to"
    source: ClassVar[str] = "arXiv:2410.04514"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "one more pass of the vision tower; two rows per prompt in one forward"
    facts: ClassVar[Facts] = Facts(
        edits=("logits",), cost="two rows", needs=("second context", "vision tower")
    )
    release: ClassVar[str] = (
        "coder-gx/DAMRO, no licence. Class attention from queries and keys that are not split into heads "
        "(as_released=True), in block 23 whatever the tower."
    )

    alpha: NonNegativeFloat = field(
        default=2.0, metadata={"help": "strength of the contrast with the negative branch (0: none)"}
    )
    kept: PositiveInt = field(default=10, metadata={"help": "image tokens of the negative branch, per image"})
    as_released: bool = field(
        default=False, metadata={"help": "class attention without heads, as in the released code"}
    )

    def negative(self, context: Context) -> Branch:
        pixels = context.inputs.get("pixel_values")
        if pixels is None:
            raise InputError("DAMRO reads `pixel_values`, but the model was called without them")
        attention = class_attention(context.model, pixels, (-1,), split_heads=not self.as_released)
        top = most_attended(attention[0].mean(1).cpu(), self.kept)
        shown = patches_on_tokens(top.float(), context.tokens, context.user_batch).bool()
        return without_tokens(context, context.tokens.mask(Role.IMAGE) & ~shown)


def most_attended(attention: Tensor, kept: int) -> Tensor:
    """The patches with the highest attention, [N, patches] bool."""
    top = attention.topk(min(kept, attention.shape[-1])).indices
    return torch.zeros_like(attention, dtype=torch.bool).scatter_(1, top, True)
