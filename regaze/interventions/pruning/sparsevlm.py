"""SparseVLM: words of the question that are about the image rate its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Layers
from regaze.interventions.pruning.base import Pruning, scaled_layers
from regaze.kernels import AttentionEdit, Placeable, RowSelection, Stats, StatsRequest
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import column_index, scatter_columns
from regaze.toolkit.prompts.token_map import Role, TokenMap

_LAYERS, _DEPTH, _TOKENS = (2, 6, 15), 32, 576
#: Image tokens that stay behind each of these layers, of 576, by their mean over all layers.
_KEPT = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}


@dataclass(frozen=True)
class SparseVLM(Pruning):
    """Keep the image tokens that words about the image attend to most, in three stages.

    Source: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
    Inference" (arXiv:2410.04417), in its second version (SparseVLM+). Each image token's embedding is
    compared with those of the text after the image, p_k = mean over image tokens i of softmax_k(v_i . t_k);
    the text tokens with p_k above the mean are raters. Behind layers 2, 6 and 15 of 32, an image token's
    score is its weight in the raters' rows, divided by what rotary positions alone give at that distance,
    rho = 2 / sqrt(d) sum_i cos(distance theta_i), averaged over raters and the `heads` heads that look at the
    image most. Nothing is merged and positions stay; the first version merges part of the dropped tokens into
    new ones and numbers positions anew, which is not offered here.

    rho changes its sign from 1,707 tokens of distance on (head dimension 128, theta 10,000): for longer
    prompts set `prior=False`. Distances count tokens. Where no text token is above the mean, all are raters.
    """

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = "image tokens leave in three stages, rated by words about the image"
    source: ClassVar[str] = "arXiv:2410.04417"
    edits: ClassVar[str] = "hidden states and cache from each of three layers on"
    cost: ClassVar[str] = (
        "less than plain: fewer rows and keys in later layers; at the prompt the rows of the raters in three"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("tokens",),
        cost="fewer rows",
        when=("prompt",),
        graphs="broken",
        needs=("hidden states", "whole prompt"),
    )
    release: ClassVar[str] = (
        "Gumpest/SparseVLMs, Apache-2.0. One sample at a time; weights of all layers are computed whole; "
        "the number of tokens is a constant per budget where the abstract derives it from a rank; 14 heads "
        "and the layers are literals. Version 1.5 adds random noise to the densities by which it merges."
    )
    needs_hidden_states: ClassVar[bool] = True
    fixed_edits = True

    budget: Literal[192, 128, 96, 64] = field(
        default=192, metadata={"help": "mean number of image tokens per layer, for an image of 576"}
    )
    layers: Layers | None = field(
        default=None, metadata={"help": "layers behind which tokens leave (null: 2, 6, 15 of 32, scaled)"}
    )
    kept: Annotated[Sequence[PositiveInt], Field(min_length=1)] | None = field(
        default=None, metadata={"help": "how many image tokens stay behind each layer, instead of a budget"}
    )
    heads: PositiveInt = field(default=14, metadata={"help": "heads whose weights count, at most all"})
    prior: bool = field(default=True, metadata={"help": "divide weights by what rotary positions alone give"})

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(_LAYERS if self.layers is None else self.layers)
        if len(self._kept) != count:
            raise BadParameterError(
                f"'sparsevlm': kept must have a number for each of the {count} layers, got {self.kept!r}"
            )

    @property
    def _kept(self) -> tuple[int, ...]:
        return _KEPT[self.budget] if self.kept is None else tuple(self.kept)

    def behind(self, num_layers: int) -> tuple[int, ...]:
        """The layers behind which tokens leave, in a model of this depth."""
        if self.layers is not None:
            return tuple(self.layers)
        return tuple(layer - 1 for layer in scaled_layers([each + 1 for each in _LAYERS], _DEPTH, num_layers))

    def stages(self, context: Context, tokens: Tensor) -> Mapping[int, Tensor]:
        stages = {}
        for layer, kept in zip(self.behind(context.num_layers), self._kept, strict=True):
            numbers = [
                kept if self.kept else max(1, round(count * kept / _TOKENS)) for count in tokens.tolist()
            ]
            stages[layer + 1] = torch.tensor(numbers)
        return stages

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        state = context.state(self)
        if "tokens" not in state:
            return
        if 0 not in context.self_layers:
            raise UnsupportedModelError(
                "SparseVLM reads the embeddings in layer 0, which has no attention in this model"
            )
        if self.prior:
            for layer in state["tokens"].stages:
                rotary_theta(context.config, layer - 1)  # which says what is missing
        state["text"] = Text.of(context.tokens, state["tokens"].columns)

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state, hiding = context.state(self), self.hiding(layer, context)
        if step or "text" not in state:
            return hiding
        if layer == 0:
            state["request"] = self._request(context)
        if layer + 1 not in state["tokens"].stages:
            return hiding
        request: StatsRequest = state["request"]
        return request.as_edit if hiding is None else hiding.replace(stats=request)

    def _request(self, context: Context) -> StatsRequest:
        """The rows of the raters, which are found on the device."""
        state, embeds = context.state(self), context.hidden_states(0)
        text, image = state["text"].to(embeds.device), state["tokens"].to(embeds.device).columns
        found = raters(_rows(embeds, image), _rows(embeds, text.words), image >= 0, text.words >= 0)
        rating = scatter_columns(found, text.words, context.prompt_length, False)
        rows = RowSelection(state["text"].rows, rating[:, text.rows])
        return StatsRequest(rows=rows, columns=state["tokens"].columns)

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        state = context.state(self)
        assert stats.slices is not None
        weights = self.shares(stats.slices, context)
        if self.prior:
            distance, config = state["text"].to(weights.device).distance, context.config
            width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            lengths = torch.arange(context.prompt_length, device=weights.device)
            prior = position_prior(lengths, width, rotary_theta(config, layer))
            weights = weights / prior[distance.abs()][:, None]
        rows = state["request"].rows.to(weights.device).active
        state["scores"] = rated(weights, rows, self.heads)

    def scores(self, layer: int, context: Context) -> Tensor:
        scores: Tensor = context.state(self)["scores"]
        return scores


@dataclass(frozen=True, eq=False)
class Text(Placeable):
    """The text behind the images of a batch.

    Attributes:
        words: [batch, T] int64, its columns, -1 where a prompt has fewer. rows: [R] int64, all of them.
        distance: [batch, R, N] int64, from the image tokens to the rows.
    """

    words: Tensor
    rows: Tensor
    distance: Tensor

    @classmethod
    def of(cls, tokens: TokenMap, columns: Tensor) -> Text:
        """That of prompts whose image tokens are in columns [batch, N]."""
        text = behind_images(tokens)
        rows = text.any(0).nonzero().flatten()
        positions = (~tokens.mask(Role.PAD)).cumsum(1)
        images = positions.gather(1, columns.clamp_min(0))
        return cls(column_index(text), rows, positions[:, rows, None] - images[:, None])


def behind_images(tokens: TokenMap) -> Tensor:
    """[batch, L] bool, the text of each prompt after its last image token."""
    return tokens.after_last_image() & ~tokens.mask(Role.OUTPUT)


def raters(image: Tensor, text: Tensor, images: Tensor, words: Tensor, block: int = 1024) -> Tensor:
    """Which text tokens rate: [B, T] bool.

    Args:
        image: [B, N, D] embeddings. text: [B, T, D]. images: [B, N] bool, which exist. words: [B, T] bool.
        block: image tokens that are compared at once.
    """
    total = torch.zeros(text.shape[:2], device=text.device)
    for start in range(0, image.shape[1], block):
        part = slice(start, start + block)
        products = (image[:, part].float() @ text.float().mT).masked_fill(~words[:, None], -torch.inf)
        total = total + (products.softmax(-1) * images[:, part, None]).nan_to_num(0.0).sum(1)
    share = total / images.sum(1, keepdim=True).clamp_min(1)
    mean = share.sum(1, keepdim=True) / words.sum(1, keepdim=True).clamp_min(1)
    above = words & (share > mean)
    return torch.where(above.any(1, keepdim=True), above, words)


def position_prior(distance: Tensor, width: int, theta: float = 10000.0) -> Tensor:
    """rho of distances [...], as fp32: what vectors of ones give each other under rotary positions."""
    exponents = torch.arange(0, width, 2, device=distance.device).float() / width
    angles = distance.float()[..., None] * theta**-exponents
    return 2.0 / width**0.5 * angles.cos().sum(-1)


def rated(weights: Tensor, rows: Tensor, heads: int) -> Tensor:
    """Scores [B, N]: weights [B, Hq, R, N] averaged over the rating rows [B, R] bool and the best heads."""
    weights = weights * rows[:, None, :, None]
    by_head = weights.sum(2) / rows.sum(1).clamp_min(1)[:, None, None]
    best = by_head.sum(-1).topk(min(heads, by_head.shape[1]), 1).indices
    return by_head.gather(1, best[..., None].expand(-1, -1, by_head.shape[2])).mean(1)


def _rows(hidden: Tensor, columns: Tensor) -> Tensor:
    """[B, n, D] of hidden states [B, L, D] at columns [B, n]; those of -1 are any."""
    return hidden.gather(1, columns.clamp_min(0)[..., None].expand(-1, -1, hidden.shape[2]))


def rotary_theta(config: Any, layer: int) -> float:
    """The base of a layer's rotary positions.

    Raises:
        UnsupportedModelError: the model's configuration has none.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[layer] in parameters:  # Gemma 3: one for each kind of layer
        parameters = parameters[kinds[layer]]
    theta = parameters.get("rope_theta") or getattr(config, "rope_theta", None)
    if theta is None:
        raise UnsupportedModelError(
            "SparseVLM divides weights by what rotary positions alone give, but this model has none: set "
            "prior=False"
        )
    return float(theta)
