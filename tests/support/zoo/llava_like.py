"""Tiny models that put projected patches between their text: LLaVA and what descends from it."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AyaVisionConfig,
    AyaVisionProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Cohere2VisionConfig,
    Cohere2VisionProcessor,
    DeepseekVLConfig,
    DeepseekVLHybridConfig,
    DeepseekVLHybridImageProcessorPil,
    DeepseekVLHybridProcessor,
    DeepseekVLImageProcessorPil,
    DeepseekVLProcessor,
    FastVlmConfig,
    GotOcr2Config,
    GotOcr2ImageProcessorPil,
    GotOcr2Processor,
    InternVLConfig,
    InternVLProcessor,
    JanusConfig,
    JanusImageProcessorPil,
    JanusProcessor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PerceptionLMConfig,
    PerceptionLMProcessor,
    VideoLlavaConfig,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VipLlavaConfig,
)
from zoo.base import Entry
from zoo.tokenizer import tiny_tokenizer
from zoo.without_torchvision import image_processor, images_only

#: Side of an image or tile in pixels; a patch is a quarter of it, or an eighth where 2 x 2 are merged.
SIDE = 56
_SQUARE = {"height": SIDE, "width": SIDE}
_PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def _template(
    user: str, assistant: str, image: str, *, start: str = "", end: str = "", stop: str = "", system: str = ""
) -> str:
    """A chat template: `start`, then each turn between its role's opening and `end` (answers: `stop`)."""
    return (
        start + "{% for message in messages %}"
        "{% if message['role'] == 'user' %}" + user + "{% elif message['role'] == 'assistant' %}" + assistant
        + "{% else %}" + system + "{% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}"
        "{% if message['role'] == 'assistant' %}" + stop + "{% else %}" + end + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + assistant + "{% endif %}"
    )  # fmt: skip


_VICUNA = _template("USER: ", "ASSISTANT:", "<image>\n", system="", end=" ", stop="</s>")
_MISTRAL = _template("[INST] ", "", "<image>\n", end=" [/INST]", stop="</s>")
_QWEN = _template(
    "<|im_start|>user\n", "<|im_start|>assistant\n", "<image>\n",
    system="<|im_start|>system\n", end="<|im_end|>\n", stop="<|im_end|>\n",
)  # fmt: skip
_COHERE = _template(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
    "<image>", start="{{ bos_token }}", system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>",
    end="<|END_OF_TURN_TOKEN|>", stop="<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
)  # fmt: skip
_LLAMA3 = _template(
    "<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|image|>", start="{{ bos_token }}", system="<|start_header_id|>system<|end_header_id|>\n\n",
    end="<|eot_id|>", stop="<|eot_id|>",
)  # fmt: skip


def _text(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """Four layers (VAR leaves the first two and the last alone), four query heads on two key-value heads."""
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


def _vision(model_type: str, patch_size: int = SIDE // 4, **changes: Any) -> dict[str, Any]:
    """Two layers of small weights, so that a patch's feature is mostly its own."""
    return {
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": patch_size,
        **changes,
    }


def _model(config: Any) -> Any:
    """A random model, in whose vision tower every feature is mostly of its own pixels.

    Attention there counts for a tenth; convolutions of stride 2 look ahead, those of stride 1 at one place.
    """
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for name, module in model.named_modules():
        if re.search(r"(out_proj|projection_layer|attn\.proj)$", name):
            module.weight.data *= 0.1
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            near = torch.full((3, 3), 0.1)
            near[(slice(1, None),) * 2 if module.stride == (2, 2) else (1, 1)] = 1.0
            module.weight.data *= near
    return model


def _vicuna_tokenizer(*special: str) -> Any:
    return tiny_tokenizer(*special, bos="<s>", named={"image_token": "<image>"})


def _qwen_tokenizer(**named: str) -> Any:
    return tiny_tokenizer("<|im_start|>", "<|im_end|>", eos="<|endoftext|>", named=named)


def _clip_images() -> Any:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=_SQUARE)


# One grid -----------------------------------------------------------------------------------------------


def llava() -> tuple[Any, Any]:
    tokenizer = _vicuna_tokenizer()
    processor = LlavaProcessor(
        _clip_images(), tokenizer, patch_size=SIDE // 4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=_VICUNA,
    )  # fmt: skip
    config = LlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=_vision("clip_vision_model"),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
    )
    return _model(config), processor


