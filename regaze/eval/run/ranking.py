"""Choosing among given answers by their likelihood, where a benchmark asks for no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regaze.errors import BadParameterError
from regaze.eval.run import loglikelihood
from regaze.eval.run.metering import Steps


def likeliest(
    gaze: Any, images: Sequence[Any], prompts: Sequence[str], options: Sequence[Sequence[str]], steps: Steps
) -> list[str]:
    """Per prompt the option with the highest mean log-probability of its tokens, the end token among them.

    The rule of V*Bench's script (the least cross-entropy). An option is decoded token after token, so that a
    method in whose `gaze.using` block this runs acts on it as on an answer of the model's own. Of options
    that are as likely the first counts.

    Args:
        images, prompts, options: B entries each, the same number of options for all.
        steps: told what it took, in tokens per prompt.
    """
    reader, rows = gaze.reader, [(i, text) for i, own in enumerate(options) for text in own]
    end, lead = [reader.tokenizer.eos_token_id], loglikelihood.lead(gaze.processor)
    rendered = [reader.render(prompt, len(entry)).text for prompt, entry in zip(prompts, images, strict=True)]
    said = [loglikelihood.continuation(reader, rendered[i], lead + text.strip()) + end for i, text in rows]
    inputs = gaze.inputs([list(images[i]) for i, _ in rows], [prompts[i] for i, _ in rows])
    scores = loglikelihood.score(gaze.model, inputs, said)
    steps.count = len(rows) // len(prompts) * max(map(len, said))
    mean = [score.logprob / len(tokens) for score, tokens in zip(scores, said, strict=True)]
    best: dict[int, int] = {}
    for row, (prompt, _) in enumerate(rows):
        if prompt not in best or mean[row] > mean[best[prompt]]:
            best[prompt] = row
    return [rows[best[prompt]][1] for prompt in range(len(prompts))]


def check(method: Any) -> None:
    """Raises BadParameterError for a method under which nothing can be ranked."""
    if hasattr(method, "ask"):
        name = method.to_dict().get("method", "the method")
        raise BadParameterError(
            f"{name} asks in its own way, so that it has no likelihoods to rank answers by"
        )
