"""Tiny models whose rotary positions count time, rows and columns: Qwen-VL, GLM-4V and ERNIE 4.5 VL."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from zoo.base import Entry
from zoo.tokenizer import tiny_tokenizer
from zoo.without_torchvision import images_only

PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}


def text_settings(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """The language model: 4 layers, 4 query heads on 2 key-value heads of width 16."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def on_three_axes(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """A language model with M-RoPE: of 8 frequencies 4 turn with time, 2 with height, 2 with width."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    return {**text_settings(tokenizer, rope_parameters=rope), **more}


#: A language model of Qwen 3.5's kind, with attention in one layer.
RECURRENT: dict[str, Any] = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def seeded(model_class: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return model_class(config).eval()


def template(
    image: str, user: tuple[str, str], assistant: str, start: str = "", system: tuple[str, str] = ("", "")
) -> str:
    """A chat template: parts of a message in turn, between what opens and closes a user's or system message.

    Args:
        image: what stands for an image.
        user, system: text before and after a message; the assistant's is closed like the user's.
        assistant: text before an answer.
        start: text before everything.
    """
    return (
        f"{start}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{user[0]}{{% elif message['role'] == 'system' %}}{system[0]}"
        f"{{% else %}}{assistant}{{% endif %}}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}{% endif %}"
        f"{{% if message['role'] == 'system' %}}{system[1]}{{% else %}}{user[1]}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


# Qwen ---------------------------------------------------------------------------------------------------

_CHATML = {
    "user": ("<|im_start|>user\n", "<|im_end|>\n"),
    "system": ("<|im_start|>system\n", "<|im_end|>\n"),
    "assistant": "<|im_start|>assistant\n",
}
_HELPFUL = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}"
)


def _qwen_tokenizer() -> Any:
    special = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    return tiny_tokenizer(*special, eos="<|im_end|>", pad="<|endoftext|>")


def _qwen_images(patch_size: int = 14) -> Any:
    return hf.Qwen2VLImageProcessorPil(patch_size=patch_size, size=PIXELS)


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _qwen(
    config_class: Any,
    model_class: Any,
    processor_class: Any,
    vision: dict[str, Any],
    text: dict[str, Any] | None = None,
    start: str = _HELPFUL,
) -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer()
    processor = images_only(
        processor_class,
        video={"merge_size": 2},
        image_processor=_qwen_images(vision.get("patch_size", 14)),
        tokenizer=tokenizer,
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>", start=start, **_CHATML),
    )
    config = config_class(
        text_config=on_three_axes(tokenizer, **(text or {})), vision_config=vision, **_qwen_ids(tokenizer)
    )
    return seeded(model_class, config), processor


def qwen2_vl() -> tuple[Any, Any]:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    return _qwen(hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLProcessor, vision)


_QWEN2_5_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}


def qwen2_5_vl() -> tuple[Any, Any]:
    """The first layer of its image encoder attends within windows of 2 x 2 cells."""
    classes = hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLProcessor
    return _qwen(*classes, _QWEN2_5_VISION)


_QWEN3_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 16,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0],
}


def qwen3_vl() -> tuple[Any, Any]:
    """Features of an inner layer of the image encoder are added to the first decoder layer's outputs."""
    classes = hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLProcessor
    return _qwen(*classes, _QWEN3_VISION, {"head_dim": 16}, start="")


def qwen3_vl_moe() -> tuple[Any, Any]:
    classes = hf.Qwen3VLMoeConfig, hf.Qwen3VLMoeForConditionalGeneration, hf.Qwen3VLProcessor
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
    return _qwen(*classes, _QWEN3_VISION, experts, start="")