def vipllava() -> tuple[Any, Any]:
    """Features of several layers of the vision tower, side by side."""
    tokenizer = _vicuna_tokenizer()
    processor = LlavaProcessor(
        _clip_images(), tokenizer, patch_size=SIDE // 4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("###Human: ", "###Assistant:", "<image>\n", stop="</s>"),
    )  # fmt: skip
    config = VipLlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=_vision("clip_vision_model"),
        vision_feature_layers=[-2, 1],
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
    )
    return _model(config), processor


def video_llava() -> tuple[Any, Any]:
    tokenizer = _vicuna_tokenizer("<video>")
    images = VideoLlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size=_SQUARE)
    processor = images_only(
        VideoLlavaProcessor, video={}, image_processor=images, tokenizer=tokenizer, patch_size=SIDE // 4,
        chat_template=_template("USER: ", "ASSISTANT:", "<image>", end=" ", stop="</s>"),
    )  # fmt: skip
    config = VideoLlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=_vision("clip_vision_model"),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_seq_length=16,
    )
    return _model(config), processor


def fast_vlm() -> tuple[Any, Any]:
    """The published tower is timm's FastViT; any that gives a map of features does, here a ConvNeXt."""
    tokenizer = _qwen_tokenizer(image_token="<image>")
    processor = LlavaProcessor(
        _clip_images(), tokenizer, patch_size=8, vision_feature_select_strategy="full",
        num_additional_image_tokens=0, chat_template=_QWEN,
    )  # fmt: skip
    tower = {
        "model_type": "convnext", "hidden_size": 32, "num_stages": 2, "hidden_sizes": [16, 32],
        "depths": [1, 1],
    }  # fmt: skip
    config = FastVlmConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config=tower,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=49,
    )
    return _model(config), processor


def deepseek_vl() -> tuple[Any, Any]:
    tokenizer = _deepseek_tokenizer()
    processor = DeepseekVLProcessor(
        DeepseekVLImageProcessorPil(size=_SQUARE), tokenizer, _DEEPSEEK, num_image_tokens=16
    )
    config = DeepseekVLConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=_vision("siglip_vision_model"),
        image_token_id=tokenizer.image_token_id,
    )
    return _model(config), processor


def deepseek_vl_hybrid() -> tuple[Any, Any]:
    """A second vision tower (SAM) with a larger image; both give one feature for each cell."""
    tokenizer = _deepseek_tokenizer()
    images = DeepseekVLHybridImageProcessorPil(
        size=_SQUARE, high_res_size={"height": 2 * SIDE, "width": 2 * SIDE}
    )
    processor = DeepseekVLHybridProcessor(images, tokenizer, _DEEPSEEK, num_image_tokens=16)
    sam = _vision(
        "sam_vision_model", SIDE // 4, image_size=2 * SIDE, output_channels=8, mlp_dim=32,
        global_attn_indexes=[1], window_size=4,
    )  # fmt: skip
    config = DeepseekVLHybridConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=_vision("siglip_vision_model"),
        high_res_vision_config=sam,
        image_token_id=tokenizer.image_token_id,
    )
    return _model(config), processor


_DEEPSEEK = _template(
    "User: ", "Assistant:", "<image_placeholder>", start="{{ bos_token }}", end="\n\n",
    stop="<|end_of_sentence|>",
)  # fmt: skip


def _deepseek_tokenizer() -> Any:
    return tiny_tokenizer(
        bos="<|begin_of_sentence|>", eos="<|end_of_sentence|>", named={"image_token": "<image_placeholder>"}
    )


