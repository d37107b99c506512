"""The class-embedding lens of vision transformers: the class that the tokens of each block represent.

Source: Vilas et al., "Analyzing Vision Transformers for Image Classification in Class Embedding Space"
(arXiv:2310.18969).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regaze.display import short_repr
from regaze.errors import BadParameterError, ShapeError, UnsupportedModelError
from regaze.kernels import AttentionEdit, RowSelection, StatsRequest, attend
from regaze.toolkit.model.vision import vision_blocks

#: Names of the norm after the last block, and of the class embeddings, in image classifiers.
_NORMS = ("layernorm", "post_layernorm", "norm")
_HEADS = ("classifier", "cls_classifier", "head")


@dataclass(frozen=True, eq=False)
class ClassLens:
    """Tokens of a vision transformer projected on its class embeddings.

    Attributes:
        logits: [S, N, T, C] fp32, for S states, N images, T tokens, C classes; state 0 is the input of the
            first block, state s the output of block s - 1.
        prefix: number of tokens before the patches.
    """

    logits: Tensor
    prefix: int

    __repr__ = short_repr

    def identifiability(self, classes: Tensor | int) -> Tensor:
        """How well each token identifies its image's class, [S, N, T]; see `identifiability`."""
        return identifiability(self.logits, classes)

    def change_rate(self, classes: Tensor | int) -> Tensor:
        """Share of patches whose class logit rises from each state to the next, [S - 1]; see
        `class_change_rate`.
        """
        return class_change_rate(class_logits_of(self.logits, classes), self.prefix)


def class_lens(
    model: PreTrainedModel,
    pixel_values: Tensor,
    *,
    norm: Callable[[Tensor], Tensor] | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
) -> ClassLens:
    """Project the output tokens of each block on the class embeddings, z = head(norm(x)).

    Args:
        model: an image classifier (ViT, DeiT), or a CLIP vision model with `norm` and `head` given (its
            projection and the texts' features).
        pixel_values: [N, 3, H, W].
        norm, head: map tokens [..., D] to [..., D], and to class logits [..., C]; default: the model's own.
            Pass the norm of models that average their patches, which have another one before their head.

    Raises:
        UnsupportedModelError: no blocks, norm or head found. ShapeError: pixel values of another shape.
    """
    if pixel_values.dim() != 4:
        raise ShapeError(f"pixel_values must be [N, 3, H, W], got {list(pixel_values.shape)}")
    blocks, prefix = vision_blocks(model)
    norm = _part(model.base_model, _NORMS, "norm after its last block") if norm is None else norm
    head = _part(model, _HEADS, "class embeddings") if head is None else head
    states: list[Tensor] = []

    def keep(state: Tensor) -> None:
        states.append(head(norm(state)).float().cpu())

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    handles = [blocks[0].module.register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.module.register_forward_hook(after) for block in blocks]
    try:
        with torch.no_grad():
            model(pixel_values=pixel_values.to(model.device, model.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return ClassLens(torch.stack(states), prefix)


def _part(module: nn.Module, names: tuple[str, ...], what: str) -> nn.Module:
    found = next((part for name in names if isinstance(part := getattr(module, name, None), nn.Module)), None)
    if found is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no {what} that regaze can find; pass norm=... and head=..."
        )
    return found


def class_logits_of(logits: Tensor, classes: Tensor | int) -> Tensor:
    """Logits of one class, or of each image's own [N]: [S, N, T, C] -> [S, N, T].

    Raises:
        BadParameterError: a class that does not exist. ShapeError: not one class per image.
    """
    _, images, _, count = logits.shape
    index = torch.as_tensor(classes, device=logits.device)
    if index.dim() > 1 or (index.dim() == 1 and len(index) != images):
        raise ShapeError(f"classes must be one number or [N] = [{images}], got {list(index.shape)}")
    if bool(((index < 0) | (index >= count)).any()):
        raise BadParameterError(f"classes must be in 0..{count - 1}, got {index.tolist()}")
    index = index.expand(images)[None, :, None, None].expand(*logits.shape[:3], 1)
    return logits.gather(3, index)[..., 0]


def class_rank(logits: Tensor, classes: Tensor | int) -> Tensor:
    """Rank of the class in each token's prediction, from 0: [S, N, T, C] -> [S, N, T] int64.

    Of equal logits the lower class comes first. `classes` and errors as for `class_logits_of`.
    """
    own = class_logits_of(logits, classes)[..., None]
    index = torch.as_tensor(classes, device=logits.device).expand(logits.shape[1])[None, :, None, None]
    earlier = torch.arange(logits.shape[3], device=logits.device) < index
    return ((logits > own) | ((logits == own) & earlier)).sum(-1)


def identifiability(logits: Tensor, classes: Tensor | int) -> Tensor:
    """Class identifiability 1 - rank / C: 1 is the best, 0.5 chance. [S, N, T, C] -> [S, N, T] fp32."""
    return 1 - class_rank(logits, classes) / logits.shape[3]


def class_change_rate(own: Tensor, prefix: int = 1) -> Tensor:
    """Share of the patches, over all images, whose own class's logit rises from a state to the next.

    Args:
        own: [S, N, T] logits of the class, as from `class_logits_of`. prefix: tokens before the patches.

    Returns:
        [S - 1] float64.
    """
    patches = own[:, :, prefix:]
    return (patches[1:] > patches[:-1]).double().mean((1, 2))


def perturbed_attention(
    q: Tensor, k: Tensor, v: Tensor, mode: Literal["self_only", "no_cls"], *, prefix: int = 1
) -> tuple[Tensor, Tensor]:
    """Attention in which patches do not exchange information, to test whether the class token needs that.

    Args:
        q, k, v: [B, H, N, D]; the first `prefix` tokens are not patches, and their rows stay as they are.
        mode: "self_only": a patch attends to itself only. "no_cls": it does not attend to token 0; its row is
            not renormalised and sums to less than 1.

    Returns:
        The output [B, H, N, D], and the weights [B, H, N, N] fp32.
    """
    if mode not in ("self_only", "no_cls"):
        raise BadParameterError(f'mode must be "self_only" or "no_cls", got {mode!r}')
    tokens, mask, gain = q.shape[2], None, None
    if mode == "self_only":
        mask = torch.eye(tokens, dtype=torch.bool, device=q.device)[None, None].clone()
        mask[:, :, :prefix] = True
    else:
        gain = torch.ones(1, 1, tokens, device=q.device)
        gain[..., 0] = 0.0
    edit = AttentionEdit(
        rows=RowSelection(torch.arange(prefix, tokens, device=q.device)),
        value_gain=gain,
        stats=StatsRequest(full_rows=True, edited=True),
    )
    out, stats = attend(q, k, v, edit, mask=mask)
    assert stats is not None
    assert stats.slices is not None
    return out, stats.slices
