"""PAINT: boost the image tokens that the vision tower's class token attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.contrastive import WITHOUT_IMAGE, has_image, logits_to_constrain, rows_with_image
from regaze.interventions.controls import PlausibilityCut, UniformColumns
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.interventions.parameters import Fraction
from regaze.kernels import AttentionEdit, RowSelection
from regaze.toolkit.model.branches import without_image
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.model.vision import class_attention, patches_on_tokens, received_attention
from regaze.toolkit.prompts.token_map import Role

#: Blocks of the vision tower whose class attention chooses local and summary tokens.
LOCAL_BLOCK, SUMMARY_BLOCK = 0, -2


@dataclass(frozen=True)
class PAINT(Intervention):
    """Raise the scores of local and summary tokens of the image, and guide away from the text-only prompt.

    Source: Arif et al., "Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large
    Vision-Language Model", later "PAINT: Paying Attention to INformed Tokens" (arXiv:2501.12206). Local
    tokens are the fraction `local_ratio` of an image's patches with most attention of the class token in the
    vision tower's first block; summary tokens are those whose class attention in the last block but one lies
    above Tukey's upper fence, Q3 + 1.5 (Q3 - Q1); a token that is both is a summary token. In layers 2 to 31
    of 32, in the rows that predict the answer, scores of local tokens become s + alpha |s|, those of summary
    tokens s + beta |s|. Guidance is that of PAI: gamma (l - l_text) + l_text on log-probabilities; l decides
    which tokens are plausible.

    Spatial tokens are treated as local tokens: the fraction `spatial_ratio` of the patches that receive most
    attention from all tokens in the first block. This interpretation is ours: the release ranks row sums of a
    softmax, which are all 1. `head_weights`, the factor of alpha and beta in each head (see
    `head_sensitivity`), is ours as well: the paper's first version mentions such a modulation without a rule.

    With `as_released=True` the prefill is not edited when guidance is on, so that the first token comes from
    unedited attention, and the number of summary tokens passes through a float ratio that can lose one.
    Published results coincide with looping captions: check length and repetition.
    """

    name: ClassVar[str] = "paint"
    summary: ClassVar[str] = "raise the scores of image tokens that the vision tower's class token attends to"
    source: ClassVar[str] = "arXiv:2501.12206"
    edits: ClassVar[str] = "scores of the rows that predict the answer before the softmax, and logits"
    cost: ClassVar[str] = (
        "one more pass of the vision tower; two rows per prompt in one forward (one with gamma=1)"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("scores", "logits"), cost="two rows", needs=("second context", "vision tower")
    )
    release: ClassVar[str] = (
        "hasanar1f/llava-hallunication-fix and hasanar1f/PAINT, no licence. The first token is not edited "
        "with guidance (as_released=True does so); ratios given on the command line are ignored; spatial "
        "tokens rank numerical noise; the first sample chooses for the batch; no grouped-query attention."
    )
    needs_pixels: ClassVar[bool] = True
    fixed_edits = True

    alpha: NonNegativeFloat = field(
        default=0.7, metadata={"help": "slope of local tokens' scores in their size"}
    )
    beta: NonNegativeFloat = field(
        default=0.4, metadata={"help": "slope of summary tokens' scores in their size"}
    )
    gamma: Annotated[float, Field(ge=1.0)] = field(
        default=1.1, metadata={"help": "strength of the guidance (1: none)"}
    )
    cut: Fraction = field(
        default=0.1,
        metadata={"help": "with guidance, exclude tokens less likely than this times the likeliest"},
    )
    local_ratio: Fraction = field(default=0.25, metadata={"help": "fraction of the patches that are local"})
    spatial_ratio: Fraction = field(
        default=0.0, metadata={"help": "fraction of the patches that are spatial"}
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last edited layer; default: 2 to 31 of 32, scaled"}
    )
    head_weights: Sequence[Sequence[float]] | None = field(
        default=None, metadata={"help": "ours: factor of alpha and beta by layer and head"}
    )
    as_released: bool = field(
        default=False, metadata={"help": "leave the first token unedited under guidance, as the code does"}
    )

    @property
    def is_identity(self) -> bool:
        return self.alpha == self.beta == 0.0 and self.gamma == 1.0

    def controls(self) -> Sequence[Method]:
        cut = (PlausibilityCut(self.cut),) if self.gamma != 1.0 and self.cut else ()
        return (*((UniformColumns(self),) if self.alpha or self.beta else ()), *cut)

    def branches(self, context: Context) -> Mapping[str, Branch]:
        if self.gamma == 1.0 or not has_image(context).any():
            return {}
        context.state(self)["where"] = rows_with_image(context)
        return {WITHOUT_IMAGE: without_image(context)}

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        image = tokens.mask(Role.IMAGE)
        if self.alpha == self.beta == 0.0 or not image.any():
            return
        state["layers"] = attention_range(context, self.layers, (2, 31))
        slope = patches_on_tokens(self.slopes(context), tokens, context.user_batch)[:, None]
        rows = RowSelection.where(tokens.answering() & image.any(1, keepdim=True))
        answers = [AttentionEdit(score_slope=slope * heads) for heads in self._head_factors(context)]
        state["edits"] = [(answer.about(rows), answer) for answer in answers]  # of all layers, or by layer

    def _head_factors(self, context: Context) -> Tensor:
        """[1 or layers, heads, 1] factors of the slope."""
        weights = self.head_weights
        if weights is None:
            return torch.ones(1, 1, 1)
        if len(weights) != context.num_layers or {len(row) for row in weights} != {context.num_heads}:
            raise BadParameterError(
                f"head_weights must be [layers, heads] = [{context.num_layers}, {context.num_heads}] numbers"
            )
        return torch.tensor(weights)[:, :, None]

    def slopes(self, context: Context) -> Tensor:
        """[N, patches] slope of each patch of each image in the batch, on the CPU."""
        pixels = context.inputs.get("pixel_values")
        if pixels is None:
            raise InputError("PAINT reads `pixel_values`, but the model was called without them")
        attention = class_attention(context.model, pixels, (LOCAL_BLOCK, SUMMARY_BLOCK)).sum(2).cpu()
        received = None
        if self.spatial_ratio > 0.0:
            received = received_attention(context.model, pixels, (LOCAL_BLOCK,))[0].sum(1).cpu()
        local, summary = self.choose(attention[0], attention[1], received)
        return self.alpha * local.float() + self.beta * summary.float()

    def choose(
        self, first: Tensor, penultimate: Tensor, received: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Local (and spatial) tokens, and summary tokens: two disjoint [N, patches] bool masks.

        Args:
            first, penultimate: [N, patches] class attention of those blocks, summed over heads.
            received: [N, patches] attention received in the first block.
        """
        patches = first.shape[1]
        local = top_mask(first, torch.tensor(int(self.local_ratio * patches)))
        if received is not None:
            local |= top_mask(received, torch.tensor(int(self.spatial_ratio * patches)))
        count = (penultimate > upper_fence(penultimate)).sum(1, keepdim=True)
        if self.as_released:
            count = (patches * (count.double() / patches)).long()
        summary = top_mask(penultimate, count)
        return local & ~summary, summary

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        first, last = state.get("layers", (0, -1))
        prefill = step == 0 or context.replaying
        if not first <= layer <= last or (prefill and self.as_released and self.gamma != 1.0):
            return None
        edits = state["edits"]
        return edits[layer if len(edits) > 1 else 0][min(step, 1)]

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state = context.state(self)
        if "where" not in state:
            return None
        logits, text_only = context.logits(), context.logits(WITHOUT_IMAGE)
        plausibility_logits = logits_to_constrain(logits, state["where"])
        return LogitsCombination(
            self.gamma, [(1.0 - self.gamma, text_only)], True, self.cut, plausibility_logits
        )


def upper_fence(values: Tensor) -> Tensor:
    """Tukey's fence Q3 + 1.5 (Q3 - Q1) of [N, n], with linear quartiles: [N, 1]."""
    quartiles = torch.tensor([0.25, 0.75], dtype=torch.float64)
    low, high = values.double().quantile(quartiles, dim=1, keepdim=True)
    return high + 1.5 * (high - low)


def top_mask(values: Tensor, count: Tensor) -> Tensor:
    """Mask of the `count` (a number, or [N, 1]) largest values of [N, n]; of equal values the first."""
    rank = values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count
