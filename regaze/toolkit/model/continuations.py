"""Continuations of one prompt in the key-value cache, for methods that search instead of `model.generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

from regaze.errors import BadParameterError, CompositionError, UnsupportedModelError
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context


class Alone(Callback):
    """Refuses to act beside other callbacks. owner: the method that searches."""

    def __init__(self, owner: str) -> None:
        self.owner = owner

    def prepare(self, context: Context) -> None:
        if len(context.callbacks) > 1:
            raise CompositionError(
                f"{self.owner} runs another number of rows at every step, so that no other intervention or "
                "recording can follow it; ask outside gaze.using(...) and gaze.recording(...)"
            )


class Stop(NamedTuple):
    """When an answer is over, as in `generate`. eos_ids: [e] tokens that end it."""

    eos_ids: Tensor
    max_new_tokens: int = 128


def read_stop(
    owner: str, model: PreTrainedModel, options: Mapping[str, Any], *more: str, hint: str = ""
) -> Stop:
    """When to stop: by the given arguments of `generate`, else those of the model.

    Args:
        owner: the method that searches. more: arguments that it knows besides those of stopping.
        hint: what to do instead of giving `num_beams`.

    Raises:
        BadParameterError: an argument that the method does not know.
    """
    known = (*_STOPPING, *more)
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in known and (name, value) not in _HARMLESS:
            advice = hint if name == "num_beams" else ""
            raise BadParameterError(f"{owner} takes {', '.join(known)}, got {name}={value!r}{advice}")
    limit, ids = (
        given.get("max_new_tokens", 128),
        options.get("eos_token_id", model.generation_config.eos_token_id),
    )
    if limit < 1:
        raise BadParameterError(f"max_new_tokens must be at least 1, got {limit}")
    return Stop(torch.tensor([] if ids is None else ids, dtype=torch.int64).flatten(), limit)


#: Arguments of `generate` that say when an answer is over, and those that change nothing.
_STOPPING = ("max_new_tokens", "eos_token_id", "pad_token_id")
_HARMLESS = (("do_sample", False), ("num_beams", 1))


class Continuations:
    """One or several prompts and their continuations in the key-value cache, one row each.

    Attributes:
        prompt_length: tokens of the prompt. cached_length: tokens in the cache.
        logits: [rows, V] fp32, the next token's logits in each row.

    Args:
        inputs: prompts of one length, without padding.
        hint: what to do instead, where the model's cache cannot be cut.
    """

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, inputs: BatchFeature, hint: str = ""):
        self.model, self.device, self._hint = model, inputs["input_ids"].device, hint
        self._options: dict[str, Any] = {"return_dict": True, **compat.last_logits_only(model)}
        self.prompt_length = self.cached_length = inputs["input_ids"].shape[1]
        out = model(**inputs, **self._options, use_cache=True)
        self.cache: Any = compat.cache_of(out)
        if self.cache is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} returns no key-value cache, from which a search could go on"
            )
        # The model keeps those of its last prefill, which may be another prompt's.
        self._rope_deltas = compat.rope_deltas(model)
        self.logits = out.logits[:, -1].float()

    def select(self, rows: Tensor) -> None:
        """Continue with these rows [n]; a row may be given several times."""
        self.cache.reorder_cache(rows.to(self.device))
        self.logits = self.logits[rows.to(self.logits.device)]

    def feed(self, ids: Tensor) -> None:
        """Append tokens [rows, T]. There is no padding to mask, and positions follow from the cache."""
        self.cached_length += ids.shape[1]
        inputs = compat.with_cache({"input_ids": ids.to(self.device)}, self.cache)
        compat.set_rope_deltas(self.model, self._rope_deltas)
        self.logits = self.model(**inputs, **self._options).logits[:, -1].float()

    def restart(self, ids: Tensor) -> None:
        """Replace all rows by the answers `ids` [n, T] to the first prompt, which is not run again."""
        try:
            self.cache.crop(self.prompt_length - self.cached_length)
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            raise UnsupportedModelError(
                f"this {type(self.cache).__name__} cannot drop its last tokens, as going back "
                f"needs{self._hint}"
            ) from error
        self.cached_length = self.prompt_length
        self.select(torch.zeros(len(ids), dtype=torch.int64))
        self.feed(ids)