def janus() -> tuple[Any, Any]:
    """Reads images through its vision tower; the tokens with which it draws some are another matter."""
    tokenizer = tiny_tokenizer(
        "<|User|>", "<|Assistant|>", bos="<|begin_of_sentence|>", eos="<|end_of_sentence|>",
        named={"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>",
               "eoi_token": "<end_of_image>"},
    )  # fmt: skip
    template = _template(
        "<|User|>: ", "<|Assistant|>:", "<image_placeholder>\n", start="{{ bos_token }}", end="\n\n",
        stop="<|end_of_sentence|>",
    )  # fmt: skip
    images = JanusImageProcessorPil(size=_SQUARE)
    processor = JanusProcessor(images, tokenizer, template, num_image_tokens=16)
    vision = _vision("janus_vision_model", projection_dim=32, mlp_ratio=1.0, num_image_tokens=16)
    drawing = {
        "embed_dim": 4, "num_embeddings": 8, "latent_channels": 8, "base_channels": 32, "num_res_blocks": 1,
        "channel_multiplier": [1, 1], "projection_dim": 32, "image_token_embed_dim": 32,
    }  # fmt: skip
    config = JanusConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={k: v for k, v in vision.items() if k not in ("model_type", "intermediate_size")},
        vq_config=drawing,
        image_token_id=tokenizer.image_token_id,
    )
    return _model(config), processor


def got_ocr2() -> tuple[Any, Any]:
    """A SAM tower of 64 x 64 patches, and two strided convolutions to the processor's 256 tokens."""
    tokenizer = tiny_tokenizer(
        "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>", eos="<|endoftext|>"
    )
    side = {"height": 128, "width": 128}
    processor = GotOcr2Processor(GotOcr2ImageProcessorPil(size=side), tokenizer)
    vision = {
        "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "mlp_dim": 16, "image_size": 128, "patch_size": 2, "window_size": 8, "global_attn_indexes": [],
        "initializer_range": 0.02,
    }  # fmt: skip
    config = GotOcr2Config(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=256,
    )
    return _model(config), processor


# Tiles, joined to one large grid ------------------------------------------------------------------------


def _anyres_images(cls: Any) -> Any:
    return cls(size={"shortest_edge": SIDE}, crop_size=_SQUARE, image_grid_pinpoints=_PINPOINTS)


def llava_next() -> tuple[Any, Any]:
    tokenizer = _vicuna_tokenizer()
    processor = LlavaNextProcessor(
        _anyres_images(LlavaNextImageProcessorPil), tokenizer, patch_size=SIDE // 4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=_MISTRAL,
    )  # fmt: skip
    config = LlavaNextConfig(
        text_config={"model_type": "mistral", **_text(tokenizer)},
        vision_config=_vision("clip_vision_model"),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=_PINPOINTS,
    )
    return _model(config), processor


