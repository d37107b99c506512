"""The demo model's tokenizer, chat template and processor.

A byte-pair tokenizer like Llama's: "▁" is a space, words never merge across spaces or punctuation, and
unknown characters fall back to bytes, so any question has tokens. Every word of the demo's world is one
token.
"""

from __future__ import annotations

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from regaze.demo.training.conversations import corpus

BOS, EOS, PAD, UNK, IMAGE = "<s>", "</s>", "<pad>", "<unk>", "<image>"
VOCABULARY_LIMIT = 2048
MAX_LENGTH = 2048

#: `USER: <image>\n{question} ASSISTANT: {answer}</s>USER: ...`, after an optional system message.
#: The tokenizer adds the beginning-of-sequence token, as LLaVA-1.5's does. The images of a message come
#: before its text.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}{%- set images = 0 -%}"
    "{%- else -%}"
    "{%- set parts = message['content'] -%}"
    "{%- set text = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -%}"
    "{%- set images = parts | selectattr('type', 'equalto', 'image') | list | length -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'system' -%}{{- text + ' ' -}}"
    "{%- elif message['role'] == 'user' -%}{{- 'USER: ' + '<image>\n' * images + text + ' ' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- 'ASSISTANT: ' -}}{%- generation -%}{{- text + '</s>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- raise_exception('a role is system, user or assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-pair tokenizer on the demo's own sentences; deterministic, under a second."""
    specials = [UNK, BOS, EOS, PAD, IMAGE]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT,
        min_frequency=1,
        special_tokens=[*specials, *byte_tokens],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!'\":;()-"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer = _without_special_bytes(tokenizer, specials)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _without_special_bytes(trained: Tokenizer, specials: list[str]) -> Tokenizer:
    """Mark only the true special tokens as special.

    Byte tokens have to be special during training, or they would be dropped from the vocabulary. Afterwards
    they must not be: the bytes of an unknown word would vanish when special tokens are skipped.
    """
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return tokenizer


def build_processor(image_side: int, patch: int) -> LlavaProcessor:
    """The processor of a LLaVA whose vision tower has a class token that the model drops.

    Args:
        image_side: side of the square image of the vision tower, in pixels.
        patch: side of a patch, in pixels.
    """
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_side}, crop_size={"height": image_side, "width": image_side}
    )
    tokenizer = build_tokenizer()
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
