"""MMA: modality-mutual attention."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from regaze.interventions.base import Intervention
from regaze.interventions.facts import Facts
from regaze.kernels import AttentionEdit, UnmaskRect
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role, TokenMap


@dataclass(frozen=True)
class MMA(Intervention):
    """Let image tokens attend to the question after them; everything else stays causal.

    Source: Wang et al., "Seeing is Understanding: Unlocking Causal Attention into Modality-Mutual Attention
    for Multimodal LLMs" (AKI, arXiv:2503.02597). Key j is visible to row i iff j <= i, or i is an image token
    and j a token of the question. Image rows see other image tokens causally, as before, and never the
    answer. Only the prefill differs: rows of the answer are causal anyway.

    An image sees all text after it up to the end of the question, including separators and text between
    images, but no later images. Only one turn of a conversation is unmasked, the first one with an image: a
    later question visible to these images would be visible to the answers in between. A sample without an
    image, or without text after it, keeps its causal mask.

    With `as_released=True` the unmasked text also contains the end of the user's turn and the assistant
    header (`Role.TAIL`), as in the release (`sony/aki`), whose block ends with the assistant marker. Its
    defects are not reproduced: several images per sample raise, left-padded batches get misplaced masks.

    The published gain comes from fine-tuning with this mask (`regaze.interventions.mma.training`). A causal
    model was never trained with it, and image rows meet keys at negative distances; using it untrained
    therefore warns. Image and question must be prefilled in one forward, and image states depend on the
    question: an image prefix cannot be cached and shared between questions.

    It has no control of its own: what it is to be compared with is a model trained without this mask.
    """

    name: ClassVar[str] = "mma"
    summary: ClassVar[str] = "let image tokens attend to the question (for models trained with this mask)"
    source: ClassVar[str] = "arXiv:2503.02597"
    edits: ClassVar[str] = "the mask, at prefill: image rows see the question's columns"
    cost: ClassVar[str] = "one forward; the unmasked rows of the prefill are computed separately"
    facts: ClassVar[Facts] = Facts(
        edits=("mask",), when=("prompt",), cost="one forward", needs=("trained model", "whole prompt")
    )
    release: ClassVar[str] = (
        "sony/aki, CC BY-NC 4.0. The unmasked text ends with the assistant marker (as_released=True); "
        "several images per sample raise, left-padded batches get misplaced masks. Here both work."
    )
    prompt_needs: ClassVar[str | None] = "whole"
    fixed_edits = True

    as_released: bool = field(
        default=False, metadata={"help": "also unmask the assistant header, as the released code does"}
    )
    trained: bool = field(
        default=False, metadata={"help": "the model was trained with this mask: no warning"}
    )

    def prepare(self, context: Context) -> None:
        rows, columns = mutual_rectangle(context.tokens, self.as_released)
        if not (rows.any(1) & columns.any(1)).any():
            return
        if not self.trained:
            warnings.warn(
                "MMA changes the mask that the model was trained with; the published gain "
                "comes from fine-tuning with it, and a causal model may well get worse. Pass trained=True "
                "for a model that was trained with this mask.",
                stacklevel=2,
            )
        context.state(self)["edit"] = AttentionEdit(unmask=(UnmaskRect(rows, columns),))

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return context.state(self).get("edit") if step == 0 else None


def mutual_rectangle(tokens: TokenMap, as_released: bool = False) -> tuple[Tensor, Tensor]:
    """Image rows, and the text after the first image up to the end of that turn's question: [B, L] bool each.

    Every row may attend to every column of its sample. One rectangle serves several images, because an image
    sees everything before it in any case.
    """
    ends = (Role.OUTPUT,) if as_released else (Role.TAIL, Role.OUTPUT)
    text = (Role.SEPARATOR, Role.QUERY, Role.TAIL) if as_released else (Role.SEPARATOR, Role.QUERY)
    after_image = tokens.after_image()
    ended = (after_image & tokens.mask(*ends)).cumsum(1).bool()
    return tokens.mask(Role.IMAGE), after_image & tokens.mask(*text) & ~ended
