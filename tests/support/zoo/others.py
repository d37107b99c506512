"""Tiny models of the IDEFICS line, of BLIP and of families that put images into their own vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessorPil,
    ChameleonProcessor,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from zoo.base import Entry
from zoo.brightness import say_brightness
from zoo.tokenizer import tiny_tokenizer
from zoo.without_torchvision import images_only


def text_settings(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """A text model of four layers with four query heads on two key-value heads; VAR edits the third."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **changes,
    }


def vision_settings(image_size: Any, patch_size: int, **changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        **changes,
    }


@torch.no_grad()
def mixing_little(model: Any, tower: Any) -> Any:
    """The model, with an encoder of images in which each feature shows its own patch above all."""
    for name, parameter in tower.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight", "down_proj.weight", "dense.weight")):
            parameter.normal_(std=0.002)
    return model


# The IDEFICS line ---------------------------------------------------------------------------------------

_IDEFICS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def idefics2() -> tuple[Any, Any]:
    """Eight perceiver latents an image, of pictures of any shape."""
    named = {"image_boundary_token": "<fake_token_around_image>", "image_token": "<image>"}
    tokenizer = tiny_tokenizer("<end_of_utterance>", bos="<s>", named=named)
    images = Idefics2ImageProcessorPil(
        size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=False
    )
    processor = Idefics2Processor(images, tokenizer, image_seq_len=8, chat_template=_IDEFICS_TEMPLATE)
    config = Idefics2Config(
        text_config={"model_type": "mistral", **text_settings(tokenizer)},
        vision_config=vision_settings(56, 14),
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 8,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
        image_token_id=tokenizer.image_token_id,
    )
    torch.manual_seed(0)
    return Idefics2ForConditionalGeneration(config).eval(), processor


_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))


