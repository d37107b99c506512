"""GIFT: gaze-shift guided cross-modal fusion enhancement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.common.ranking import half_of_heads, saliency_map
from regaze.interventions.controls import UniformColumns
from regaze.interventions.facts import Facts
from regaze.interventions.gift.gaze_shift import RowShifts, mean_shift
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.interventions.layer_ranges import LayerRange, attention_range, require_attention, resolve_range
from regaze.kernels import AttentionEdit, Channels, RowSelection, Stats
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import scatter_columns
from regaze.toolkit.prompts.content_words import content_tokens, find_tagger
from regaze.toolkit.prompts.token_map import Role

#: Channels of a row: everything else, image, question; then the weights of the image's tokens.
_IMAGE, _QUERY, _SALIENT = 1, 2, 3


SaliencyLayer = Annotated[
    NonNegativeInt | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | Literal["auto"] | None,
    Field(description='a layer (11), several ((10, 11)), "auto" or None'),
]


class Published(NamedTuple):
    """The authors' settings for one model; layers are 0-based."""

    saliency_layer: int
    layers: LayerRange
    alpha: float


#: By type and depth of the language model: LLaVA-1.5-13B, Qwen2-VL-7B. LLaVA-1.5-7B is scaled to others.
PUBLISHED = {
    ("llama", 40): Published(10, (14, 20), 5.0),
    ("qwen2_vl_text", 28): Published(14, (5, 18), 4.0),
}
_LLAVA_7B, _LLAVA_7B_DEPTH = Published(11, (12, 22), 5.0), 32


def published(model_type: str, num_layers: int) -> Published:
    """The authors' settings for a language model, or those of LLaVA-1.5-7B scaled to its depth."""
    if (model_type, num_layers) in PUBLISHED:
        return PUBLISHED[model_type, num_layers]
    layers = resolve_range(None, _LLAVA_7B.layers, _LLAVA_7B_DEPTH, num_layers)
    return Published(max(0, layers[0] - 1), layers, _LLAVA_7B.alpha)