def llava_next_video() -> tuple[Any, Any]:
    tokenizer = _vicuna_tokenizer("<video>")
    processor = images_only(
        LlavaNextVideoProcessor, video={}, image_processor=_anyres_images(LlavaNextImageProcessorPil),
        tokenizer=tokenizer, patch_size=SIDE // 4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=_VICUNA,
    )  # fmt: skip
    config = LlavaNextVideoConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=_vision("clip_vision_model"),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_PINPOINTS,
    )
    return _model(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """Grids of more than two tiles' tokens are shrunk (anyres_max_2); several images are shown small."""
    tokenizer = _qwen_tokenizer(image_token="<image>", video_token="<video>")
    images = LlavaOnevisionImageProcessorPil(size=_SQUARE, image_grid_pinpoints=_PINPOINTS)
    processor = images_only(
        LlavaOnevisionProcessor, video={}, image_processor=images, tokenizer=tokenizer, num_image_tokens=16,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_2", chat_template=_QWEN,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config=_vision("siglip_vision_model", vision_use_head=False),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=_PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    return _model(config), processor


# Tiles, one after the other -----------------------------------------------------------------------------


def internvl() -> tuple[Any, Any]:
    """Tiles of 8 x 8 patches, four of them a token; the thumbnail comes last."""
    tokenizer = _qwen_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )  # fmt: skip
    images = GotOcr2ImageProcessorPil(size=_SQUARE, max_patches=6)
    template = _QWEN.replace("<image>", "<IMG_CONTEXT>")
    processor = images_only(
        InternVLProcessor, video={}, image_processor=images, tokenizer=tokenizer, image_seq_length=16,
        chat_template=template,
    )  # fmt: skip
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config=_vision("internvl_vision", SIDE // 8),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=16,
    )
    return _model(config), processor


def aya_vision() -> tuple[Any, Any]:
    """Every tile after its name (TILE_1 ...), the thumbnail last."""
    tokenizer = tiny_tokenizer(
        *_COHERE_TOKENS, "<image>", "TILE_GLOBAL", *(f"TILE_{i + 1}" for i in range(6)), "<|START_OF_IMG|>",
        "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", bos="<BOS_TOKEN>",
    )  # fmt: skip
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessorPil(size=_SQUARE, max_patches=6), tokenizer, patch_size=SIDE // 8, img_size=SIDE,
        downsample_factor=2, chat_template=_COHERE,
    )  # fmt: skip
    config = AyaVisionConfig(
        text_config={"model_type": "cohere2", **_text(tokenizer, **_COHERE_LAYERS)},
        vision_config=_vision("siglip_vision_model", SIDE // 8, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    return _model(config), processor


def cohere2_vision() -> tuple[Any, Any]:
    """A line break after every tile, the thumbnail last."""
    tokenizer = tiny_tokenizer(
        *_COHERE_TOKENS, bos="<BOS_TOKEN>",
        named={"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "image_token": "<|IMG_PATCH|>",
               "img_line_break_token": "<|IMG_LINE_BREAK|>"},
    )  # fmt: skip
    images = image_processor(
        "transformers.models.cohere2_vision.image_processing_cohere2_vision", "Cohere2VisionImageProcessor",
        size=_SQUARE, max_patches=6, patch_size=4,
    )  # fmt: skip
    processor = Cohere2VisionProcessor(
        images, tokenizer, chat_template=_COHERE.replace("<image>", "<|IMG_PATCH|>")
    )
    config = Cohere2VisionConfig(
        text_config={"model_type": "cohere2", **_text(tokenizer, **_COHERE_LAYERS)},
        vision_config=_vision("siglip_vision_model", SIDE // 8, vision_use_head=False),
        image_token_id=tokenizer.image_token_id,
        alignment_intermediate_size=64,
    )
    return _model(config), processor


_COHERE_TOKENS = (
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
)  # fmt: skip
_COHERE_LAYERS = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "logit_scale": 1.0}


def perception_lm() -> tuple[Any, Any]:
    """Thumbnail first, then tiles. The published tower is timm's PE; CLIP's has a class token, too."""
    tokenizer = tiny_tokenizer(
        "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", bos="<|begin_of_text|>",
        eos="<|end_of_text|>", named={"image_token": "<|image|>", "video_token": "<|video|>"},
    )  # fmt: skip
    images = image_processor(
        "transformers.models.perception_lm.image_processing_perception_lm", "PerceptionLMImageProcessor",
        tile_size=SIDE, max_num_tiles=4,
    )  # fmt: skip
    processor = images_only(
        PerceptionLMProcessor, video={}, image_processor=images, tokenizer=tokenizer, patch_size=SIDE // 8,
        pooling_ratio=2, chat_template=_LLAMA3,
    )  # fmt: skip
    tower = _vision("clip_vision_model", SIDE // 8, model_args={"embed_dim": 32})
    config = PerceptionLMConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=CLIPVisionConfig(**tower),  # a dictionary would be timm's in transformers 5.17
        projector_pooling_ratio=2,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return _model(config), processor


ENTRIES: tuple[Entry, ...] = (
    Entry("llava", llava),
    Entry("vipllava", vipllava),
    Entry("video_llava", video_llava),
    Entry("fast_vlm", fast_vlm),
    Entry("deepseek_vl", deepseek_vl),
    Entry("deepseek_vl_hybrid", deepseek_vl_hybrid),
    Entry("janus", janus, note="reading images; not drawing them"),
    Entry("got_ocr2", got_ocr2, images=1, lacks=("none",), note="one image in every prompt"),
    Entry("llava_next", llava_next),
    Entry("llava_next_video", llava_next_video),
    Entry("llava_onevision", llava_onevision),
    Entry("internvl", internvl),
    Entry("aya_vision", aya_vision),
    Entry("cohere2_vision", cohere2_vision),
    Entry("perception_lm", perception_lm, note="as many tiles in all images of a batch"),
)
