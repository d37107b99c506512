"""Tiny models whose images are broken rows (Pixtral), tiles (Llama 4, LFM2, MiniCPM) or latents (Aria)."""

from __future__ import annotations

from functools import partial
from typing import Any

import transformers as hf
from transformers.image_processing_backends import TorchvisionBackend
from zoo.base import Entry
from zoo.qwen import RECURRENT, seeded, template, text_settings
from zoo.tokenizer import tiny_tokenizer
from zoo.without_torchvision import from_module, image_processor, images_only

_CHATML = {
    "user": ("<|im_start|>user\n", "<|im_end|>\n"),
    "system": ("<|im_start|>system\n", "<|im_end|>\n"),
    "assistant": "<|im_start|>assistant\n",
}
_TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


# Pixtral's layout -----------------------------------------------------------------------------------------


def _pixtral_processor(merge: int) -> Any:
    special = (
        "[INST]",
        "[/INST]",
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
    )
    processor_class = from_module("transformers.models.pixtral.processing_pixtral", "PixtralProcessor")
    return processor_class(
        hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14),
        tiny_tokenizer(*special, bos="<s>"),
        patch_size=14,
        spatial_merge_size=merge,
        chat_template=template(
            "[IMG]",
            user=("[INST]", "[/INST]"),
            assistant="",
            start="{{ bos_token }}",
            system=("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        ),
    )


def _pixtral_tower() -> dict[str, Any]:
    return {**_TOWER, "model_type": "pixtral", "image_size": 112, "patch_size": 14}


def mistral3() -> tuple[Any, Any]:
    """Images of any shape, a break after each row; 2 x 2 patches a token."""
    processor = _pixtral_processor(merge=2)
    text = text_settings(processor.tokenizer, model_type="mistral", head_dim=16, sliding_window=None)
    config = hf.Mistral3Config(
        vision_config=_pixtral_tower(),
        text_config=text,
        image_token_index=processor.image_token_id,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return seeded(hf.Mistral3ForConditionalGeneration, config), processor


def pixtral() -> tuple[Any, Any]:
    """LLaVA's class around a Pixtral tower."""
    processor = _pixtral_processor(merge=1)
    text = text_settings(processor.tokenizer, model_type="mistral", head_dim=16, sliding_window=None)
    config = hf.LlavaConfig(
        vision_config=_pixtral_tower(),
        text_config=text,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=1,
    )
    return seeded(hf.LlavaForConditionalGeneration, config), processor


# Tiles ----------------------------------------------------------------------------------------------------


def llama4() -> tuple[Any, Any]:
    """Tiles of 2 x 2 cells and one of the whole image; experts; a layer without positions."""
    special = (
        "<|header_start|>",
        "<|header_end|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|image|>",
    )
    special += ("<|tile_x_separator|>", "<|tile_y_separator|>")
    tokenizer = tiny_tokenizer(*special, bos="<|begin_of_text|>", eos="<|eot|>", pad="<|finetune_right_pad|>")
    images = image_processor(
        "transformers.models.llama4.image_processing_llama4",
        "Llama4ImageProcessor",
        size={"height": 56, "width": 56},
        max_patches=4,
    )
    images.rescale_and_normalize = partial(TorchvisionBackend.rescale_and_normalize, images)  # its own: bf16
    processor = hf.Llama4Processor(images, tokenizer, patch_size=14)
    vision = {
        **_TOWER,
        "image_size": 56,
        "patch_size": 14,
        "vision_output_dim": 64,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "intermediate_size": 128,
    }
    text = text_settings(
        tokenizer,
        head_dim=16,
        intermediate_size_mlp=64,
        num_local_experts=2,
        moe_layers=[1, 3],
        no_rope_layers=[1, 0, 1, 0],
        attention_chunk_size=256,
    )
    config = hf.Llama4Config(
        vision_config=vision,
        text_config=text,
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    return seeded(hf.Llama4ForConditionalGeneration, config), processor


def lfm2_vl() -> tuple[Any, Any]:
    """Short convolutions instead of attention in the outer layers; tiles of 2 x 2 tokens and a thumbnail."""
    special = ("<|im_start|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    special += tuple(f"<|img_row_{row}_col_{column}|>" for row in (1, 2, 3, 4) for column in (1, 2, 3, 4))
    tokenizer = tiny_tokenizer(*special, bos="<|startoftext|>", eos="<|im_end|>", pad="<|pad|>")
    images = image_processor(
        "transformers.models.lfm2_vl.image_processing_lfm2_vl",
        "Lfm2VlImageProcessor",
        encoder_patch_size=8,
        tile_size=32,
        min_image_tokens=2,
        max_image_tokens=8,
        max_tiles=4,
        max_pixels_tolerance=1.5,
    )
    processor = hf.Lfm2VlProcessor(
        images, tokenizer, chat_template=template("<image>", start="{{ bos_token }}", **_CHATML)
    )
    vision = {**_TOWER, "model_type": "siglip2_vision_model", "patch_size": 8, "num_patches": 16}
    vision["vision_use_head"] = False
    text = text_settings(
        tokenizer, model_type="lfm2", layer_types=["conv", "full_attention", "full_attention", "conv"]
    )
    config = hf.Lfm2VlConfig(
        vision_config=vision,
        text_config={**text, "block_auto_adjust_ff_dim": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=64,
    )
    model = seeded(hf.Lfm2VlForConditionalGeneration, config)
    for name, parameter in model.model.vision_tower.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight")):
            parameter.data *= 0.1  # else a patch's feature is mostly that of others
    return model, processor


def minicpmv4_6() -> tuple[Any, Any]:
    """Three of four layers are recurrent; an image as a whole, then its slices, 4 x 4 patches a token."""
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tokenizer = tiny_tokenizer("<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", named=named)
    processor = images_only(
        hf.MiniCPMV4_6Processor,
        video={"slice_mode": True, "downsample_mode": "16x"},
        image_processor=hf.MiniCPMV4_6ImageProcessorPil(scale_resolution=64, patch_size=8, max_slice_nums=4),
        tokenizer=tokenizer,
        chat_template=template("<|image_pad|>\n", **_CHATML),
    )
    text = text_settings(tokenizer, model_type="qwen3_5_text", **RECURRENT)
    config = hf.MiniCPMV4_6Config(
        text_config=text,
        vision_config={**_TOWER, "image_size": 64, "patch_size": 8},
        insert_layer_id=0,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return seeded(hf.MiniCPMV4_6ForConditionalGeneration, config), processor


# Latents --------------------------------------------------------------------------------------------------


def aria() -> tuple[Any, Any]:
    """Four latents look at an image's 7 x 7 patches and are all that the language model gets of it."""
    tokenizer = tiny_tokenizer(
        "<|im_start|>", "fim_prefix", "fim_suffix", eos="<|im_end|>", named={"image_token": "<|img|>"}
    )
    processor = hf.AriaProcessor(
        hf.AriaImageProcessorPil(),
        tokenizer,
        chat_template=template("<fim_prefix><|img|><fim_suffix>", **_CHATML),
        size_conversion={980: 4},
    )
    vision = {**_TOWER, "model_type": "idefics3_vision", "image_size": 980, "patch_size": 140}
    text = text_settings(
        tokenizer, model_type="aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
    )
    config = hf.AriaConfig(
        vision_config=vision,
        text_config=text,
        projector_patch_to_query_dict={49: 4},
        image_token_index=tokenizer.image_token_id,
        initializer_range=0.2,
    )
    return seeded(hf.AriaForConditionalGeneration, config), processor


ENTRIES = (
    Entry("mistral3", mistral3),
    Entry("llava", pixtral, note="Pixtral: LLaVA's class around a Pixtral tower"),
    Entry("llama4", llama4, note="tiles; how much of them is image is read from the pixels"),
    Entry("lfm2_vl", lfm2_vl, note="tiles; layers without attention are left alone"),
    Entry("minicpmv4_6", minicpmv4_6, note="slices; layers without attention are left alone"),
    Entry("aria", aria, note="latents: image tokens without a grid"),
)
