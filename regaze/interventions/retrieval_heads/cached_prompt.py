"""Greedy answers to one long prompt that is prefilled once; the cache is cropped before each answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from regaze.toolkit.model import compat


class CachedPrompt:
    """A prompt with all tokens but the last one in a key-value cache.

    The last token is fed as the first decode step. Every token of an answer, the first one included, is
    therefore predicted by a decode step, and an edit that leaves the prefill alone acts on all of them.

    Args:
        model: a causal language model.
        ids: the prompt's tokens; they are prefilled in one forward.
    """

    def __init__(self, model: PreTrainedModel, ids: Sequence[int]):
        self.model, self.last_token = model, ids[-1]
        # Without a configuration the cache keeps all keys of sliding layers: columns are positions.
        self.cache: Any = DynamicCache()
        self._feed(list(ids[:-1]))
        self._length = self.cache.get_seq_length()

    def answer(self, max_new_tokens: int, stops: frozenset[int]) -> list[int]:
        """The greedy continuation of at most `max_new_tokens`, up to and including a token of `stops`."""
        added = self.cache.get_seq_length() - self._length
        if added:
            self.cache.crop(-added)
        output, token = [], self.last_token
        for _ in range(max_new_tokens):
            token = int(self._feed([token]).argmax())
            output.append(token)
            if token in stops:
                break
        return output

    @torch.inference_mode()
    def _feed(self, ids: list[int]) -> torch.Tensor:
        """The logits [V] after `ids`."""
        inputs = torch.tensor([ids], device=self.model.device)
        output = self.model(**compat.with_cache({"input_ids": inputs}, self.cache), logits_to_keep=1)
        logits: torch.Tensor = output.logits
        return logits[0, -1]


def stop_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: end-of-sequence tokens, and those that contain a newline."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    newlines = (token for token, text in enumerate(texts) if "\n" in text)
    return frozenset({*ends, tokenizer.eos_token_id, *newlines} - {None})
