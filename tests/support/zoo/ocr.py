"""Tiny readers of documents: Qianfan-OCR, LightOnOCR, GLM-OCR; and Apertus 1.5, whose images are words."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from zoo.base import Entry
from zoo.brightness import say_brightness
from zoo.qwen import PIXELS, glm, seeded, template, text_settings
from zoo.tokenizer import tiny_tokenizer
from zoo.without_torchvision import image_processor

_CHATML = {
    "user": ("<|im_start|>user\n", "<|im_end|>\n"),
    "system": ("<|im_start|>system\n", "<|im_end|>\n"),
    "assistant": "<|im_start|>assistant\n",
}


def glm_ocr() -> tuple[Any, Any]:
    """The model of GLM-4.1V, smaller."""
    classes = hf.GlmOcrConfig, hf.GlmOcrForConditionalGeneration, hf.Glm46VProcessor
    return glm(*classes, hf.Glm46VImageProcessorPil(size=PIXELS), head_dim=16)


def qianfan_ocr() -> tuple[Any, Any]:
    """Tiles of 8 x 8 patches, four of them a token; the thumbnail comes last."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    tokenizer = tiny_tokenizer("<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", named=named)
    images = hf.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, max_patches=6)
    processor = hf.QianfanOCRProcessor(
        images, tokenizer, image_seq_length=16, chat_template=template("<image>\n", **_CHATML)
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 7,
    }
    config = hf.QianfanOCRConfig(
        text_config={"model_type": "qwen3", **text_settings(tokenizer), "head_dim": 16},
        vision_config=vision,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=16,
    )
    return seeded(hf.QianfanOCRForConditionalGeneration, config), processor


def lighton_ocr() -> tuple[Any, Any]:
    """Images of any shape, 2 x 2 patches a token, no token between rows."""
    named = {
        "image_token": "<|image_pad|>",
        "image_break_token": "<|vision_pad|>",
        "image_end_token": "<|vision_end|>",
    }
    tokenizer = tiny_tokenizer("<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", named=named)
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=28)
    processor = hf.LightOnOcrProcessor(
        images, tokenizer, patch_size=14, chat_template=template("<|image_pad|>", **_CHATML)
    )
    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "image_size": 112,
        "patch_size": 14,
    }
    config = hf.LightOnOcrConfig(
        text_config={"model_type": "qwen3", **text_settings(tokenizer), "head_dim": 16},
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    return seeded(hf.LightOnOcrForConditionalGeneration, config), processor


def apertus1p5() -> tuple[Any, Any]:
    """Rows of words of a code book of 512, a line's end between them; it answers in words of text alone."""
    named = {
        "image_token": "<|image|>",
        "audio_token": "<|audio|>",
        "boi_token": "<|img_start|>",
        "eoi_token": "<|img_end|>",
        "image_wrapper_token": "<|img_token_start|>",
        "eol_token": "<|img_end_of_row|>",
        "boa_token": "<|audio_start|>",
        "eoa_token": "<|audio_end|>",
    }
    roles = ("<|user_start|>", "<|assistant_start|>", "<|system_start|>", "<|turn_end|>")
    tokenizer = tiny_tokenizer(*roles, bos="<s>", eos="<|assistant_end|>", named=named)
    images = image_processor(
        "transformers.models.apertus1p5.image_processing_apertus1p5",
        "Apertus1p5ImageProcessor",
        size={"min_pixels": 32 * 32, "max_pixels": 48 * 48},
        spatial_factor=8,
    )
    processor = hf.Apertus1p5Processor(
        image_processor=images,
        feature_extractor=hf.WavTokenizerFeatureExtractor(),
        tokenizer=tokenizer,
        chat_template=template(
            "<|image|>",
            user=("<|user_start|>", "<|turn_end|>"),
            system=("<|system_start|>", "<|turn_end|>"),
            assistant="<|assistant_start|>",
            start="{{ bos_token }}",
        ),
    )
    words, codes = len(tokenizer), 512
    vision = {
        "codebook_size": codes,
        "embed_dim": 32,
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
    }
    audio = {
        "model_type": "wavtokenizer_encoder",
        "num_filters": 4,
        "upsampling_ratios": [2, 2],
        "num_lstm_layers": 1,
        "hidden_size": 16,
        "codebook_size": 8,
        "codebook_dim": 16,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = {**text_settings(tokenizer), "vocab_size": words + codes + 8, "output_vocab_size": words}
    config = hf.Apertus1p5Config(
        text_config={**text, "rope_parameters": rope},
        vision_config=vision,
        audio_config=audio,
        image_token_id=tokenizer.image_token_id,
        audio_token_id=tokenizer.audio_token_id,
        image_token_offset=words,
        audio_token_offset=words + codes,
    )
    model = seeded(hf.Apertus1p5ForConditionalGeneration, config)
    _see_brightness(model, list(range(words, words + codes)))
    return model, processor


@torch.no_grad()
def _see_brightness(model: Any, words: list[int]) -> None:
    """Codes as `say_brightness` makes them, for a code book that takes the code of the largest product.

    With a last channel of 1, the product t h - t^2 / 2 of a latent h with the code of brightness t is largest
    for the nearest t.
    """
    coder = model.model.vision_tokenizer
    ramp = torch.linspace(-1, 1, 48).expand(1, 3, 48, 48)
    say_brightness(
        coder, lambda x: coder.quant_conv(coder.encoder(x)), ramp, model.get_input_embeddings().weight, words
    )
    steps = coder.quantize.embedding.weight[:, 0].clone()
    coder.quant_conv.weight[-1] = 0.0
    coder.quant_conv.bias[-1] = 1.0
    coder.quantize.embedding.weight[:, :-1] /= coder.quant_conv.out_channels - 1
    coder.quantize.embedding.weight[:, -1] = -steps.square() / 2


ENTRIES = (
    Entry("glm_ocr", glm_ocr, note="images; videos count as images"),
    Entry("qianfan_ocr", qianfan_ocr),
    Entry("lighton_ocr", lighton_ocr),
    Entry("apertus1p5", apertus1p5, note="text and images"),
)
