"""A model and the prompts that hide needles from it: what finding heads and ablating them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from transformers import PreTrainedModel

from regaze.errors import BadParameterError
from regaze.interventions.retrieval_heads.cached_prompt import stop_tokens
from regaze.interventions.retrieval_heads.needles import Needle
from regaze.interventions.retrieval_heads.prompt_builder import TEMPLATE, NeedlePrompt, PromptBuilder
from regaze.interventions.retrieval_heads.recall import unigram_recall
from regaze.toolkit import Gaze, wrap
from regaze.toolkit.model import compat
from regaze.toolkit.model.weights_hash import hash_of, model_hash


class NeedleTest:
    """A model and the prompts that hide needles from it.

    Arguments and errors are those of `find_retrieval_heads`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        haystack: str | Sequence[str],
        needles: Sequence[Needle],
        lengths: Sequence[int],
        depths: Sequence[float],
        *,
        template: str = TEMPLATE,
        max_new_tokens: int = 50,
    ):
        if not lengths or not depths or max_new_tokens < 1:
            raise BadParameterError("needle tests need at least one length, one depth and one new token")
        limit = getattr(compat.text_config(model), "max_position_embeddings", None)
        if limit is not None and max(lengths) + max_new_tokens > limit:
            raise BadParameterError(
                f"a prompt of {max(lengths)} tokens and an answer of {max_new_tokens} do not fit into the "
                f"model's context of {limit}"
            )
        self.gaze: Gaze = wrap(model, tokenizer)
        self.model, self.tokenizer = model, self.gaze.reader.tokenizer
        haystacks = [haystack] if isinstance(haystack, str) else list(haystack)
        self.builder = PromptBuilder(self.gaze.reader, haystacks, needles, template)
        self.needles, self.max_new_tokens = tuple(needles), max_new_tokens
        self.stops = stop_tokens(model, self.tokenizer)
        self.grid = list(product(lengths, range(len(needles)), depths))
        for number, depth in product(range(len(needles)), depths):  # fail now where a length is too short
            self.builder.build(number, min(lengths), depth)
        self._model_hash, self._haystack_hashes = model_hash(model), [hash_of(text) for text in haystacks]

    def prompts(self) -> Iterator[NeedlePrompt]:
        """The prompt of each cell of the grid, built one by one."""
        return (self.builder.build(number, length, depth) for length, number, depth in self.grid)

    def key(self, prompt: NeedlePrompt, *more: Any) -> str:
        """A key for the log: the prompt's tokens stand for haystack, needle, template and tokenizer."""
        answer = self.needles[prompt.number].answer
        run = [self._model_hash, self.max_new_tokens, sorted(self.stops)]
        return hash_of(run, prompt.ids, prompt.span, answer, more)

    def judge(self, prompt: NeedlePrompt, output: Sequence[int]) -> tuple[str, float]:
        """The response as text, and the share of the answer's words in it (0..1)."""
        response = self.tokenizer.decode(output, skip_special_tokens=True).strip()
        return response, unigram_recall(self.needles[prompt.number].answer, response)

    def about(self) -> dict[str, Any]:
        """How the trials are run, in JSON values."""
        lengths, numbers, depths = (sorted(set(values)) for values in zip(*self.grid, strict=True))
        return {
            "lengths": lengths,
            "depths": depths,
            "needles": [asdict(self.needles[number]) for number in numbers],
            "max_new_tokens": self.max_new_tokens,
            "hash of model": self._model_hash,
            "hashes of haystacks": self._haystack_hashes,
        }
