"""Log-likelihoods of given continuations under a method, by teacher forcing.

Harnesses score a continuation in one forward over context and continuation. A method may treat generated
tokens differently from prompt tokens: it acts per decode step, or combines logits of several contexts in the
last row. So the continuation is decoded here, token by token, with the logits of free generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from regaze.toolkit.model.teacher_forcing import TeacherForcing

#: Log-probability in nats of a token that a plausibility constraint has removed. The release of DoLa
#: (arXiv:2309.03883) scores continuations with the same -1000: the one with fewer such tokens wins.
PRUNED_LOGPROB = -1000.0
_MARKER = "\u2983answer\u2984"  # text that no template contains


class LogLikelihood(NamedTuple):
    """Of one continuation.

    Attributes:
        logprob: the sum of log-probabilities in nats. greedy: whether greedy decoding yields it.
        excluded: the number of its tokens that a plausibility constraint has removed.
    """

    logprob: float
    greedy: bool
    excluded: int = 0


def loglikelihoods(
    model: PreTrainedModel, inputs: Mapping[str, Any], continuations: Sequence[Sequence[int]]
) -> list[LogLikelihood]:
    """Log-likelihoods of one continuation per row of a batch, inside a `gaze.using` block if one is open.

    Args:
        inputs: for `model.generate`: input_ids and attention_mask [B, L], padded on the left, and images.
        continuations: B lists of token ids, none empty.
    """
    prompt = inputs["input_ids"]
    lengths = [len(tokens) for tokens in continuations]
    targets = torch.zeros(len(lengths), max(lengths), dtype=torch.int64, device=prompt.device)
    for row, tokens in enumerate(continuations):
        targets[row, : lengths[row]] = torch.tensor(tokens)
    # No end token: it may be part of a continuation, and a row that is complete waits for the others.
    config = GenerationConfig(
        max_new_tokens=max(lengths), do_sample=False, num_beams=1, eos_token_id=None, pad_token_id=0
    )
    forcing = LogitsProcessorList([TeacherForcing(targets, prompt.shape[1])])
    with torch.inference_mode(), _generation_config(model, config):
        out = model.generate(  # type: ignore[operator]
            **inputs,
            logits_processor=forcing,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logprobs = torch.stack(out.logits, 1).float().log_softmax(-1)  # [B, N, V]
    exact = logprobs.gather(2, targets[..., None])[..., 0].cpu()
    chosen, excluded = exact.clamp(min=PRUNED_LOGPROB), exact == -torch.inf
    greedy = (logprobs.argmax(-1) == targets).cpu()
    return [
        LogLikelihood(float(chosen[row, :n].sum()), bool(greedy[row, :n].all()), int(excluded[row, :n].sum()))
        for row, n in enumerate(lengths)
    ]


def answer_prefix(processor: Any, template_args: Mapping[str, Any] | None = None) -> str:
    """What the chat template puts between the assistant's header and its words: a space for LLaVA."""
    if getattr(processor, "chat_template", None) is None:
        return " "

    def message(role: str, text: str) -> dict[str, Any]:
        multimodal = hasattr(processor, "tokenizer")  # whose templates take lists of parts
        return {"role": role, "content": [{"type": "text", "text": text}] if multimodal else text}

    question, template = [message("user", "?")], processor.apply_chat_template
    given: dict[str, Any] = {"tokenize": False, **(template_args or {})}
    header = template(question, add_generation_prompt=True, **given)
    turn = template([*question, message("assistant", _MARKER)], **given)
    return turn[len(header) : turn.index(_MARKER)] if turn.startswith(header) else ""


def continuation_ids(reader: Any, prompt: str, answer: str) -> list[int]:
    """Tokens of an answer as they follow a rendered prompt.

    Args:
        reader: `gaze.reader`.
        answer: with its `answer_prefix`.
    """
    tokenizer, special = reader.tokenizer, reader.adds_special_tokens(prompt)
    before, whole = (
        tokenizer(text, add_special_tokens=special)["input_ids"] for text in (prompt, prompt + answer)
    )
    if whole[: len(before)] == before:
        return list(whole[len(before) :])
    return list(tokenizer(answer, add_special_tokens=False)["input_ids"])


@contextmanager
def _generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Replace the model's own configuration.

    `generate` would fill a `config` it is given with the model's values, end tokens included.
    """
    original, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = original