def idefics3() -> tuple[Any, Any]:
    """Tiles of 4 x 4 tokens, then a thumbnail; the name of a tile is several tokens."""
    tokenizer = tiny_tokenizer(
        "<fake_token_around_image>", "<image>", "<end_of_utterance>",
        bos="<|begin_of_text|>", eos="<|end_of_text|>",
    )  # fmt: skip
    images = Idefics3ImageProcessorPil(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
    template = "{{ bos_token }}" + _IDEFICS_TEMPLATE
    processor = Idefics3Processor(images, tokenizer, image_seq_len=16, chat_template=template)
    config = Idefics3Config(
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        vision_config=vision_settings(64, 8),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    torch.manual_seed(0)
    return Idefics3ForConditionalGeneration(config).eval(), processor


def smolvlm() -> tuple[Any, Any]:
    """As Idefics3, with the tokens of SmolLM2, of which a tile's name is one."""
    tokenizer = tiny_tokenizer(
        "<fake_token_around_image>", "<image>", "<global-img>", *_TILES, "<|im_end|>",
        bos="<|im_start|>", eos="<end_of_utterance>", pad="<|endoftext|>",
    )  # fmt: skip
    images = SmolVLMImageProcessorPil(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
    template = "<|im_start|>" + _IDEFICS_TEMPLATE
    processor = images_only(
        SmolVLMProcessor,
        video={"num_frames": 8, "fps": 1},
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_len=16,
        chat_template=template,
    )
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        vision_config=vision_settings(64, 8),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    torch.manual_seed(0)
    return SmolVLMForConditionalGeneration(config).eval(), processor


# BLIP ---------------------------------------------------------------------------------------------------


def _qformer(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "cross_attention_frequency": 1,
    }


def _seeing(model: Any) -> Any:
    """A new BLIP has queries of zero and a vision tower of almost zero: all images look the same to it."""
    with torch.no_grad():
        for part in (model.vision_model, model.qformer, model.language_projection):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
        model.query_tokens.normal_()
    return model


def blip_2() -> tuple[Any, Any]:
    """Eight queries of a Q-Former before the text of an OPT."""
    tokenizer = tiny_tokenizer(bos="</s>", eos="</s>")
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": 28, "width": 28}), tokenizer, num_query_tokens=8
    )
    config = Blip2Config(
        vision_config=vision_settings(28, 14),
        qformer_config=_qformer(16),
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "init_std": 0.2,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        num_query_tokens=8,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config).eval()
    return _seeing(model), processor


def instructblip() -> tuple[Any, Any]:
    """Eight queries of a Q-Former that reads the question, before the text of a Llama."""
    tokenizer = tiny_tokenizer(bos="<s>")
    reader = tiny_tokenizer(bos="[CLS]", eos="[SEP]", pad="[PAD]")
    images = BlipImageProcessorPil(size={"height": 28, "width": 28})
    processor = InstructBlipProcessor(images, tokenizer, reader, num_query_tokens=8)
    config = InstructBlipConfig(
        vision_config=vision_settings(28, 14),
        qformer_config=_qformer(len(reader)),
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        num_query_tokens=8,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = InstructBlipForConditionalGeneration(config).eval()
    return _seeing(model), processor


# Images as words ----------------------------------------------------------------------------------------


def chameleon() -> tuple[Any, Any]:
    """4 x 4 words of a code book of 512 an image."""
    digits = str.maketrans("0123456789", "ABCDEFGHIJ")
    words = [f"IMGIMG{str(i).translate(digits)}Z" for i in range(512)]
    named = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    tokenizer = tiny_tokenizer(*words, bos="<s>", named=named)
    tokenizer.sep_token = "<reserved08706>"
    tokenizer.add_special_tokens({"sep_token": "<reserved08706>"})
    images = ChameleonImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = ChameleonProcessor(images, tokenizer, image_seq_length=16)
    config = ChameleonConfig(
        **text_settings(tokenizer),
        vq_config={
            "embed_dim": 16,
            "num_embeddings": 512,
            "latent_channels": 16,
            "resolution": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
        },
        vocabulary_map=tokenizer.get_vocab(),
    )
    torch.manual_seed(0)
    model = ChameleonForConditionalGeneration(config).eval()
    coder, words = model.model.vqmodel, tokenizer.convert_tokens_to_ids(words)
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    say_brightness(
        coder, lambda x: coder.quant_conv(coder.encoder(x)), ramp, model.model.embed_tokens.weight, words
    )
    return model, processor


def emu3() -> tuple[Any, Any]:
    """Rows of words of a code book of 512, each with an end-of-line word, for pictures of any shape."""
    named = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    words = [f"<|visual token {i:06d}|>" for i in range(512)]
    tokenizer = tiny_tokenizer(*words, "<|extra_200|>", "<|extra_203|>", eos="<|extra_204|>", named=named)
    tokenizer.bos_token = "<|extra_203|>"  # which the processor writes, not the tokenizer
    processor = Emu3Processor(
        Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=48 * 48), tokenizer, chat_template=_EMU3_TEMPLATE
    )
    config = Emu3Config(
        text_config=text_settings(tokenizer),
        vq_config={
            "codebook_size": 512,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [3],
            "hidden_size": 32,
        },
        vocabulary_map=tokenizer.get_vocab(),
    )
    torch.manual_seed(0)
    model = Emu3ForConditionalGeneration(config).eval()
    coder, words = model.model.vqmodel, tokenizer.convert_tokens_to_ids(words)
    ramp = torch.linspace(-2, 2, 32).expand(1, 4, 3, 32, 32)  # a picture is four frames to it
    say_brightness(
        coder,
        lambda x: coder.quant_conv(coder.encoder(x).transpose(1, 2)),
        ramp,
        model.get_input_embeddings().weight,
        words,
    )
    return model, processor


_EMU3_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}"
    "{% endif %}{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

ENTRIES = (
    Entry("idefics2", idefics2, note="resampled: image tokens have no place"),
    Entry("idefics3", idefics3),
    Entry("smolvlm", smolvlm),
    Entry("blip-2", blip_2, images=1, lacks=("none",), note="resampled: image tokens have no place"),
    Entry(
        "instructblip", instructblip, images=1, lacks=("none",), note="resampled: image tokens have no place"
    ),
    Entry("chameleon", chameleon),
    Entry(
        "emu3",
        emu3,
        sizes=((56, 56), (56, 56)),
        note="pictures of different sizes in a batch are padded before they become words",
    ),
)
