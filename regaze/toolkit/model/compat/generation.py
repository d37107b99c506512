"""`generate`: its inputs before they are encoded, its pixels, and media for several sequences per prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList

from regaze.toolkit.model.compat.beam_media import repeated_media

_ENCODES = "_maybe_prepare_encoder_kwargs_for_generation"
_EXPANDS, _TAKES_FEATURES = "_expand_inputs_for_generation", "_supports_mm_encoder_outputs"
_STOPS, _BEAMS_GO_ON = "_get_stopping_criteria", "_beam_search_has_unfinished_sequences"
_REPLACED: tuple[str, ...] = (_ENCODES, _EXPANDS, _TAKES_FEATURES, _STOPS, _BEAMS_GO_ON)

if not hasattr(GenerationMixin, _TAKES_FEATURES) and hasattr(
    GenerationMixin, "_prepare_encoder_decoder_kwargs_for_generation"
):  # 5.17, which encodes for encoder-decoders only
    _ENCODES = "_prepare_encoder_decoder_kwargs_for_generation"
    _REPLACED = (_ENCODES, _EXPANDS, _STOPS, _BEAMS_GO_ON)


def missing_generation_methods() -> list[str]:
    """The methods of `generate` that regaze replaces in a model and that this transformers does not have.

    Replacing one that is called no more would do nothing, without an error.
    """
    return [name for name in _REPLACED if not hasattr(GenerationMixin, name)]


def on_generate(model: PreTrainedModel, note: Callable[[Mapping[str, Any]], None] | None) -> None:
    """Call `note` with the inputs of `generate` before they are encoded and repeated for beams; None: stop.

    transformers 5.23 removes what the image encoder was given (sizes, grids) from the arguments of the
    forward; 5.17 does not.
    """
    model.__dict__.pop(_ENCODES, None)
    own = getattr(model, _ENCODES, None)
    if note is None or own is None:
        return

    def encode(inputs: Tensor, kwargs: dict[str, Any], *rest: Any) -> dict[str, Any]:
        if not inputs.is_floating_point():  # ids, not sound
            note({"input_ids": inputs, **kwargs})
        return own(inputs, kwargs, *rest)

    model.__dict__[_ENCODES] = encode


class Generation(StoppingCriteriaList):
    """The stopping criteria of one `generate`, which lives as long as that runs.

    They hand on which sequences have ended, at each token.

    Attributes:
        guidance_scale: of the classifier-free guidance of transformers; None or 1: there is none.
    """

    guidance_scale: float | None = None

    note: Callable[[Tensor | None, Tensor], None]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        ended = super().__call__(input_ids, scores, **kwargs)
        self.note(input_ids, ended)
        return ended


def on_chosen(
    model: PreTrainedModel,
    begin: Callable[[Generation], None],
    note: Callable[[Tensor | None, Tensor], None] | None,
) -> None:
    """Call `begin` when `generate` starts, and `note` when it has chosen a token for each sequence.

    `note` (None: stop) is given the sequences [B, n] with that token and which of them have ended, [B] bool.
    Under beam search it is called twice: with the candidates, of which there are more than beams, and with
    None for the sequences and the beams whose prompt is answered.
    """
    for name in (_STOPS, _BEAMS_GO_ON):
        model.__dict__.pop(name, None)
    if note is None or not hasattr(model, _STOPS):
        return
    criteria, beams_go_on = getattr(model, _STOPS), getattr(model, _BEAMS_GO_ON)

    def get_criteria(*args: Any, **kwargs: Any) -> StoppingCriteriaList:
        config = kwargs["generation_config"] if "generation_config" in kwargs else args[0]
        generation = Generation(criteria(*args, **kwargs))
        generation.note, generation.guidance_scale = note, config.guidance_scale
        begin(generation)
        return generation

    def noted_beams_go_on(unsatisfied: Tensor, finished: Tensor, hits: Tensor, early: bool | str) -> Any:
        ended = ~unsatisfied.all(1) | hits.all(1)  # the three conditions of transformers, by prompt
        if early is True:
            ended = ended | finished.all(1)
        note(None, ended.repeat_interleave(finished.shape[1]))
        return beams_go_on(unsatisfied, finished, hits, early)

    model.__dict__[_STOPS], model.__dict__[_BEAMS_GO_ON] = get_criteria, noted_beams_go_on


def pass_pixels(model: PreTrainedModel, wanted: bool, image_token_ids: Sequence[int] = ()) -> None:
    """Whether `generate` passes pixels to the forward, rather than features that it has encoded before.

    transformers 5.23 encodes first (`mm_encoder_outputs`); 5.17 always passes pixels.
    """
    model.__dict__.pop(_EXPANDS, None)
    model.__dict__.pop(_TAKES_FEATURES, None)
    if wanted:
        model.__dict__[_TAKES_FEATURES] = lambda: False
        own = getattr(type(model), _EXPANDS, None)
        if image_token_ids and own is getattr(GenerationMixin, _EXPANDS):  # Qwen-VL's does it itself
            expand = partial(_expand, model, torch.tensor(image_token_ids))
            model.__dict__[_EXPANDS] = expand


def _expand(
    model: PreTrainedModel,
    image_token_ids: Tensor,
    expand_size: int = 1,
    input_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor | None, dict[str, Any]]:
    """Inputs for several sequences per prompt, in which the images of a prompt are repeated together."""
    media: dict[str, Any] = {}
    if expand_size > 1 and input_ids is not None:
        is_image = torch.isin(input_ids, image_token_ids.to(input_ids.device))
        media = repeated_media(input_ids, is_image, expand_size, kwargs)
    stock: Any = super(type(model), model)
    input_ids, kwargs = stock._expand_inputs_for_generation(
        expand_size=expand_size, input_ids=input_ids, **kwargs
    )
    return input_ids, {**kwargs, **media}
