"""What pruning methods share: stages, in each of which the image tokens with the lowest scores go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.common.ranking import least_attended
from regaze.interventions.controls.random_tokens import RandomTokens
from regaze.interventions.layer_ranges import require_attention
from regaze.kernels import AttentionEdit, LeavingTokens, Placeable
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import column_index, scatter_columns
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True, eq=False)
class ImageTokens(Placeable):
    """The image tokens of a batch.

    Attributes:
        columns: [batch, N] int64, -1 where a prompt has fewer. stages: layers, rising. kept: [stages, batch]
            how many stay.
    """

    columns: Tensor
    stages: tuple[int, ...]
    kept: Tensor


@dataclass(frozen=True)
class Pruning(Intervention):
    """Base of methods that take image tokens away inside the language model, once per prompt.

    A stage is a layer that is given only some of the image tokens: those with the highest scores of the ones
    that the layer before had, of equal ones the first. The image tokens of a prompt are one set, whatever
    images they show; samples of a batch choose for themselves. Text stays, and so do all positions.

    Removed tokens leave the hidden states and the cache from that layer on. A batch has as many rows there as
    the sample that keeps most. Hidden ones (`remove=False`) stay, and nobody sees them: the answers are the
    same, at the plain model's cost, on every model.
    """

    remove: bool = field(
        default=True, metadata={"help": "take tokens out of hidden states and cache (false: hide them)"}
    )

    def stages(self, context: Context, tokens: Tensor) -> Mapping[int, Tensor]:
        """How many image tokens [batch] each stage keeps of `tokens` [batch], by layer, both on the CPU."""
        raise NotImplementedError

    def scores(self, layer: int, context: Context) -> Tensor:
        """[batch, N] the scores of all image tokens, right before the stage `layer` runs."""
        raise NotImplementedError

    @property
    def inactive(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"leaving"}) if self.is_identity else frozenset()

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (RandomTokens(self),)

    def prepare(self, context: Context) -> None:
        image, state = context.tokens.mask(Role.IMAGE), context.state(self)
        if self.is_identity or not bool(image.any()):
            return
        state["image"], state["left"], state["hiding"] = image, image.sum(1), {}
        stages = dict(sorted(self.stages(context, state["left"]).items()))
        state["tokens"] = ImageTokens(column_index(image), tuple(stages), torch.stack([*stages.values()]))
        for layer in stages:
            if not 0 < layer < context.num_layers:
                raise BadParameterError(
                    f"tokens cannot leave before layer {layer}: choose from 1..{context.num_layers - 1}, the "
                    "layers of the model after the first"
                )
            require_attention(context, [layer - 1])

    def leaving(self, layer: int, context: Context) -> LeavingTokens | None:
        state = context.state(self)
        tokens: ImageTokens | None = state.get("tokens")
        if tokens is None or layer not in tokens.stages:
            return None
        kept = tokens.kept[tokens.stages.index(layer)]
        if bool((kept >= state["left"]).all()):
            return None
        gone = self.choose(layer, context)
        counts = (state["left"] - kept).clamp_min(0)
        state["left"] = state["left"] - counts
        return LeavingTokens(gone, tuple(counts.tolist()), state["image"]) if self.remove else None

    def choose(self, layer: int, context: Context) -> Tensor:
        """[batch, L] bool, the tokens that are gone from `layer` on, by the scores now."""
        state, scores = context.state(self), self.scores(layer, context)
        tokens: ImageTokens = state["tokens"].to(scores.device)
        kept = tokens.kept[tokens.stages.index(layer)]
        chosen = least_attended(-scores, self.there(context, scores.device), kept)
        state["chosen"] = chosen
        missing = (tokens.columns >= 0) & ~chosen
        gone = scatter_columns(missing, tokens.columns, context.prompt_length, False)
        if not self.remove:
            bias = torch.zeros_like(gone, dtype=torch.float32).masked_fill(gone, -torch.inf)
            state["hiding"][layer] = AttentionEdit(bias=bias[:, None])
        return gone

    def there(self, context: Context, device: torch.device) -> Tensor:
        """[batch, N] bool, the image tokens that are not gone so far."""
        state = context.state(self)
        if "chosen" in state:
            chosen: Tensor = state["chosen"]
            return chosen.to(device)
        columns: Tensor = state["tokens"].to(device).columns
        return columns >= 0

    def hiding(self, layer: int, context: Context) -> AttentionEdit | None:
        """The edit that hides from `layer` what is gone; None where tokens are removed, or none is gone."""
        edits: dict[int, Any] = context.state(self).get("hiding", {})
        return next((edits[first] for first in sorted(edits, reverse=True) if first <= layer), None)

    def shares(self, weights: Tensor, context: Context) -> Tensor:
        """Attention weights [batch, Hq, R, N] as they are without the tokens that are gone."""
        there = self.there(context, weights.device)[:, None, None]
        hidden = weights.masked_fill(there, 0.0).sum(-1, keepdim=True)
        return weights.masked_fill(~there, 0.0) / (1.0 - hidden).clamp_min(torch.finfo(weights.dtype).tiny)


def last_of_prompt(context: Context) -> Tensor:
    """[batch, L] bool, the last token of each prompt, also where an answer follows it."""
    tokens = context.tokens
    return tokens.answering() & ~tokens.mask(Role.OUTPUT)


def scaled_layers(published: Sequence[int], depth: int, num_layers: int) -> tuple[int, ...]:
    """Layers published for a model with `depth` layers, at the same depth of another; not its first one."""
    scaled = ((2 * layer * num_layers + depth) // (2 * depth) for layer in published)
    return tuple(max(1, min(layer, num_layers - 1)) for layer in scaled)
