"""`look`: ask a question, and see on a page where the model looked, plain and under interventions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from regaze.errors import BadParameterError, RegazeError, UnsupportedModelError
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.teacher_forcing import TeacherForcing
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Trace
from regaze.toolkit.viewer.page import LIMIT, Page, Variant, build, describe
from regaze.toolkit.wrap import Gaze

#: Rows of the prompt that are recorded unless the caller says otherwise, counted from its end.
ROWS = 64
#: Bytes of recorded weights that are held at once; a layer at a time is recorded where all need more.
_HELD = 1 << 30


def look(
    gaze: Gaze,
    images: ImageLike | Sequence[ImageLike] | None,
    question: str,
    *interventions: Callback,
    layers: Sequence[int] | None = None,
    rows: int | None = None,
    max_new_tokens: int = 32,
    title: str | None = None,
    model: str | None = None,
    limit: int = LIMIT,
) -> Page:
    """A page of where the model looks as it answers, greedily.

    With interventions the answer is the edited model's, and the plain model is made to say the same tokens:
    the page's difference is of the same rows of the same sequence. What is shown is attention as the model
    acts on it, after the edit.

    Args:
        images: of the question; one, several, or None.
        interventions: as for `gaze.using`; none shows the plain model alone.
        layers: those shown; None: all.
        rows: tokens at the prompt's end whose rows are shown, beside those of the answer. None: the question
            and all that follows it, at most 64. Every row costs memory and room on the page.
        max_new_tokens: longest answer.
        title, model, limit: as for `build`; the model's own name and the question are the defaults.

    Raises:
        UnsupportedModelError: an encoder-decoder.
        RecordingError, BadParameterError, InputError: as `gaze.recording`, `build` and `gaze.inputs`.
    """
    if gaze.model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(gaze.model).__name__} has an encoder and a decoder; pages are of models that read "
            "question and answer as one text"
        )
    given = [images] if images is None or isinstance(images, ImageLike) else images
    entry = [open_image(image) for image in given if image is not None]
    inputs = gaze.inputs([entry], [question])
    length = inputs["input_ids"].shape[1]
    layers = sorted(_layers(gaze) if layers is None else set(layers))
    if not layers:
        raise BadParameterError("layers: expected at least one")
    count = _question(gaze, inputs) if rows is None else max(1, min(rows, length))
    with gaze.using(*interventions):
        answer = _generate(gaze, inputs, max_new_tokens=max_new_tokens)
    variants = [Variant("plain", answer=_text(gaze, answer))]
    if interventions:
        variants = [
            Variant("plain", answer=_text(gaze, _generate(gaze, inputs, max_new_tokens=max_new_tokens))),
            Variant(*_named(interventions), answer=_text(gaze, answer)),
        ]

    def groups() -> Iterator[list[Trace]]:
        held = 4 * compat.text_config(gaze.model).num_attention_heads * (length + answer.shape[1])
        together = max(1, _HELD // (held * (count + answer.shape[1]) * len(variants)))
        for start in range(0, len(layers), together):
            wanted: dict[str, Any] = {"layers": layers[start : start + together], "rows": count}
            traces = [_forced(gaze, inputs, answer, (), wanted)]
            if interventions:
                traces.append(_forced(gaze, inputs, answer, interventions, wanted))
            yield traces

    return build(
        groups(),
        layers,
        variants=variants,
        images=_seen(gaze, entry) if entry else None,
        title=title or " ".join(question.split())[:200],
        model=model or Path(compat.model_name(gaze.model)).name or gaze.model.config.model_type,
        limit=limit,
    )


def _forced(
    gaze: Gaze, inputs: Any, answer: Tensor, interventions: Sequence[Callback], wanted: dict[str, Any]
) -> Trace:
    """The trace of a generation that is made to say `answer` [1, T]."""
    forced = LogitsProcessorList([TeacherForcing(answer, inputs["input_ids"].shape[1])])
    wanted = {**wanted, "slices": "all", "masses": _has_roles(gaze, inputs), "edited": bool(interventions)}
    with gaze.using(*interventions), gaze.recording(**wanted) as record:
        _generate(gaze, inputs, max_new_tokens=answer.shape[1], logits_processor=forced, eos_token_id=None)
        gaze.record_answer(answer)
    trace: Trace = record[0]
    return trace


def _generate(gaze: Gaze, inputs: Any, **options: Any) -> Tensor:
    """The greedy answer's tokens, [1, T]."""
    pad = gaze.reader.tokenizer.pad_token_id
    with torch.inference_mode():
        ids: Tensor = gaze.model.generate(  # type: ignore[operator]
            **inputs, do_sample=False, num_beams=1, pad_token_id=pad, **options
        )
    return ids[:, inputs["input_ids"].shape[1] :]


def _text(gaze: Gaze, ids: Tensor) -> str:
    return str(gaze.reader.tokenizer.batch_decode(ids, skip_special_tokens=True)[0]).strip()


def _layers(gaze: Gaze) -> set[int]:
    """The layers with self-attention: some models have others between them."""
    return {place.layer for place in compat.attention_modules(gaze.model).values() if not place.cross}


def _has_roles(gaze: Gaze, inputs: Any) -> bool:
    try:
        gaze.tokens(inputs)
    except RegazeError:
        return False
    return True


def _question(gaze: Gaze, inputs: Any) -> int:
    """Tokens from the question's first one to the prompt's end, at most ROWS."""
    length = inputs["input_ids"].shape[1]
    if not _has_roles(gaze, inputs):
        return min(ROWS, length)
    places = gaze.tokens(inputs).columns(Role.QUERY)
    return min(ROWS, length - int(places[0])) if len(places) else min(ROWS, length)


def _seen(gaze: Gaze, images: Sequence[Any]) -> list[Any]:
    """The images as the model receives them; as they are where a processor cuts them into tiles."""
    try:
        return [gaze.seen(image) for image in images]
    except (RegazeError, KeyError):  # pixels in another layout, or under another name
        return list(images)


def _named(interventions: Sequence[Callback]) -> tuple[str, str]:
    """Names and parameters of interventions, for people."""
    return describe(
        [
            each.to_dict() if hasattr(each, "to_dict") else {"method": type(each).__name__}
            for each in interventions
        ]
    )
