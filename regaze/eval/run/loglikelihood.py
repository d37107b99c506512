"""Log-likelihoods of given continuations under a method: generation that is made to say them.

One forward over context and continuation is how harnesses score a continuation. A method may treat a
generated token otherwise than a prompt's: it acts per decode step, or mixes logits of several contexts at the
last row. Here the continuation is therefore decoded, token after token, with the logits of a free generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from regaze.toolkit.model.teacher_forcing import TeacherForcing

#: Log-probability of a token that a plausibility cut has removed, in nats: the -1000 with which the release
#: of DoLa (arXiv:2309.03883) scores continuations. Of two that hold such tokens, the one with fewer wins.
CUT = -1000.0
_ANSWER = "\u2983answer\u2984"  # text that no template contains


class Score(NamedTuple):
    """Of one continuation: the sum of its log-probabilities in nats, and whether greedy decoding says it."""

    logprob: float
    greedy: bool


def score(
    model: PreTrainedModel, inputs: Mapping[str, Any], continuations: Sequence[Sequence[int]]
) -> list[Score]:
    """Scores of one continuation per row of a batch, in the model's `gaze.using` block, if one is open.

    Args:
        inputs: for `model.generate`: input_ids and attention_mask [B, L], padded on the left, and images.
        continuations: B lists of token ids, none empty.
    """
    prompt = inputs["input_ids"]
    lengths = [len(tokens) for tokens in continuations]
    wanted = torch.zeros(len(lengths), max(lengths), dtype=torch.int64, device=prompt.device)
    for row, tokens in enumerate(continuations):
        wanted[row, : lengths[row]] = torch.tensor(tokens)
    # No end token: it may be part of a continuation, and a row that is through waits for the others.
    config = GenerationConfig(
        max_new_tokens=max(lengths), do_sample=False, num_beams=1, eos_token_id=None, pad_token_id=0
    )
    forced = LogitsProcessorList([TeacherForcing(wanted, prompt.shape[1])])
    with torch.inference_mode(), _generating(model, config):
        out = model.generate(  # type: ignore[operator]
            **inputs,
            logits_processor=forced,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logprobs = torch.stack(out.logits, 1).float().log_softmax(-1)  # [B, N, V]
    taken = logprobs.gather(2, wanted[..., None])[..., 0].clamp(min=CUT).cpu()
    greedy = (logprobs.argmax(-1) == wanted).cpu()
    return [Score(float(taken[row, :n].sum()), bool(greedy[row, :n].all())) for row, n in enumerate(lengths)]


def lead(processor: Any) -> str:
    """What the chat template puts between the assistant's header and its words: LLaVA's is a space."""
    if getattr(processor, "chat_template", None) is None:
        return " "

    def message(role: str, text: str) -> dict[str, Any]:
        multimodal = hasattr(processor, "tokenizer")  # whose templates take lists of parts
        return {"role": role, "content": [{"type": "text", "text": text}] if multimodal else text}

    ask, template = [message("user", "?")], processor.apply_chat_template
    header = template(ask, add_generation_prompt=True, tokenize=False)
    turn = template([*ask, message("assistant", _ANSWER)], tokenize=False)
    return turn[len(header) : turn.index(_ANSWER)] if turn.startswith(header) else ""


def continuation(reader: Any, prompt: str, answer: str) -> list[int]:
    """Tokens of an answer as they follow a rendered prompt.

    Args:
        reader: `gaze.reader`. answer: with what stands before it (`lead`).
    """
    tokenizer, special = reader.tokenizer, reader.adds_special_tokens(prompt)
    before, whole = (
        tokenizer(text, add_special_tokens=special)["input_ids"] for text in (prompt, prompt + answer)
    )
    if whole[: len(before)] == before:
        return list(whole[len(before) :])
    return list(tokenizer(answer, add_special_tokens=False)["input_ids"])


@contextmanager
def _generating(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """`config` alone: one passed to `generate` is filled up with the model's own, end tokens included."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own
