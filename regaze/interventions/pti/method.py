"""PTI: prefill-time intervention, along directions fitted once per model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.interventions.facts import Facts
from regaze.interventions.fitting import FittedIntervention
from regaze.interventions.layer_ranges import require_attention
from regaze.interventions.pti.fit import PTIFit
from regaze.kernels import AttentionEdit, KeyValueShift, RowSelection
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class PTI(FittedIntervention):
    """Add directions to the keys and values of the image's tokens and of the prompt's last one, once.

    Source: Zhang et al., "Prefill-Time Intervention for Mitigating Hallucination in Large Vision-Language
    Models" (arXiv:2604.25642), by notes that quote its equations, and by facts about the release. From these:
    K += lambda S in the cache that the prompt leaves, in every layer, with directions of their own for keys
    and values and for image and text; all image tokens and the last text token; the fit (`PTIFit`); the
    strengths, which are those of the release's README. Later steps are not edited.

    Ours, where the notes leave it open: the row that predicts the first token sees the edited cache, and so
    does every later one, while the rows before it are those of the plain prompt; the last text token is the
    prompt's last token of all; prompts without an image are left alone.

    With `as_released=True` (`huaiyi66/PTI`) a key or value x becomes, in each head,
    |x| unit(x / |x| + lambda (1 + max(0, -cos(x, S))) unit(S)), so that lengths stay and a strength is a
    share of them; and the text token is the last but one, because the last one runs over the edited cache.
    The strengths were found for that form: added, they are factors of S.
    """

    name: ClassVar[str] = "pti"
    summary: ClassVar[str] = "add fitted directions to keys and values of image and prompt, once, at prefill"
    source: ClassVar[str] = "arXiv:2604.25642"
    edits: ClassVar[str] = "keys and values of image tokens and of the prompt's last one, at its end"
    cost: ClassVar[str] = "one forward; fitted once per model with four forwards per image"
    facts: ClassVar[Facts] = Facts(
        edits=("keys", "values"), when=("prompt",), cost="one forward", needs=("fit",)
    )
    release: ClassVar[str] = (
        "huaiyi66/PTI, no licence. Vectors turn keys and values and are not added (as_released=True); they "
        "become fp16; image columns are fixed per model; the strengths are the same for image and text. "
        "Directions for three models come with it as files of their own kind."
    )
    fit: ClassVar[type[PTIFit]] = PTIFit
    fixed_edits = True

    image_keys: NonNegativeFloat = field(
        default=0.1, metadata={"help": "lambda of the image tokens' keys (0: none)"}
    )
    image_values: NonNegativeFloat = field(
        default=0.6, metadata={"help": "lambda of the image tokens' values (0: none)"}
    )
    text_keys: NonNegativeFloat = field(
        default=0.1, metadata={"help": "lambda of the last token's key (0: none)"}
    )
    text_values: NonNegativeFloat = field(
        default=0.6, metadata={"help": "lambda of the last token's value (0: none)"}
    )
    as_released: bool = field(
        default=False, metadata={"help": "turn keys and values, and those of the last token but one"}
    )

    @property
    def is_identity(self) -> bool:
        return not any((self.image_keys, self.image_values, self.text_keys, self.text_values))

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        self.checked(context)
        tokens, state = context.tokens, context.state(self)
        image = tokens.mask(Role.IMAGE)
        shows = image.any(1, keepdim=True)
        if not shows.any():
            return
        require_attention(context, range(context.num_layers))
        text = tokens.answering() & ~tokens.mask(Role.OUTPUT)  # the prompt's last token
        if self.as_released:
            text = text.roll(-1, 1)
        state["groups"] = image.long() + 2 * (text & shows & ~image)
        state["rows"] = RowSelection.where(tokens.answering() & shows)
        state["edits"] = {}

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        if "groups" not in state or (step and not context.replaying):
            return None
        edits: dict[tuple[int, bool], AttentionEdit] = state["edits"]
        place = layer, context.replaying
        if place not in edits:
            edits[place] = AttentionEdit(shifts=(self._shift(layer, context),))
        return edits[place]

    def _shift(self, layer: int, context: Context) -> KeyValueShift:
        state = context.state(self)
        keys = self._vectors(layer, "keys", self.image_keys, self.text_keys)
        values = self._vectors(layer, "values", self.image_values, self.text_values)
        rows = None if context.replaying else state["rows"]
        return KeyValueShift(state["groups"], keys, values, "turn" if self.as_released else "add", rows)

    def _vectors(self, layer: int, kind: str, image: float, text: float) -> Tensor | None:
        """[2, Hkv, D], of image and text."""
        if not image and not text:
            return None
        pairs = (("image", image), ("text", text))
        found = [(self.given()[f"{modality}_{kind}"][layer], strength) for modality, strength in pairs]
        if self.as_released:
            found = [(F.normalize(direction, dim=-1), strength) for direction, strength in found]
        return torch.stack([strength * direction for direction, strength in found])
