"""Forwards in which image tokens are hidden by masks of our own, as an oracle for methods that prune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from models import logits_of, tiny_llava
from torch import Tensor

import regaze


class Stage(NamedTuple):
    """From layer `layer` on only `kept` image tokens are seen: those with the highest scores.

    Attributes:
        measured: the layer whose attention [Hq, L, L] gives the scores [N], by `score` with the images.
    """

    layer: int
    kept: int
    measured: int
    score: Callable[[Tensor, Tensor], Tensor]


def last_row(weights: Tensor, image: Tensor) -> Tensor:
    """A `Stage.score`: the weights of the last row, averaged over heads."""
    return weights[:, -1, image].mean(0)


@contextmanager
def hidden_from(model: Any, masks: Sequence[Tensor]):
    """Give each layer its own additive mask [L, L]."""

    def giving(mask):
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask[None, None]})

    layers = model.model.language_model.layers
    handles = [
        layer.register_forward_pre_hook(giving(mask), with_kwargs=True)
        for layer, mask in zip(layers, masks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stepwise(inputs: Any, answer: Tensor, stages: Sequence[Stage]) -> tuple[Tensor, list[list[int]]]:
    """Logits [T, 1, V] that lead to `answer` [1, T] of one prompt, and the columns that each stage keeps.

    Eager forwards of plain transformers; the choice is that of the prompt, for the whole answer.
    """
    model = tiny_llava()
    for config in (model.config, model.model.language_model.config):
        config._attn_implementation = "eager"
    ids, prompt = inputs["input_ids"], inputs["input_ids"].shape[1]
    image = (ids[0] == model.config.image_token_id).nonzero().flatten()
    total = prompt + answer.shape[1]
    causal = torch.full((total, total), torch.finfo().min).triu(1)
    masks = [causal.clone() for _ in model.model.language_model.layers]

    def forward(length: int, **options: Any) -> Any:
        every = torch.cat([ids, answer], 1)[:, :length]
        given = {**inputs, "input_ids": every, "attention_mask": torch.ones_like(every)}
        with hidden_from(model, [mask[:length, :length] for mask in masks]), torch.no_grad():
            return model(**given, **options)

    alive, kept = torch.ones(len(image), dtype=torch.bool), []
    for stage in stages:
        weights = forward(prompt, output_attentions=True).attentions[stage.measured][0]
        scores = stage.score(weights, image).masked_fill(~alive, -torch.inf)
        alive = torch.zeros_like(alive)
        alive[scores.argsort(descending=True, stable=True)[: stage.kept]] = True
        for mask in masks[stage.layer :]:
            mask[:, image[~alive]] = torch.finfo().min
        kept.append(image[alive].tolist())
    logits = [forward(prompt + step).logits[:, -1] for step in range(answer.shape[1])]
    return torch.stack(logits), kept


def both_ways(gaze: regaze.Gaze, inputs: Any, method: Any, tokens: int = 4) -> tuple[Tensor, list[int]]:
    """Logits under a method that removes tokens, checked against hiding them, and the layers' keys."""
    from dataclasses import replace

    from decoding_checks import assert_same_scores

    with gaze.using(replace(method, remove=False)):
        hidden = logits_of(gaze.model, inputs, tokens)
    with gaze.using(method):
        out = gaze.model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=None,
        )
    logits = torch.stack(out.logits)
    assert_same_scores(logits, hidden, tolerance=2e-5)
    return logits, [layer.keys.shape[2] for layer in out.past_key_values.layers]
