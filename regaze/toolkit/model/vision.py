"""The blocks of a vision transformer with a class token, and the attention of that token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regaze.errors import BadParameterError, InputError, ShapeError, UnsupportedModelError
from regaze.kernels import StatsRequest, attention_stats
from regaze.toolkit.model import compat
from regaze.toolkit.prompts.token_map import PromptTokens, Role, TokenMap, View

#: Names of a block's first norm, attention and second norm: CLIP's, and those of ViT and DeiT.
_LAYOUTS = (("layer_norm1", "self_attn", "layer_norm2"), ("layernorm_before", "attention", "layernorm_after"))


@dataclass(frozen=True, eq=False)
class VisionBlock:
    """One pre-norm block in its two halves.

    Attributes:
        module: the block itself.
        first_norm, attention, second_norm: its parts.
    """

    module: Any
    first_norm: Any
    attention: Any
    second_norm: Any

    def attend(self, hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The attention half with its residual, and the attention of the class token.

        Returns:
            [B, N, C] tokens, and the attention of token 0 averaged over heads, [B, N] fp32. The latter costs
            a second projection of the keys, and no N x N matrix.
        """
        normed = self.first_norm(hidden)
        out = self.attention(normed, *args, **kwargs)[0]
        return hidden + self._dropout(out), self.attention_of(normed, slice(0, 1)).mean(1)[:, 0]

    def attention_of(self, normed: Tensor, rows: slice, split_heads: bool = True) -> Tensor:
        """Attention of some tokens, [B, H, R, N] fp32, from the output [B, N, C] of the first norm.

        H is 1 without `split_heads`: one softmax over queries and keys of the full width.
        """
        width = self.attention.head_dim if split_heads else normed.shape[-1]
        stats = attention_stats(*self._query_key(normed, rows, width), _ROWS)
        assert stats.slices is not None
        return stats.slices

    def received(self, normed: Tensor) -> Tensor:
        """Mean attention that each token receives from all tokens: [B, N, C] -> [B, H, N] fp32."""
        query, key = self._query_key(normed, slice(None), self.attention.head_dim)
        received = attention_stats(query, key, columns="sum").received
        assert received is not None
        return received / normed.shape[1]

    def _query_key(self, normed: Tensor, rows: slice, width: int) -> tuple[Tensor, Tensor]:
        """Queries of some tokens [B, H, R, width], and keys of all, [B, H, N, width]."""
        projected = self.attention.q_proj(normed[:, rows]), self.attention.k_proj(normed)
        query, key = (x.unflatten(-1, (-1, width)).transpose(1, 2) for x in projected)
        return query, key

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """The MLP half with its residual: [B, N, C] -> [B, N, C]."""
        return hidden + self._dropout(self.module.mlp(self.second_norm(hidden)))

    def _dropout(self, x: Tensor) -> Tensor:
        dropout = getattr(self.module, "dropout", None)
        return x if dropout is None else dropout(x)


_ROWS = StatsRequest(full_rows=True)


def class_attention(
    model: PreTrainedModel, pixel_values: Tensor, layers: Sequence[int], split_heads: bool = True
) -> Tensor:
    """Attention of the class token of a vision tower; costs one forward of the tower, no N x N matrix.

    Args:
        model: a vision model, or a model with one inside (LLaVA).
        pixel_values: [N, 3, H, W].
        layers: blocks of the tower from 0; negative ones count from the end.
        split_heads: False takes queries and keys of the full width for one head, as some releases do.

    Returns:
        [len(layers), N, heads, patches] fp32, to every patch.

    Raises:
        UnsupportedModelError: a tower without a class token (SigLIP, Qwen2-VL). BadParameterError: no such
        block. ShapeError: other pixel values.
    """

    def of_class_token(block: VisionBlock, normed: Tensor) -> Tensor:
        return block.attention_of(normed, slice(0, 1), split_heads)[:, :, 0]

    return _measured(model, pixel_values, layers, of_class_token)


