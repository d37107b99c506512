"""Tokenizers of the two great families, trained on a short text, to build needle prompts with."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from regaze.interventions.retrieval_heads import NEEDLES

BOOK = (
    "Mr. Holmes met Dr. Watson at 7 a.m. in St. James Park, near the old bank of the river. "
    "It rained all day and nobody was surprised by that! “Is it far?” asked the doctor, who was tired. "
    "J. Smith and the others left early.\n\nThe next chapter begins quietly... and then goes on. "
    "Nobody knows why."
) * 3


def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer ("bytes"), or one that marks spaces ("metaspace")."""
    special = ["<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "metaspace"))
    texts = [BOOK, *(needle.text + needle.question + needle.cue for needle in NEEDLES)]
    alphabet = []
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted({*"".join(texts), *string.printable, "▁"})
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_bos_token = True
    fast.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return fast
