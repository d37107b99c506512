"""MMA: modality-mutual attention."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from regaze.interventions.base import Intervention
from regaze.kernels import AttentionEdit, UnmaskRect
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role, TokenMap


@dataclass(frozen=True)
class MMA(Intervention):
    """Let image rows look at the question that follows them; everything else stays causal.

    Source: Wang et al., "Seeing is Understanding: Unlocking Causal Attention into Modality-Mutual Attention
    for Multimodal LLMs" (AKI, arXiv:2503.02597). Key j is visible to row i iff j <= i, or i is an image token
    and j a token of the question. Image rows see other image tokens causally, as before, and never the
    answer. Only the prefill differs: rows of the answer are causal anyway.

    Which text an image sees: everything after it up to the end of the question, separators and text between
    images included, later images not. Of a conversation only one turn is opened, the first one with an image:
    opening a later question to these images would show it to the answers in between. A sample without an
    image, or without text after it, keeps its causal mask.

    With `as_released=True` the opened text also contains the end of the user's turn and the assistant header
    (`Role.TAIL`), as in the release (`sony/aki`), whose block ends with the assistant marker. Not reproduced
    are its defects: several images per sample raise, left-padded batches get misplaced masks.

    The published gain comes from fine-tuning with this mask (`regaze.interventions.mma.training`). A causal
    model has never seen it, image rows meet keys at negative distances, and so using it untrained warns.
    Image and question must be prefilled in one forward, and image states now depend on the question: an image
    prefix may not be cached and shared between questions.
    """

    name: ClassVar[str] = "mma"
    summary: ClassVar[str] = "let image tokens look at the question (for models trained with this mask)"
    source: ClassVar[str] = "arXiv:2503.02597"
    edits: ClassVar[str] = "the mask, at prefill: image rows see the question's columns"
    cost: ClassVar[str] = "one forward; the opened rows of the prefill are computed apart"
    release: ClassVar[str] = (
        "sony/aki, CC BY-NC 4.0. The opened text ends with the assistant marker (as_released=True); several "
        "images per sample raise, left-padded batches get misplaced masks. Here both work."
    )

    as_released: bool = field(
        default=False, metadata={"help": "open the assistant header, too, as the released code does"}
    )
    trained: bool = field(
        default=False, metadata={"help": "the model was trained with this mask: do not warn"}
    )

    def prepare(self, context: Context) -> None:
        rows, columns = mutual(context.tokens, self.as_released)
        if not (rows.any(1) & columns.any(1)).any():
            return
        if not self.trained:
            warnings.warn(
                "MMA changes the mask that the model was trained with; the published gain "
                "comes from fine-tuning with it, and a causal model may well get worse. Pass trained=True "
                "for a model that was trained with this mask.",
                stacklevel=2,
            )
        context.state(self)["opened"] = rows, columns

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state, device = context.state(self), context.device
        if step > 0 or "opened" not in state:
            return None
        if device not in state:
            opening = UnmaskRect(*(part.to(device) for part in state["opened"]))
            state[device] = AttentionEdit(unmask=(opening,))
        return state[device]


def mutual(tokens: TokenMap, as_released: bool = False) -> tuple[Tensor, Tensor]:
    """Image rows, and the text after the first image up to the end of that turn's question: [B, L] bool each.

    Every row may look at every column of its sample. One such rectangle serves several images: what lies
    before an image is visible to it in any case.
    """
    ends = (Role.OUTPUT,) if as_released else (Role.TAIL, Role.OUTPUT)
    text = (Role.SEPARATOR, Role.QUERY, Role.TAIL) if as_released else (Role.SEPARATOR, Role.QUERY)
    after_image = tokens.after_image()
    ended = (after_image & tokens.mask(*ends)).cumsum(1).bool()
    return tokens.mask(Role.IMAGE), after_image & tokens.mask(*text) & ~ended
