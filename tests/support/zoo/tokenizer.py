"""A tiny fast tokenizer for any family: bytes, a few common words, and the family's special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

#: What the merges are learnt from; words in it are mostly one token, every other text is spelt in bytes.
_TEXT = (
    "Is there a dog in the picture? Yes, there is a dog in the picture. No, there is no cat in this image.",
    "Is there a cat in the image? What is in the picture? How many people are there? Describe the image.",
    "What colour is the car? There are two people and a red car next to the table. Answer the question.",
    "USER: What is this? ASSISTANT: This is a bird. user: Where is a bus? assistant: The bus is left of it.",
    "You are a helpful assistant. The answer is yes. The answer is no. Which one is larger, and why?",
)


def tiny_tokenizer(
    *special: str,
    bos: str | None = None,
    eos: str = "</s>",
    pad: str = "<pad>",
    named: Mapping[str, str] | None = None,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 420 tokens, left-padding, that gives every text back unchanged.

    The ids are those of the special tokens, in this order: pad, eos, bos (if any), `special`, the values of
    `named`; then the bytes and the merges. Ask `tokenizer.convert_tokens_to_ids` for them.

    Args:
        special: special tokens, such as "<image>"; each stays one token, and decoding can skip it.
        bos: is put before every text (`add_special_tokens=False` leaves it out), as Llama's tokenizers do;
            None for families without, such as Qwen.
        eos, pad: the end of an answer; padding.
        named: further special tokens that become attributes, as processors expect them: with
            {"image_token": "<image>"} the tokenizer has `image_token` and `image_token_id`.
        chat_template: Jinja; for text models. Processors take their own.
    """
    tokens = [pad, eos, *([bos] if bos else []), *special, *(named or {}).values()]
    tokens = list(dict.fromkeys(tokens))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, merges = _learnt()
    vocabulary = {token: i for i, token in enumerate([*tokens, *alphabet, *("".join(m) for m in merges)])}
    tokenizer.model = models.BPE(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens(tokens)
    if bos:
        start = (bos, vocabulary[bos])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[start]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        chat_template=chat_template,
        extra_special_tokens=dict(named or {}),
    )


@lru_cache
def _learnt() -> tuple[list[str], list[tuple[str, str]]]:
    """The byte alphabet and the merges, learnt once; no merge gives what another has given."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(_TEXT, trainer)
    seen: dict[str, tuple[str, str]] = {}
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        seen.setdefault(left + right, (left, right))
    return alphabet, list(seen.values())
