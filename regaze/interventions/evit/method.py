"""EViT: keep the patches that the class token attends to, fuse the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt
from torch import Tensor
from transformers import PreTrainedModel

from regaze.errors import BadParameterError, CompositionError
from regaze.interventions.base import Method
from regaze.interventions.parameters import PositiveFraction
from regaze.toolkit.model.vision import VisionBlock, vision_blocks

_SLOT = "_regaze_evit"


@dataclass(frozen=True)
class EViT(Method):
    """Drop tokens inside a vision transformer: few patches continue, the others as one fused token.

    Source: Liang et al., "Not All Patches Are What You Need: Expediting Vision Transformers via Token
    Reorganizations" (arXiv:2202.07800). In the chosen blocks, after the attention and its residual and before
    the MLP, a_j is the class token's attention to token j averaged over heads. Of n tokens after the class
    token the ceil(keep_rate n) with largest a_j stay, sorted by a_j, and sum_j a_j x_j of the others is
    appended as one more token, not divided by the sum of their a_j. Later blocks treat the fused token as any
    other. With keep_rate 1 nothing is touched.

    It transforms a vision model used alone (CLIP, ViT, DeiT of transformers), which then returns fewer tokens
    in another order:

        with EViT(keep_rate=0.5).applied(model) as kept:
            logits = model(pixel_values=pixels).logits

    A LLaVA needs one feature per placeholder and is refused; `gaze.using` does not take it either. A
    distillation token is kept like the class token; the release treats it as a patch. The speed comes without
    training, the published accuracy needs training with `scheduled_keep_rate`.
    """

    name: ClassVar[str] = "evit"
    summary: ClassVar[str] = "keep the image patches that the class token attends to, fuse the rest"
    source: ClassVar[str] = "arXiv:2202.07800"
    edits: ClassVar[str] = "the tokens of a vision model used alone, before the MLP of chosen blocks"
    cost: ClassVar[str] = "less than a plain forward; in chosen blocks the keys are projected twice"
    release: ClassVar[str] = (
        "youweiliang/evit. It takes a distillation token for a patch and needs the whole attention "
        "matrix; here such a token stays, and one row of attention is computed."
    )

    keep_rate: PositiveFraction = field(
        default=0.7, metadata={"help": "fraction of the tokens kept by each chosen block"}
    )
    layers: Sequence[NonNegativeInt] = field(
        default=(3, 6, 9), metadata={"help": "blocks that drop tokens, from 0"}
    )
    fuse: bool = field(default=True, metadata={"help": "append the weighted sum of the dropped tokens"})

    @contextmanager
    def applied(self, model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
        """Drop tokens in every forward of a vision model inside the block; on exit the model is restored.

        Yields:
            Per chosen block, for the last forward: indices of the tokens that stayed, [B, K] int64, from 0
            after the class token, in the order in which they continue. Empty where nothing was dropped.

        Raises:
            UnsupportedModelError: not a CLIP, ViT or DeiT vision model. BadParameterError: no such block.
            CompositionError: EViT is applied already.
        """
        blocks, prefix = vision_blocks(model)
        missing = [layer for layer in self.layers if layer >= len(blocks)]
        if missing:
            raise BadParameterError(
                f"layers {missing} do not exist: {type(model).__name__} has blocks 0..{len(blocks) - 1}"
            )
        if _SLOT in model.__dict__:
            raise CompositionError("EViT is already applied to this model")
        kept: dict[int, Tensor] = {}
        chosen = [(layer, blocks[layer].module) for layer in sorted(set(self.layers))]
        before = [module.__dict__.get("forward") for _, module in chosen]
        model.__dict__[_SLOT] = self
        try:
            for layer, module in chosen:
                module.forward = self._shrunk_forward(blocks[layer], layer, prefix, kept)
            yield kept
        finally:
            del model.__dict__[_SLOT]
            for (_, module), forward in zip(chosen, before, strict=True):
                module.__dict__.pop("forward", None)
                if forward is not None:
                    module.forward = forward

    def _shrunk_forward(self, block: VisionBlock, layer: int, prefix: int, kept: dict[int, Tensor]) -> Any:
        """The forward of a block that drops tokens."""
        plain = block.module.forward

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            count = hidden_states.shape[1] - prefix
            keep = math.ceil(self.keep_rate * count)
            kept.pop(layer, None)
            if keep >= count:
                return plain(hidden_states, *args, **kwargs)
            hidden, attention = block.attend(hidden_states, *args, **kwargs)
            hidden, kept[layer] = keep_and_fuse(hidden, attention[:, prefix:], keep, self.fuse)
            return block.feed_forward(hidden)

        return forward


def keep_and_fuse(tokens: Tensor, scores: Tensor, keep: int, fuse: bool = True) -> tuple[Tensor, Tensor]:
    """Keep the tokens with the largest scores, and the score-weighted sum of the others as one more.

    Args:
        tokens: [B, P + n, C], the last n of which are scored; the first P always stay.
        scores: [B, n].
        keep: number K of scored tokens that stay; of equal scores the earlier token.
        fuse: whether to append the sum.

    Returns:
        [B, P + K (+ 1), C], the kept tokens by decreasing score, and their indices among the scored, [B, K].
    """
    first, scored = tokens.split([tokens.shape[1] - scores.shape[1], scores.shape[1]], 1)
    index = scores.argsort(dim=1, descending=True, stable=True)[:, :keep]
    parts = [first, scored.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))]
    if fuse:
        left = scores.scatter(1, index, 0.0)
        parts.append((left[:, None] @ scored.to(left.dtype)).to(tokens.dtype))
    return torch.cat(parts, 1), index
