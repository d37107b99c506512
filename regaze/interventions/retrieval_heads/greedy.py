"""Greedy answers to one long prompt that is read once: the cache is wound back for every further answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from regaze.toolkit.model import compat


class LongPrompt:
    """A prompt of which all tokens but the last are in a key-value cache.

    The last one is fed as the first decode step. So every token of an answer, the first included, is
    predicted by a step of a single row, and what spares the prefill can still act on all of them.

    Args:
        model: a causal language model. ids: the prompt's tokens; they are read in one forward.
    """

    def __init__(self, model: PreTrainedModel, ids: Sequence[int]):
        self.model, self.last = model, ids[-1]
        # Without a configuration it keeps every key of sliding layers, too: columns are positions.
        self.cache: Any = DynamicCache()
        self._feed(list(ids[:-1]))
        self._length = self.cache.get_seq_length()

    def answer(self, max_new_tokens: int, stops: frozenset[int]) -> list[int]:
        """The greedy continuation, at most `max_new_tokens` long, up to and including a token of `stops`."""
        surplus = self.cache.get_seq_length() - self._length
        if surplus:
            self.cache.crop(-surplus)
        output, token = [], self.last
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
    """Tokens at which an answer is over: those that end a sequence, and those with a newline in them."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    newlines = (token for token, text in enumerate(texts) if "\n" in text)
    return frozenset({*ends, tokenizer.eos_token_id, *newlines} - {None})
