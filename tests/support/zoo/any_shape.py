"""Tiny models that came after Qwen3-VL and see pictures in their own shape, as it does."""

from __future__ import annotations

from typing import Any

import transformers as hf
from zoo.base import Entry
from zoo.qwen import PIXELS, on_three_axes, seeded, template, text_settings
from zoo.tokenizer import tiny_tokenizer
from zoo.without_torchvision import images_only

_CHATML = {
    "user": ("<|im_start|>user\n", "<|im_end|>\n"),
    "system": ("<|im_start|>system\n", "<|im_end|>\n"),
    "assistant": "<|im_start|>assistant\n",
}
_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def _tokenizer() -> Any:
    return tiny_tokenizer("<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", named=_TOKENS)


def _processor(processor_class: Any, images: Any, tokenizer: Any) -> Any:
    return images_only(
        processor_class,
        video={"merge_size": 2, "temporal_patch_size": 2},
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>", **_CHATML),
    )


def _ids(tokenizer: Any) -> dict[str, int]:
    return {name: getattr(tokenizer, name) for name in ("image_token_id", "video_token_id")}


def _qwen_images(patch_size: int = 14) -> Any:
    return hf.Qwen2VLImageProcessorPil(patch_size=patch_size, size=PIXELS)


_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}


def exaone4_5() -> tuple[Any, Any]:
    """Positions count tokens, also those of an image; layers without positions among sliding ones."""
    tokenizer = _tokenizer()
    processor = _processor(hf.Exaone4_5_Processor, _qwen_images(), tokenizer)
    layers = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    text = {"model_type": "exaone4", **text_settings(tokenizer), "sliding_window": 6, "layer_types": layers}
    config = hf.Exaone4_5_Config(
        text_config=text, vision_config={**_VISION, "num_key_value_heads": 1}, **_ids(tokenizer)
    )
    return seeded(hf.Exaone4_5_ForConditionalGeneration, config), processor


def hyperclovax_vision_v2() -> tuple[Any, Any]:
    """The image encoder of Qwen2.5-VL before a language model with scaled logits and attention."""
    tokenizer = _tokenizer()
    processor = _processor(hf.HyperCLOVAXVisionV2Processor, _qwen_images(), tokenizer)
    text = {
        "model_type": "hyperclovax",
        **text_settings(tokenizer),
        "logits_scaling": 0.5,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.7,
    }
    config = hf.HyperCLOVAXVisionV2Config(
        text_config=text,
        vision_config={"model_type": "qwen2_5_vl_vision", **_VISION},
        tie_word_embeddings=False,
        **_ids(tokenizer),
    )
    return seeded(hf.HyperCLOVAXVisionV2ForConditionalGeneration, config), processor


def video_llama_3() -> tuple[Any, Any]:
    """One patch a token, unless the processor is told otherwise."""
    tokenizer = _tokenizer()
    images = hf.VideoLlama3ImageProcessorPil(min_pixels=56 * 56, max_pixels=84 * 84)
    processor = _processor(hf.VideoLlama3Processor, images, tokenizer)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
    }
    text = {"model_type": "qwen2", **text_settings(tokenizer)}
    config = hf.VideoLlama3Config(text_config=text, vision_config=vision, **_ids(tokenizer))
    return seeded(hf.VideoLlama3ForConditionalGeneration, config), processor


def lfm3_vl() -> tuple[Any, Any]:
    """Convolutions, sliding and full attention, in the image encoder and in the language model."""
    tokenizer = _tokenizer()
    processor = _processor(hf.Lfm3VlProcessor, _qwen_images(patch_size=16), tokenizer)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "layer_types": ["conv", "full_attention"],
        "initializer_range": 0.2,
    }
    text = {
        "model_type": "lfm3",
        **text_settings(tokenizer),
        "head_dim": 16,
        "sliding_window": 6,
        "layer_types": ["conv", "sliding_attention", "full_attention", "sliding_attention"],
    }
    config = hf.Lfm3VlConfig(
        text_config=text,
        vision_config=vision,
        projector_hidden_size=64,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
        **_ids(tokenizer),
    )
    return seeded(hf.Lfm3VlForConditionalGeneration, config), processor


def hy_v4_vl() -> tuple[Any, Any]:
    """Rows end in a newline token; few of the keys are seen by a query, next to a sink, in four streams."""
    tokenizer = _tokenizer()
    images = hf.HYV4VLImageProcessorPil(size={"shortest_edge": 64 * 64, "longest_edge": 128 * 128})
    processor = _processor(hf.HYV4VLProcessor, images, tokenizer)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "out_hidden_size": 64,
        "max_image_size": 128,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = {
        **text_settings(tokenizer),
        "rope_parameters": rope,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "index_topk": 8,
        "index_head_dim": 16,
        "index_n_heads": 8,
        "indexer_types": ["full", "shared", "full", "shared"],
        "learnable_sink_init": 0.5,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }
    config = hf.HYV4VLConfig(text_config=text, vision_config=vision, **_ids(tokenizer))
    return seeded(hf.HYV4VLForConditionalGeneration, config), processor


def qwen4_exp() -> tuple[Any, Any]:
    """Recurrent layers, and one whose queries see few of the keys; two streams, side by side."""
    tokenizer = _tokenizer()
    processor = _processor(hf.Qwen3VLProcessor, _qwen_images(patch_size=16), tokenizer)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 64,
    }
    text = {
        **on_three_axes(tokenizer),
        "head_dim": 16,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    }
    config = hf.Qwen4ExpConfig(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
        **_ids(tokenizer),
    )
    return seeded(hf.Qwen4ExpForConditionalGeneration, config), processor


_STREAMS = "several residual streams: methods that read hidden states raise"
_VIDEOS = "frames of videos are views"

ENTRIES = (
    Entry("exaone4_5", exaone4_5, note=_VIDEOS),
    Entry("hyperclovax_vision_v2", hyperclovax_vision_v2, note=_VIDEOS),
    Entry("video_llama_3", video_llama_3, note=_VIDEOS),
    Entry("lfm3_vl", lfm3_vl, note=f"{_VIDEOS}; layers without attention are left alone"),
    Entry("hy_v4_vl", hy_v4_vl, note=f"{_STREAMS}; eager", lacks=("hidden",)),
    Entry("qwen4_exp", qwen4_exp, note=_STREAMS, lacks=("hidden",)),
)
