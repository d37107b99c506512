"""PAI: paying more attention to image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from regaze.errors import UnsupportedModelError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.contrastive import WITHOUT_IMAGE, guide_logits, has_image, rows_with_image
from regaze.interventions.controls import PlausibilityCut, UniformColumns
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.interventions.parameters import Fraction
from regaze.kernels import AttentionEdit, RowSelection
from regaze.toolkit.model.branches import without_image
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class PAI(Intervention):
    """Raise the scores of image keys in rows that predict the answer; guide away from the text-only prompt.

    Source: Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination
    in LVLMs" (arXiv:2407.21771). Scores of image keys become s + alpha |s|, in all heads of layers 2 to 31 of
    32 (scaled to other depths), in the rows that predict the answer. Positive scores grow by 1 + alpha,
    negative ones shrink by 1 - alpha; with alpha above 1 a very negative score overtakes a small one.
    Guidance is gamma (l - l_text) + l_text on log-probabilities, where the text-only branch lacks the image
    tokens and the edit; l also decides which tokens are plausible. `gamma = 1` switches guidance and the
    plausibility constraint off. The defaults are those of the release's README; the best alpha depends on the
    model. In models that see images through cross-attention the edit acts there (`gamma` must be 1: second
    contexts are not supported in these).

    With `as_released=True` (`LALBJ/PAI`) the prefill is not edited when guidance is on: the first token comes
    from unedited attention. Prompts without an image are left unchanged.
    """

    name: ClassVar[str] = "pai"
    summary: ClassVar[str] = "raise the scores of image keys and guide away from the text-only prompt"
    source: ClassVar[str] = "arXiv:2407.21771"
    edits: ClassVar[str] = "scores of the last row before the softmax, and logits, at every step"
    cost: ClassVar[str] = "two rows per prompt in one forward (one with gamma=1), with the cache of both"
    facts: ClassVar[Facts] = Facts(edits=("scores", "logits"), cost="two rows", needs=("second context",))
    release: ClassVar[str] = (
        "LALBJ/PAI, MIT. With guidance on, the first token is not edited (as_released=True does so), and "
        "--use-cfg with gamma=1 never edits anything; one image span for the whole batch; no grouped-query "
        "attention. Here rows have their own image tokens, and any GQA ratio works."
    )
    fixed_edits = True

    alpha: NonNegativeFloat = field(
        default=0.2, metadata={"help": "slope of the scores of image keys in their size (0: no edit)"}
    )
    gamma: Annotated[float, Field(ge=1.0)] = field(
        default=1.1, metadata={"help": "strength of the guidance (1: none)"}
    )
    beta: Fraction = field(
        default=0.1, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )
    layers: LayerRange | None = field(
        default=None,
        metadata={"help": "first and last edited layer; default: 2 to 31 of 32, scaled to the depth"},
    )
    as_released: bool = field(
        default=False, metadata={"help": "leave the first token unedited under guidance, as the code does"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain" if self.gamma == 1.0 else ""

    @property
    def inactive(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"branches", "combine_logits"}) if self.gamma == 1.0 else frozenset()

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0 and self.gamma == 1.0

    def controls(self) -> Sequence[Method]:
        cut = (PlausibilityCut(self.beta),) if self.gamma != 1.0 and self.beta else ()
        return (*((UniformColumns(self),) if self.alpha else ()), *cut)

    def branches(self, context: Context) -> Mapping[str, Branch]:
        if context.has_cross_attention and self.gamma != 1.0:
            raise UnsupportedModelError(
                "PAI's guidance runs the prompt without its image tokens, but this model sees images through "
                "cross-attention layers: set gamma=1"
            )
        if self.gamma == 1.0 or not has_image(context).any():
            return {}
        context.state(self)["where"] = rows_with_image(context)
        return {WITHOUT_IMAGE: without_image(context)}

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        image = tokens.mask(Role.IMAGE)
        if self.alpha == 0.0 or not image.any():
            return
        state["layers"] = attention_range(context, self.layers, (2, 31))
        rows = RowSelection.where(tokens.answering() & image.any(1, keepdim=True))
        state["edits"] = self._edits(image, rows)

    def _edits(self, image: Tensor, rows: RowSelection) -> tuple[AttentionEdit, AttentionEdit]:
        """Those of the prompt and of the answer, for keys of which `image` [B, n] are of an image."""
        answer = AttentionEdit(score_slope=self.alpha * image.float()[:, None])
        return answer.about(rows), answer

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        first, last = state.get("layers", (0, -1))
        first_token = step == 0 or context.replaying
        if not first <= layer <= last or (first_token and self.as_released and self.gamma != 1.0):
            return None
        return state["edits"][min(step, 1)]

    def edit_cross(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        """Cross-attention keys of an image are edited like image keys of self-attention."""
        state = context.state(self)
        if self.alpha == 0.0:
            return None
        if "cross" not in state:  # the keys of these layers are known when the first one runs
            layers = attention_range(context, self.layers, (2, 31))
            rows = RowSelection.where(context.tokens.answering())
            state["cross"] = layers, self._edits(context.cross_tokens.mask(Role.IMAGE), rows)
        (first, last), edits = state["cross"]
        return edits[min(step, 1)] if first <= layer <= last else None

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state = context.state(self)
        if "where" not in state:
            return None
        logits, text_only = context.logits(), context.logits(WITHOUT_IMAGE)
        return guide_logits(logits, text_only, self.gamma, self.beta, state["where"])
