"""Likelihoods of given answers, and the likeliest of several, for benchmarks that generate no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regaze.errors import BadParameterError
from regaze.eval.run.loglikelihood import (
    LogLikelihood,
    answer_prefix,
    continuation_ids,
    loglikelihoods,
)
from regaze.eval.run.metering import TokenCounter
from regaze.toolkit.prompts.conversation import Conversation


def most_likely_options(
    gaze: Any,
    images: Sequence[Any],
    prompts: Sequence[str | Conversation],
    options: Sequence[Sequence[str]],
    counter: TokenCounter,
) -> list[str]:
    """Per prompt the option with the highest mean log-probability of its tokens, end token included.

    This is the rule of V*Bench's script (lowest cross-entropy). Options are decoded token by token, so a
    method that is active in a `gaze.using` block acts on them as on a generated answer. Of equally likely
    options the first is chosen.

    Args:
        images, prompts, options: B entries each, with the same number of options for all.
        counter: its `count` is set to the number of decoded tokens per prompt.
    """
    rows = [(i, text) for i, choices in enumerate(options) for text in choices]
    scores = iter(_decode(gaze, images, prompts, rows, counter, ends=True))
    return [likeliest(choices, [next(scores) for _ in choices]) for choices in options]


def log_probabilities(
    gaze: Any,
    images: Sequence[Any],
    prompts: Sequence[str | Conversation],
    texts: Sequence[str],
    counter: TokenCounter,
) -> list[str]:
    """Per prompt the log-probability of a text as its answer in nats, as "-41.250000 of 17 tokens".

    Where a plausibility constraint has removed some of them, "-1041.250000 of 17 tokens, 1 excluded".
    Texts are decoded as `most_likely_options` does it, without an end token.

    Args:
        images, prompts, texts: B entries each.
        counter: as of `most_likely_options`.
    """
    scores = _decode(gaze, images, prompts, list(enumerate(texts)), counter, ends=False)
    return [as_text(*score) for score in scores]


def likeliest(options: Sequence[str], scores: Sequence[tuple[LogLikelihood, int]]) -> str:
    """The option with the highest mean log-probability of its tokens, of equal ones the first.

    Args:
        scores: of each option its likelihood and its number of tokens.
    """
    mean = [score.logprob / tokens for score, tokens in scores]
    return options[mean.index(max(mean))]


def as_text(score: LogLikelihood, tokens: int) -> str:
    """The likelihood of a text of so many tokens, as the answer of its request."""
    excluded = f", {score.excluded} excluded" if score.excluded else ""
    return f"{score.logprob:.6f} of {tokens} tokens{excluded}"


def target_tokens(reader: Any, prompt: str, prefix: str, text: str, *, ends: bool) -> list[int]:
    """The tokens of a text as the answer to a rendered prompt.

    Args:
        reader: `gaze.reader`. prefix: of answers, see `answer_prefix`.
        ends: whether the end token belongs to it.
    """
    end = [reader.tokenizer.eos_token_id] if ends else []
    return continuation_ids(reader, prompt, prefix + text.strip()) + end


def _decode(
    gaze: Any,
    images: Sequence[Any],
    prompts: Sequence[str | Conversation],
    rows: Sequence[tuple[int, str]],
    counter: TokenCounter,
    *,
    ends: bool,
) -> list[tuple[LogLikelihood, int]]:
    """The likelihood of each row's text behind its prompt, and its number of tokens.

    Args:
        rows: (index of a prompt, text).
        ends: whether the end token belongs to a text.
    """
    reader = gaze.reader
    prefix = answer_prefix(gaze.processor, reader.template_args)
    rendered = [reader.render(prompt, len(entry)).text for prompt, entry in zip(prompts, images, strict=True)]
    tokens = [target_tokens(reader, rendered[i], prefix, text, ends=ends) for i, text in rows]
    inputs = gaze.inputs([list(images[i]) for i, _ in rows], [prompts[i] for i, _ in rows])
    scores = loglikelihoods(gaze.model, inputs, tokens)
    counter.count = len(rows) // len(prompts) * max(map(len, tokens))
    return [(score, len(ids)) for score, ids in zip(scores, tokens, strict=True)]


def check_method(method: Any) -> None:
    """Raise BadParameterError for a method under which there are no likelihoods."""
    if hasattr(method, "answer"):
        name = method.to_dict().get("method", "the method")
        raise BadParameterError(
            f"{name} asks in its own way, so that it has no likelihoods to rank answers by"
        )
