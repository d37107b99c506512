"""CAI: more attention to image tokens near the text, where a late layer is unsure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from regaze.errors import UnsupportedModelError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.contrastive import WITHOUT_IMAGE, guide_logits, has_image, rows_with_image
from regaze.interventions.controls import PlausibilityCut, UniformColumns
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.interventions.parameters import Fraction
from regaze.kernels import AttentionEdit, Placeable, RowSelection
from regaze.toolkit.model.branches import without_image
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role

#: Factor of the similarities in the sigmoid, and what keeps ln p finite.
_SHARPNESS, _TINY = 100.0, 1e-9


@dataclass(frozen=True)
class CAI(Intervention):
    """Raise the scores of image tokens that resemble the text, behind a late layer that is unsure.

    Source: Lei et al., "See Only When Needed: Context-Aware Attention Intervention for Mitigating
    Hallucinations in LVLMs" (arXiv:2606.29847); the rule is that of the released code. An image token j has
    the weight w_j = sigmoid(100 (c_j - min c)), where c_j is the cosine between its input embedding and the
    text: the mean of the input embeddings behind the prompt's last image, later that of the newest token.
    Before each of the `layers` the residual stream of the last row is read as logits. Where their entropy in
    decimal digits exceeds `threshold`, the scores of image keys in that row become s + alpha w_j |s|, in all
    heads. `alpha` is ours, 1 in the release. Guidance is PAI's, with `gamma`.

    w is at least 0.5, so that every image token gains, and close to 1 from a cosine of 0.05 above the least.
    Each sample has its own gate. A forward over prompt and answer edits its last row only, so that it differs
    from generating the answer. Prompts without an image are left unchanged.
    """

    name: ClassVar[str] = "cai"
    summary: ClassVar[str] = "raise the scores of image keys near the text where late layers are unsure"
    source: ClassVar[str] = "arXiv:2606.29847"
    edits: ClassVar[str] = "scores of the last row before the softmax, and logits, at every step"
    cost: ClassVar[str] = (
        "two rows per prompt in one forward (one with gamma=1), with the cache of both; the output head once "
        "per edited layer"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("scores", "logits"),
        cost="two rows",
        graphs="broken",
        needs=("second context", "hidden states", "layer logits"),
    )
    release: ClassVar[str] = (
        "Iris1946/CAI, MIT. Threshold, layers and gamma are set per model, data set and split of POPE: the "
        "defaults are those of LLaVA-1.5 on the popular split, with 28 of 32 for the first layer. One sample "
        "at a time; only its sampling loop sets the gates; in long text-only prompts its weights are NaN. "
        "Here samples are separate, and the text-only prompt is not edited."
    )

    prompt_needs: ClassVar[str] = "whole"

    alpha: NonNegativeFloat = field(
        default=1.0, metadata={"help": "factor of the weights of image keys (0: no edit)"}
    )
    threshold: float = field(
        default=0.1, metadata={"help": "theta, a layer is unsure above this entropy in decimal digits"}
    )
    gamma: Annotated[float, Field(ge=1.0)] = field(
        default=3.0, metadata={"help": "strength of the guidance (1: none)"}
    )
    beta: Fraction = field(
        default=0.1, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )
    layers: LayerRange | None = field(
        default=None,
        metadata={"help": "first and last edited layer; default: 28 to 31 of 32, scaled to the depth"},
    )

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0 and self.gamma == 1.0

    def controls(self) -> Sequence[Method]:
        cut = (PlausibilityCut(self.beta),) if self.gamma != 1.0 and self.beta else ()
        return (*((UniformColumns(self),) if self.alpha else ()), *cut)

    def branches(self, context: Context) -> Mapping[str, Branch]:
        if self.gamma == 1.0 or not has_image(context).any():
            return {}
        context.state(self)["where"] = rows_with_image(context)
        return {WITHOUT_IMAGE: without_image(context)}

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        image = tokens.mask(Role.IMAGE)
        if self.alpha == 0.0 or not image.any():
            return
        if context.has_cross_attention:
            raise UnsupportedModelError(
                "CAI compares the image's tokens of the prompt with its text, but this model sees images "
                "through cross-attention"
            )
        first, last = state["layers"] = attention_range(context, self.layers, (28, 31))
        state["rows"] = RowSelection.where(tokens.last() & image.any(1, keepdim=True))
        state["prompt"] = _Prompt.of(image, tokens.after_last_image(), tokens.last())
        context.capture_hidden((0, *range(first, last + 1)))

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        first, last = state.get("layers", (0, -1))
        if not first <= layer <= last:
            return None
        if layer == first or "weights" not in state:
            state["weights"] = self._weights(context)
        weights: Tensor = state["weights"].to(context.device)
        prompt: _Prompt = state["prompt"].to(context.device)
        stream = context.captured_hidden(layer).to(context.device)
        row = prompt.last_of(stream) if step == 0 else stream[:, -1]
        unsure = digits(context.read_logits(row)).to(context.device) > self.threshold
        slope = self.alpha * weights * unsure[:, None]  # a slope of 0 changes nothing
        edit = AttentionEdit(score_slope=slope[:, None])
        return edit.about(state["rows"]) if step == 0 else edit

    def _weights(self, context: Context) -> Tensor:
        """[batch, columns up to the last image token], of this forward; 0 for what is no image."""
        embeddings, state = context.captured_hidden(0).float(), context.state(self)
        prompt: _Prompt = state["prompt"].to(embeddings.device)
        if context.step == 0:
            state["image"] = F.normalize(embeddings[:, prompt.first : prompt.image.shape[1]], dim=-1)
        if context.step == 0 or context.replaying:
            text = prompt.text_of(embeddings)
        else:
            text = embeddings[:, -1]
        found = relevance(state["image"], text, prompt.image[:, prompt.first :])
        return F.pad(found, (prompt.first, 0))

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state = context.state(self)
        if "where" not in state:
            return None
        logits, text_only = context.logits(), context.logits(WITHOUT_IMAGE)
        return guide_logits(logits, text_only, self.gamma, self.beta, state["where"])


def relevance(image: Tensor, text: Tensor, present: Tensor) -> Tensor:
    """w of image tokens, [B, n] in [0.5, 1].

    Args:
        image: [B, n, D] embeddings of length 1. text: [B, D] of any length.
        present: [B, n] bool, what is an image token; others get 0, and none of them is the least.
    """
    similarity = (image @ F.normalize(text, dim=-1)[..., None])[..., 0]
    least = similarity.masked_fill(~present, torch.inf).amin(1, keepdim=True)
    return torch.where(present, torch.sigmoid(_SHARPNESS * (similarity - least)), 0.0)


def digits(logits: Tensor) -> Tensor:
    """Entropy in decimal digits, [..., V] -> [...]: that of ten equally likely tokens is 1."""
    p = logits.float().softmax(-1)
    return -(p * (p + _TINY).log()).sum(-1) / math.log(10.0)


@dataclass(frozen=True, eq=False)
class _Prompt(Placeable):
    """Where the prompt has what.

    Attributes:
        image: [batch, n] bool, image tokens, up to the last one. first: column of the first one.
        text: [batch, L] float, 1 where a token comes after its sample's last image token.
        last: [batch] column of the last token.
    """

    image: Tensor
    text: Tensor
    last: Tensor
    first: int

    @classmethod
    def of(cls, image: Tensor, text: Tensor, last: Tensor) -> _Prompt:
        """From masks [batch, L]: image tokens, the text after them, and the last token."""
        columns = image.any(0).nonzero()
        return cls(image[:, : int(columns[-1]) + 1], text.float(), last.int().argmax(1), int(columns[0]))

    def last_of(self, hidden: Tensor) -> Tensor:
        """[batch, D] of the last tokens of [batch, L, D]."""
        return hidden.gather(1, self.last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]

    def text_of(self, embeddings: Tensor) -> Tensor:
        """[batch, D], the sum over the text of [batch, L, D]: as the mean, but for its length."""
        return (embeddings * self.text[..., None]).sum(1)
