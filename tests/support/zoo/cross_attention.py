"""Tiny models whose text cross-attends to images: Llama 3.2 Vision and Florence-2."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BartConfig,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
)
from zoo.base import Entry
from zoo.tokenizer import tiny_tokenizer

_MLLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def mllama() -> tuple[Any, Any]:
    """Layers 1 and 3 of six are cross-attention; a tile is 4 x 4 patches and a class token."""
    tokenizer = tiny_tokenizer(
        "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>",
        bos="<|begin_of_text|>", eos="<|end_of_text|>", pad="<|finetune_right_pad_id|>",
    )  # fmt: skip
    size = {"height": 56, "width": 56}
    processor = MllamaProcessor(MllamaImageProcessorPil(size=size), tokenizer, chat_template=_MLLAMA_TEMPLATE)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "image_size": 56,
        "patch_size": 14,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "cross_attention_layers": [1, 3],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # The models have rows for one more token, the image's, in the embedding but not in the output.
    config = MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<|image|>")
    )
    torch.manual_seed(0)
    model = MllamaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate")):
            parameter.data.fill_(0.7)  # closed in a new model: images would change nothing
    return model, processor


def florence2() -> tuple[Any, Any]:
    """Encoder-decoder: a mean token and 4 x 4 cells, then the text, in the encoder."""
    tokenizer = tiny_tokenizer(bos="<s>", named={"image_token": "<image>"})
    tokenizer.padding_side = "right"  # positions are counted from the first token, padding or not
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    images.image_seq_length = 17
    processor = Florence2Processor(images, tokenizer)
    vision = {
        "depths": (1, 1),
        "patch_size": (5, 3),
        "patch_stride": (4, 2),
        "patch_padding": (2, 1),
        "patch_prenorm": (False, True),
        "embed_dim": (16, 32),
        "num_heads": (2, 4),
        "num_groups": (2, 4),
        "window_size": 2,
        "projection_dim": 32,
        "drop_path_rate": 0.0,
    }
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        init_std=0.2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id)
    torch.manual_seed(0)
    return Florence2ForConditionalGeneration(config).eval(), processor


ENTRIES = (
    Entry("mllama", mllama, note="images are keys of the cross-attention layers only"),
    Entry("florence2", florence2, images=1, note="encoder-decoder; images are keys of cross-attention"),
)