def received_attention(model: PreTrainedModel, pixel_values: Tensor, layers: Sequence[int]) -> Tensor:
    """As `class_attention`, the attention that each patch receives, averaged over all tokens."""

    return _measured(model, pixel_values, layers, VisionBlock.received)


def tower_map(
    model: PreTrainedModel, pixel_values: Tensor, layer: int, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """What `measure` makes of a block's attention, the whole map [N, H, T, T] fp32 of all tokens.

    Costs one forward of the tower. Other arguments and errors as for `class_attention`.
    """

    def of_map(block: VisionBlock, normed: Tensor) -> Tensor:
        return measure(block.attention_of(normed, slice(None)))

    return _at_attention(model, pixel_values, (layer,), of_map)[0]


def _measured(
    model: PreTrainedModel,
    pixel_values: Tensor,
    layers: Sequence[int],
    measure: Callable[[VisionBlock, Tensor], Tensor],
) -> Tensor:
    """`measure` [N, heads, tokens] of the input of each chosen attention module, at the patches."""
    _, prefix = vision_blocks(vision_tower(model))
    return _at_attention(model, pixel_values, layers, measure)[..., prefix:]


def _at_attention(
    model: PreTrainedModel,
    pixel_values: Tensor,
    layers: Sequence[int],
    measure: Callable[[VisionBlock, Tensor], Tensor],
) -> Tensor:
    """`measure` of the input of each chosen attention module, stacked."""
    tower = vision_tower(model)
    blocks, _ = vision_blocks(tower)
    if pixel_values.dim() != 4:
        raise ShapeError(
            f"pixel_values must be [N, 3, H, W], got {list(pixel_values.shape)}: a tower sees tiles of an "
            "image as images of their own"
        )
    missing = [layer for layer in layers if not -len(blocks) <= layer < len(blocks)]
    if missing:
        raise BadParameterError(
            f"vision layers {missing} do not exist: {type(tower).__name__} has blocks 0..{len(blocks) - 1}"
        )
    found: dict[int, Tensor] = {}

    def measuring(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[number] = measure(blocks[number], args[0] if args else kwargs["hidden_states"])

        return hook

    numbers = [layer % len(blocks) for layer in layers]
    hooks = [(blocks[number].attention, measuring(number)) for number in set(numbers)]
    with compat.temporary_hooks(hooks), torch.no_grad():
        tower(pixel_values=pixel_values.to(tower.device, tower.dtype))
    return torch.stack([found[number].to(pixel_values.device) for number in numbers])


def patches_on_tokens(values: Tensor, tokens: TokenMap, user_batch: int) -> Tensor:
    """Values of patches, [N, patches], at the tokens that show them: [B, L], 0 elsewhere.

    The N images are those of the user's rows, in order; the branches of a prompt show the same ones.

    Raises:
        InputError: the images have other cells than the vision tower has patches, or other images.
    """
    counts = torch.tensor([len(grids) for grids in tokens.grids[:user_batch]])
    cells = {rows * columns for grids in tokens.grids for rows, columns in grids}
    if int(counts.sum()) != len(values) or cells != {values.shape[1]}:
        raise InputError(
            f"the prompts show {int(counts.sum())} images of {sorted(cells)} cells, but the vision tower saw "
            f"{len(values)} of {values.shape[1]} patches: there must be a token for each patch"
        )
    first = (counts.cumsum(0) - counts).repeat(tokens.batch // user_batch)[:, None]
    shown = (tokens.view >= 0) & (tokens.cell >= 0)
    images, places = (first + tokens.view).where(shown, 0), tokens.cell.long().where(shown, 0)
    return values[images, places] * shown


def vision_tower(model: PreTrainedModel) -> PreTrainedModel:
    """The vision model inside `model`, or `model` itself when it has no other parts.

    Raises:
        UnsupportedModelError: there is none.
    """
    config = getattr(model.config, "vision_config", None)
    if config is None:
        return model
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config is config:
            return module
    raise UnsupportedModelError(f"{type(model).__name__} has no vision tower that regaze can find")


def tower_mlps(model: PreTrainedModel) -> list[nn.Module]:
    """The MLPs of the blocks of the vision tower that runs inside `model`, in order.

    Raises:
        UnsupportedModelError: there is no tower, or its blocks have no such part.
    """
    tower = vision_tower(model)
    if not compat.is_vision_model(tower):
        raise UnsupportedModelError(f"{type(model).__name__} has no vision tower whose blocks regaze knows")
    mlps = [compat.mlp_of(block) for block in compat.decoder_layers(tower)]
    if any(mlp is None for mlp in mlps):
        raise UnsupportedModelError(f"the blocks of {type(tower).__name__} have no MLP that regaze knows")
    return [mlp for mlp in mlps if mlp is not None]


def vision_tokens(model: PreTrainedModel, pixel_values: Tensor) -> TokenMap:
    """Roles of the tokens of a vision model used alone: SYSTEM first (class, registers), then the patches.

    Args:
        pixel_values: [B, 3, H, W].

    Raises:
        UnsupportedModelError: the model does not cut images into patches of one size. ShapeError: other pixel
        values, such as those of Siglip 2, which are patches already.
    """
    patch = getattr(model.config, "patch_size", None)
    if patch is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no patches whose tokens regaze could place")
    if pixel_values.dim() != 4:
        raise ShapeError(f"pixel_values must be [B, 3, H, W], got {list(pixel_values.shape)}")
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    rows, columns = pixel_values.shape[2] // high, pixel_values.shape[3] // wide
    extra = [p for name, p in model.named_parameters() if name.endswith(_BEFORE_PATCHES)]
    prefix, count = sum(p.numel() for p in extra) // model.config.hidden_size, rows * columns
    roles = (int(Role.SYSTEM),) * prefix + (int(Role.IMAGE),) * count
    nowhere = (-1,) * prefix
    sample = PromptTokens(roles, nowhere + (0,) * count, (*nowhere, *range(count)), (View((rows, columns)),))
    visible = torch.ones(len(pixel_values), prefix + count, dtype=torch.bool)
    return TokenMap.from_samples([sample] * len(pixel_values), visible)


#: Parameters that are tokens of their own, before the patches (those of pooling heads are not).
_BEFORE_PATCHES = tuple(
    f"embeddings.{name}" for name in ("class_embedding", "cls_token", "distillation_token", "register_tokens")
)


def vision_blocks(model: PreTrainedModel) -> tuple[list[VisionBlock], int]:
    """The blocks of a vision model, and how many tokens before the patches it has (class, distillation).

    Raises:
        UnsupportedModelError: not a CLIP, ViT or DeiT vision model used alone.
    """
    name = type(model).__name__
    if getattr(model.config, "text_config", None) is not None:
        raise UnsupportedModelError(
            f"{name} is more than a vision model, and its other parts expect all image tokens (LLaVA one per "
            "placeholder in the prompt); give a vision model used alone, such as a CLIPVisionModel"
        )
    if not hasattr(model.config, "patch_size"):
        raise UnsupportedModelError(f"{name} has no patches; give a CLIP, ViT or DeiT vision model")
    names = {parameter.rpartition(".")[2] for parameter, _ in model.named_parameters()}
    if not names & {"class_embedding", "cls_token"}:
        raise UnsupportedModelError(f"{name} has no class token, whose attention tells which patches matter")
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and m and all(map(_block, m))]
    if len(lists) != 1:
        raise UnsupportedModelError(
            f"{name} has {len(lists)} stacks of blocks built like those of CLIP, ViT or DeiT; one is needed"
        )
    return [b for m in lists[0] if (b := _block(m)) is not None], 1 + ("distillation_token" in names)


def _block(module: nn.Module) -> VisionBlock | None:
    for parts in _LAYOUTS:
        found = [getattr(module, name, None) for name in parts]
        if all(isinstance(part, nn.Module) for part in found) and hasattr(found[1], "q_proj"):
            return VisionBlock(module, *found)
    return None
