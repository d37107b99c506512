"""The bed's processor and configuration: SmolLM2's tokenizer and ChatML, the demo's images and tower."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoProcessor, AutoTokenizer, LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast

from regaze.bed.base import HUB_ID, find_base
from regaze.demo.shipped import MODEL_DIR
from regaze.demo.training.render import GRID, PATCH

IMAGE, IMAGE_TOKENS = "<image>", GRID * GRID
#: A token for source code becomes the image token, so that no embedding is added.
REPLACED, IMAGE_TOKEN = "<gh_stars>", 7
MAX_LENGTH = 8192
#: As `find_sink_dimensions` finds them in SmolLM2.
SINK_DIMENSIONS, SINK_TAU = (507,), 20.0

#: ChatML as SmolLM2 has it, the images of a message before its text; without SmolLM2's own system message.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}"
    "{%- set parts = message['content'] -%}"
    "{%- set text = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -%}"
    "{{- '<image>\n' * (parts | selectattr('type', 'equalto', 'image') | list | length) -}}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- text + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- text + '<|im_end|>' -}}{%- endif -%}"
    "{{- '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def build_processor(base: str | None = None) -> LlavaProcessor:
    """The processor, from the tokenizer of the base.

    A GGUF does not say that digits are single tokens: that is added.
    """
    tokenizer = AutoTokenizer.from_pretrained(find_base(base))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary[IMAGE] = vocabulary.pop(REPLACED)
    for token in state["added_tokens"]:
        token["content"] = IMAGE if token["content"] == REPLACED else token["content"]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, by_bytes]}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return LlavaProcessor(
        image_processor=AutoProcessor.from_pretrained(os.fspath(MODEL_DIR)).image_processor,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(text_config: Any) -> LlavaConfig:
    """LLaVA's configuration around a copy of SmolLM2's, with the demo's tower.

    A copy: a configuration inside another loses its attention implementation, and a model with it its mask.
    """
    vision, text_config = LlavaConfig.from_pretrained(MODEL_DIR).vision_config, deepcopy(text_config)
    text_config.name_or_path = HUB_ID  # not the folder of whoever trains
    text_config.sink_dimensions, text_config.sink_tau = list(SINK_DIMENSIONS), SINK_TAU
    return LlavaConfig(
        vision_config=vision,
        text_config=text_config,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