def qwen3_5() -> tuple[Any, Any]:
    """Three of four layers are recurrent."""
    vision = {name: value for name, value in _QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
    classes = hf.Qwen3_5Config, hf.Qwen3_5ForConditionalGeneration, hf.Qwen3VLProcessor
    return _qwen(*classes, vision, RECURRENT, start="")


def qwen3_5_moe() -> tuple[Any, Any]:
    vision = {name: value for name, value in _QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
    classes = hf.Qwen3_5MoeConfig, hf.Qwen3_5MoeForConditionalGeneration, hf.Qwen3VLProcessor
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return _qwen(*classes, vision, {**RECURRENT, **experts, "shared_expert_intermediate_size": 32}, start="")


def _omni(processor_class: Any, start: str, patch_size: int = 14) -> Any:
    named = {
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    return images_only(
        processor_class,
        video={"merge_size": 2},
        image_processor=_qwen_images(patch_size),
        feature_extractor=hf.WhisperFeatureExtractor(feature_size=16),
        tokenizer=tiny_tokenizer("<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", named=named),
        chat_template=template("<|vision_bos|><|IMAGE|><|vision_eos|>", start=start, **_CHATML),
    )


_HEARING = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "output_dim": 64,
    "max_source_positions": 32,
}


def qwen2_5_omni() -> tuple[Any, Any]:
    """The thinker: text and images; sound and speech are left out."""
    processor = _omni(hf.Qwen2_5OmniProcessor, _HELPFUL)
    tokenizer = processor.tokenizer
    config = hf.Qwen2_5OmniThinkerConfig(
        text_config=on_three_axes(tokenizer),
        vision_config=_QWEN2_5_VISION,
        audio_config=_HEARING,
        image_token_index=tokenizer.image_token_id,
        audio_token_index=tokenizer.audio_token_id,
        video_token_index=tokenizer.video_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        audio_end_token_id=tokenizer.audio_eos_token_id,
        initializer_range=0.2,
    )
    config.vision_start_token_id = tokenizer.vision_bos_token_id
    return seeded(hf.Qwen2_5OmniThinkerForConditionalGeneration, config), processor


def qwen3_omni_moe() -> tuple[Any, Any]:
    """The thinker, as of Qwen2.5-Omni, with experts."""
    processor = _omni(hf.Qwen3OmniMoeProcessor, "", patch_size=16)
    tokenizer = processor.tokenizer
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = hf.Qwen3OmniMoeThinkerConfig(
        text_config=on_three_axes(tokenizer, **experts),
        vision_config=_QWEN3_VISION,
        audio_config={**_HEARING, "downsample_hidden_size": 8},
        image_token_id=tokenizer.image_token_id,
        audio_token_id=tokenizer.audio_token_id,
        video_token_id=tokenizer.video_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        initializer_range=0.2,
    )
    config.vision_start_token_id = tokenizer.vision_bos_token_id
    return seeded(hf.Qwen3OmniMoeThinkerForConditionalGeneration, config), processor


# The like ---------------------------------------------------------------------------------------------


_GLM_TOKENS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
_GLM_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "image_size": 112,
}


def glm(
    config_class: Any, model_class: Any, processor_class: Any, images: Any, **text: Any
) -> tuple[Any, Any]:
    special = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", *_GLM_TOKENS.values())
    tokenizer = tiny_tokenizer(*special, eos="<|user_end|>", pad="<|endoftext|>")
    processor = images_only(
        processor_class,
        video={"merge_size": 2},
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=template(
            "<|begin_of_image|><|image|><|end_of_image|>",
            user=("<|user|>\n", ""),
            assistant="<|assistant|>\n",
            start="[gMASK]<sop>",
            system=("<|system|>\n", ""),
        ),
    )
    config = config_class(
        text_config=on_three_axes(tokenizer, **text),
        vision_config=_GLM_VISION,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in _GLM_TOKENS.items()},
    )
    return seeded(model_class, config), processor


def glm4v() -> tuple[Any, Any]:
    classes = hf.Glm4vConfig, hf.Glm4vForConditionalGeneration, hf.Glm4vProcessor
    return glm(*classes, hf.Glm4vImageProcessorPil(size=PIXELS))


def glm4v_moe() -> tuple[Any, Any]:
    """A dense layer, then experts; half of a head's dimensions turn with positions."""
    classes = hf.Glm4vMoeConfig, hf.Glm4vMoeForConditionalGeneration, hf.Glm4vProcessor
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return glm(*classes, hf.Glm4vImageProcessorPil(size=PIXELS), rope_parameters=rope, **experts)


def glm46v() -> tuple[Any, Any]:
    """The models of GLM-4.1V with another processor."""
    classes = hf.Glm46VConfig, hf.Glm46VForConditionalGeneration, hf.Glm46VProcessor
    return glm(*classes, hf.Glm46VImageProcessorPil(size=PIXELS), model_type="glm4v_text")


def ernie4_5_vl_moe() -> tuple[Any, Any]:
    """Experts of their own for text and for image tokens."""
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    tokenizer = tiny_tokenizer(bos="<|begin_of_sentence|>", eos="<|end_of_sentence|>", named=named)
    processor = images_only(
        hf.Ernie4_5_VLMoeProcessor,
        video={"merge_size": 2, "temporal_patch_size": 2},
        image_processor=hf.Ernie4_5_VLMoeImageProcessorPil(size=PIXELS),
        tokenizer=tokenizer,
        chat_template=template(
            "Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
            user=("User: ", "\n"),
            assistant="Assistant: ",
            start="{{ bos_token }}",
            system=("", "\n"),
        ),
    )
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    experts = {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": [32, 16],
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 4]}  # height, width, time
    text = {**text_settings(tokenizer), "rope_parameters": rope, "mlp_layer_types": ["dense", "sparse"] * 2}
    config = hf.Ernie4_5_VLMoeConfig(
        text_config={**text, **experts},
        vision_config=vision,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()},
    )
    return seeded(hf.Ernie4_5_VLMoeForConditionalGeneration, config), processor


_VIDEOS = "frames of videos are views"
_SPARSE = "layers without attention are left alone"

ENTRIES = (
    Entry("qwen2_vl", qwen2_vl, note=_VIDEOS),
    Entry("qwen2_5_vl", qwen2_5_vl, note=_VIDEOS),
    Entry("qwen3_vl", qwen3_vl, note=_VIDEOS),
    Entry("qwen3_vl_moe", qwen3_vl_moe, note=_VIDEOS),
    Entry("qwen3_5", qwen3_5, note=_SPARSE),
    Entry("qwen3_5_moe", qwen3_5_moe, note=_SPARSE),
    Entry("qwen2_5_omni_thinker", qwen2_5_omni, note="wrap the thinker; text and images"),
    Entry("qwen3_omni_moe_thinker", qwen3_omni_moe, note="wrap the thinker; text and images"),
    Entry("glm4v", glm4v, note="images; videos count as images"),
    Entry("glm4v_moe", glm4v_moe, note="images; videos count as images"),
    Entry("glm46v", glm46v, note="images; videos count as images"),
    Entry("ernie4_5_vl_moe", ernie4_5_vl_moe, note=_VIDEOS),
)
