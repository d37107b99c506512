"""`answer_page`: ask a question, and build the page of the attention while the model answers it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from regaze.errors import BadParameterError, RegazeError, UnsupportedModelError
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.teacher_forcing import TeacherForcing
from regaze.toolkit.prompts.images import ImageLike, is_image, open_image
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.trace import Trace
from regaze.toolkit.viewer.page import PAGE_BYTES, Page, Variant, build_page, label
from regaze.toolkit.wrap import Gaze

#: How many rows of the prompt, counted from its end, are recorded at most by default.
MAX_ROWS = 64
#: Bytes of recorded weights in memory at once; where all layers need more, they are recorded in groups.
_RECORD_BYTES = 1 << 30


def answer_page(
    gaze: Gaze,
    images: ImageLike | Sequence[ImageLike] | None,
    question: str,
    *interventions: Callback,
    layers: Sequence[int] | None = None,
    rows: int | None = None,
    max_new_tokens: int = 32,
    title: str | None = None,
    model: str | None = None,
    limit: int = PAGE_BYTES,
) -> Page:
    """A page of where the model attends while it answers, greedily.

    With interventions the answer is the edited model's, and the plain model is forced to the same tokens: the
    difference on the page is between the same rows of the same sequence. The weights are those that the model
    used, after the edit.

    Args:
        images: of the question; one, several, or None.
        interventions: as for `gaze.using`; without any the page shows the plain model alone.
        layers: their numbers; None: all.
        rows: how many of the prompt's last tokens have their rows on the page, beside those of the answer.
            None: the question and all that follows it, at most 64. Every row costs memory and bytes.
        max_new_tokens: longest answer.
        title, model, limit: as for `build_page`; by default the question and the model's own name.

    Raises:
        UnsupportedModelError: an encoder-decoder.
        RecordingError, BadParameterError, InputError: as `gaze.recording`, `build_page` and `gaze.inputs`.
    """
    if gaze.model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(gaze.model).__name__} has an encoder and a decoder; pages are of models that read "
            "question and answer as one text"
        )
    several = [images] if images is None or is_image(images) else images
    opened = [open_image(image) for image in several if image is not None]
    prompt = _Prompt(gaze, gaze.inputs([opened], [question]))
    layers = sorted(_self_attention_layers(gaze) if layers is None else set(layers))
    if not layers:
        raise BadParameterError("layers: expected at least one")
    plain = prompt.answer((), max_new_tokens)
    variants, answer = [Variant("plain", answer=prompt.text(plain))], plain
    if interventions:
        answer = prompt.answer(interventions, max_new_tokens)
        variants.append(Variant(*label(_as_json(interventions)), answer=prompt.text(answer)))
    return build_page(
        prompt.traces(answer, interventions, layers, prompt.rows(rows)),
        layers,
        variants=variants,
        images=_seen_images(gaze, opened) if opened else None,
        title=title or " ".join(question.split())[:200],
        model=model or Path(compat.model_name(gaze.model)).name or gaze.model.config.model_type,
        limit=limit,
    )


@dataclass(frozen=True)
class _Prompt:
    """One prompt of a wrapped model."""

    gaze: Gaze
    inputs: Any

    @property
    def length(self) -> int:
        return int(self.inputs["input_ids"].shape[1])

    def answer(self, interventions: Sequence[Callback], max_new_tokens: int) -> Tensor:
        """The tokens of the greedy answer, [1, T]."""
        with self.gaze.using(*interventions):
            return self._generate(max_new_tokens=max_new_tokens)

    def text(self, answer: Tensor) -> str:
        return self.gaze.reader.decode(answer)[0].strip()

    def rows(self, count: int | None) -> int:
        """How many of the last tokens to record: `count`, or by default those from the question on."""
        if count is not None:
            return max(1, min(count, self.length))
        if self._has_roles:
            question = self.gaze.tokens(self.inputs).columns(Role.QUERY)
            if len(question):
                return min(MAX_ROWS, self.length - int(question[0]))
        return min(MAX_ROWS, self.length)

    def traces(
        self, answer: Tensor, interventions: Sequence[Callback], layers: Sequence[int], rows: int
    ) -> Iterator[list[Trace]]:
        """The groups of `build_page`: traces of the plain model, and of the edited one if there is one."""
        variants: list[Sequence[Callback]] = [(), interventions] if interventions else [()]
        tokens, heads = answer.shape[1], compat.text_config(self.gaze.model).num_attention_heads
        layer_bytes = 4 * heads * (self.length + tokens) * (rows + tokens) * len(variants)
        together = max(1, _RECORD_BYTES // layer_bytes)
        for start in range(0, len(layers), together):
            group = layers[start : start + together]
            yield [self._trace(answer, active, layers=group, rows=rows) for active in variants]

    def _trace(self, answer: Tensor, interventions: Sequence[Callback], **options: Any) -> Trace:
        """The trace of a generation that is forced to `answer` [1, T]."""
        forced = LogitsProcessorList([TeacherForcing(answer, self.length)])
        options |= {"slices": "all", "masses": self._has_roles, "edited": bool(interventions)}
        with self.gaze.using(*interventions), self.gaze.recording(**options) as record:
            self._generate(max_new_tokens=answer.shape[1], logits_processor=forced, eos_token_id=None)
            self.gaze.record_answer(answer)
        return record[0]

    def _generate(self, **options: Any) -> Tensor:
        options |= {"do_sample": False, "num_beams": 1}
        with torch.inference_mode():
            ids: Tensor = self.gaze.model.generate(
                **self.inputs, pad_token_id=self.gaze.reader.tokenizer.pad_token_id, **options
            )
        return ids[:, self.length :]

    @property
    def _has_roles(self) -> bool:
        """Whether the roles of the tokens can be read."""
        try:
            self.gaze.tokens(self.inputs)
        except RegazeError:
            return False
        return True


def _self_attention_layers(gaze: Gaze) -> set[int]:
    """The layers with self-attention: some models have others between them."""
    return {place.layer for place in compat.attention_modules(gaze.model).values() if not place.cross}


def _seen_images(gaze: Gaze, images: Sequence[Any]) -> list[Any] | None:
    """The images as the model receives them; None where that cannot be drawn."""
    try:
        return [gaze.seen(image) for image in images]
    except RegazeError:
        return None


def _as_json(interventions: Sequence[Callback]) -> list[dict[str, Any]]:
    return [
        each.to_dict() if hasattr(each, "to_dict") else {"method": type(each).__name__}
        for each in interventions
    ]
