"""Texts in SmolLM2's own words: on them the adapter is held to what SmolLM2 says, so that it stays a language
model while it learns to look. No data of others is needed: half are documents drawn from it, half are
questions drawn from it with its greedy answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

BATCH = 32  #: texts that are written together
DOCUMENT, QUESTION, ANSWER = 96, 24, 56  #: tokens at most
#: What questions begin with; without it, it draws much that is no question.
STARTS = ("What is", "How many", "Who", "Where", "Why", "Which", "What do", "How do")
_USER, _ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@torch.inference_mode()
def write_texts(model: PreTrainedModel, tokenizer: Any, count: int, seed: int) -> list[list[int]]:
    """``count`` texts as token ids: a batch of documents, a batch of questions with answers, and so on."""
    torch.manual_seed(seed)
    found: list[list[int]] = []
    for number in range(-(-count // BATCH)):
        found += _chats(model, tokenizer) if number % 2 else _documents(model, tokenizer)
    return found[:count]


def divergence(
    hidden_of: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor], text: list[int], untouched: Any
) -> Tensor:
    """KL divergence of the adapted model from SmolLM2, mean over a text's tokens, in nats.

    Args:
        hidden_of: ids [1, L] -> last hidden states [1, L, H].
        head: hidden states -> logits.
        untouched: a context manager in which these two are SmolLM2's.
    """
    ids = torch.tensor([text])
    with torch.no_grad(), untouched:
        aimed = head(hidden_of(ids)[0]).float().log_softmax(-1)
    now = head(hidden_of(ids)[0]).float().log_softmax(-1)
    return F.kl_div(now, aimed, reduction="batchmean", log_target=True)


def _documents(model: PreTrainedModel, tokenizer: Any) -> list[list[int]]:
    """Drawn after the mark between documents, which is left out."""
    return _continued(model, tokenizer, ["<|endoftext|>"] * BATCH, DOCUMENT, temperature=1.0)[1]


def _chats(model: PreTrainedModel, tokenizer: Any) -> list[list[int]]:
    """Questions, drawn, with answers, greedy."""
    openings = [f"{_USER}{STARTS[number % len(STARTS)]}" for number in range(BATCH)]
    drawn = tokenizer.batch_decode(
        _continued(model, tokenizer, openings, QUESTION, temperature=0.7)[1], skip_special_tokens=True
    )
    asked = [opening + _first_sentence(rest) for opening, rest in zip(openings, drawn, strict=True)]
    prompts, answers = _continued(model, tokenizer, [f"{text}{_ASSISTANT}" for text in asked], ANSWER)
    return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]


def _first_sentence(text: str) -> str:
    line = text.split("\n")[0]
    before, mark, _ = line.partition("?")
    return before + mark


def _continued(
    model: PreTrainedModel, tokenizer: Any, prompts: list[str], most: int, temperature: float = 0.0
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of the prompts, and of what follows up to the end of a message or document, which is part of it;
    drawn, or greedy where the temperature is 0.
    """
    rows = tokenizer(
        prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    ids, mask = rows["input_ids"], rows["attention_mask"]
    ends = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")})
    drawn = {"top_k": 0, "top_p": 1.0, "temperature": temperature} if temperature else {}
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    output = generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=bool(drawn),
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, **drawn,
    )  # fmt: skip
    followed = [_to_the_end(row, ends) for row in output[:, ids.shape[1] :].tolist()]
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)], followed


def _to_the_end(row: list[int], ends: list[int]) -> list[int]:
    at = next((index for index, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: at + 1]