@dataclass(frozen=True)
class GIFT(Intervention):
    """Attend more to the image tokens that the question drew attention to, and to the question in proportion.

    Source: Qi et al., "Capturing Gaze Shifts for Guidance: Cross-Modal Fusion Enhancement for VLM
    Hallucination Mitigation" (arXiv:2510.22067).

    At prefill, the saliency of an image token is the mean *increase* of attention on it from one token to the
    next, over the question's content words and, in the saliency layer, the half of the heads with most
    increase; clipped at 3 standard deviations and scaled to S in [0, 1]. Then, in `layers` and in each row
    that predicts a token, the half of the heads with most attention on the image have it multiplied by
    exp(alpha S). The factor by which those heads' image attention grew, times beta, multiplies the attention
    on the question in the half of the heads with most attention on it. Rows are renormalised.

    The saliency is measured in the prefill of the generation; where enhanced layers come before or at the
    saliency layer, the last row of the prompt runs once more (`Context.replay`). Without content words all
    words of the question count; where the map is flat nothing is enhanced; several images are one set of
    tokens. With `as_released=True` (`amazon-science/GIFT`) only a repeated word's last occurrence counts.
    """

    name: ClassVar[str] = "gift"
    summary: ClassVar[str] = (
        "boost image tokens that the question drew attention to, and the question with them"
    )
    source: ClassVar[str] = "arXiv:2510.22067"
    edits: ClassVar[str] = "attention weights of the rows that predict the answer, in a range of layers"
    cost: ClassVar[str] = (
        "one forward; in the saliency layer the rows of the question's content words at the image's columns; "
        "one more step at prefill where enhanced layers do not all come after that layer"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("weights",), cost="one forward", needs=("all heads", "whole prompt")
    )
    release: ClassVar[str] = (
        "amazon-science/GIFT, CC BY-NC 4.0. A second prefill for the saliency; only the last occurrence of a "
        "repeated word (as_released=True); NaN without content words or for a flat map; text between two "
        "images is treated as image; no beta; batches of one."
    )
    prompt_needs: ClassVar[str | None] = "rows"
    fixed_edits = True

    alpha: NonNegativeFloat | None = field(
        default=None, metadata={"help": "strength: the most salient token is boosted by exp(alpha) (0: none)"}
    )
    beta: PositiveFloat = field(default=1.0, metadata={"help": "extra factor of the question's attention"})
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last enhanced layer; default: the paper's, scaled"}
    )
    saliency_layer: SaliencyLayer = field(
        default=None,
        metadata={
            "help": 'where shifts are measured; "auto": where a prompt has most (see find_saliency_layer)'
        },
    )
    tagger: str = field(
        default="auto", metadata={"help": 'finds content words: "spacy", "function-words" or "auto"'}
    )
    as_released: bool = field(
        default=False, metadata={"help": "count only the last occurrence of a repeated word"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tagger != "auto":  # the one that is always there
            find_tagger(self.tagger)

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0 and self.beta == 1.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (UniformColumns(self),)

    def prepare(self, context: Context) -> None:
        state, tokens = context.state(self), context.tokens
        image = tokens.mask(Role.IMAGE)
        has_image = image.any(1, keepdim=True)  # samples without an image are left unchanged
        if self.is_identity or not image.any():
            state["off"] = True
            return
        default = published(getattr(context.config, "model_type", ""), context.num_layers)
        state["layers"] = attention_range(context, self.layers, default.layers, context.num_layers)
        state["alpha"] = default.alpha if self.alpha is None else self.alpha
        state["measured"] = self._measured(default, context)
        state["replay"] = state["layers"][0] <= max(state["measured"])
        state["shifts"] = RowShifts.of(self.content_tokens(context), image)
        state["rows"] = RowSelection.where(tokens.answering() & has_image)
        if state["replay"] and tokens.mask(Role.OUTPUT).any():
            raise InputError(
                "the prompt ends with a part of the answer, but with a saliency layer after enhanced ones "
                "only the last row can be edited; choose a saliency_layer before `layers`"
            )
        if state["replay"]:
            context.replay_last_row()
        state["groups"] = (_IMAGE * image + _QUERY * (tokens.mask(Role.QUERY) & has_image)).to(torch.uint8)

    def _measured(self, default: Published, context: Context) -> tuple[int, ...]:
        """The layers whose shifts are measured."""
        num_layers = context.num_layers
        if self.saliency_layer == "auto":
            return tuple(range(num_layers))
        chosen = default.saliency_layer if self.saliency_layer is None else self.saliency_layer
        layers = chosen if isinstance(chosen, tuple) else (chosen,)
        if max(layers) >= num_layers:
            raise BadParameterError(
                f"saliency_layer {chosen} does not exist: the model has layers 0..{num_layers - 1}"
            )
        require_attention(context, layers)
        return layers

    def content_tokens(self, context: Context) -> Tensor:
        """[B, L] bool, tokens of the questions' content words, or all tokens of a question without any."""
        tokenizer = context.reader.tokenizer
        return content_tokens(context.tokens, context.input_ids, tokenizer, self.tagger, self.as_released)

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        if "off" in state:
            return None
        first, last = state["layers"]
        if step == 0:
            if layer in state["measured"]:
                return state["shifts"].request.as_edit
            if state["replay"]:
                return None
        return state["edits"][min(step, 1)] if "edits" in state and first <= layer <= last else None

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        state = context.state(self)
        assert stats.slices is not None
        shifts: RowShifts = state["shifts"].to(stats.slices.device)
        mean, total = mean_shift(
            shifts.positive(stats.slices), shifts.counts, half_of_heads(context.num_heads)
        )
        if self.saliency_layer == "auto":
            known, most = state.get("mean", mean), state.get("most", total)
            state["mean"] = torch.where((total > most.to(total.device))[:, None], mean, known.to(mean.device))
            state["most"] = torch.maximum(total, most.to(total.device))
        else:
            state["mean"] = mean + state["mean"].to(mean.device) if "mean" in state else mean
        if layer != max(state["measured"]):
            return
        gains = torch.exp(state["alpha"] * saliency_map(state["mean"], shifts.index >= 0))
        weights = scatter_columns(gains, shifts.index, context.prompt_length, 0.0)
        channels = Channels(state["groups"], num_groups=3, weights=weights[None])
        policy = AmplifyTopHeads(4, _IMAGE, _QUERY, _SALIENT, half_of_heads(context.num_heads), self.beta)
        answer = AttentionEdit(channels=channels, policy=policy)
        state["edits"] = answer.about(state["rows"]), answer
