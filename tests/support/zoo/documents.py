"""Tiny models of Ovis2, KOSMOS, Phi-4 multimodal, and readers of documents."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from zoo.base import Entry
from zoo.others import mixing_little, text_settings, vision_settings
from zoo.tokenizer import tiny_tokenizer
from zoo.without_torchvision import HAS_TORCHVISION, image_processor, images_only


def ovis2() -> tuple[Any, Any]:
    """A small picture of the whole, then tiles of 2 x 2 tokens; an image token mixes words of 32."""
    atoms = {"image_token": "<image>"}
    marks = ("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = tiny_tokenizer(*marks, "<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", named=atoms)
    images = hf.Ovis2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    processor = hf.Ovis2Processor(
        images, tokenizer, image_seq_length=4, chat_template=_CHATML.format("<image>\n")
    )
    ids = tokenizer.convert_tokens_to_ids(list(marks))
    config = hf.Ovis2Config(
        text_config={"model_type": "qwen2", **text_settings(tokenizer)},
        vision_config=vision_settings(28, 14, vocab_size=37, initializer_range=0.2),
        image_token_id=ids[0],
        visual_indicator_token_ids=ids[1:],
        vocab_size=len(tokenizer),
        hidden_size=32,
    )
    torch.manual_seed(0)
    model = hf.Ovis2ForConditionalGeneration(config).eval()
    return mixing_little(model, model.model.vision_tower), processor


_CHATML = (
    "{{% for message in messages %}}{{{{ '<|im_start|>' + message['role'] + '\n' }}}}"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{}"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "{{{{ '<|im_end|>\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
)


# KOSMOS -------------------------------------------------------------------------------------------------


def _kosmos_text(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "embed_dim": 32,
        "layers": 4,
        "ffn_dim": 64,
        "attention_heads": 4,
        "max_position_embeddings": 256,
        "init_std": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def kosmos2() -> tuple[Any, Any]:
    """Eight latent queries per image, with the ids after <unk>."""
    tokenizer = tiny_tokenizer(bos="<s>", named={"unk_token": "<unk>"})
    size = {"height": 28, "width": 28}
    images = hf.CLIPImageProcessorPil(size=size, crop_size=size)
    processor = hf.Kosmos2Processor(images, tokenizer, 16)
    processor.num_image_tokens = 8
    config = hf.Kosmos2Config(
        text_config=_kosmos_text(tokenizer), vision_config=vision_settings(28, 14), latent_query_num=8
    )
    torch.manual_seed(0)
    return hf.Kosmos2ForConditionalGeneration(config).eval(), processor


def kosmos2_5() -> tuple[Any, Any]:
    """Eight latent queries an image, of patches in its own shape; ids of <s>."""
    named = {"boi_token": "<image>", "eoi_token": "</image>", "image_token": "<s>"}
    tokenizer = tiny_tokenizer("<md>", "<ocr>", named=named)
    tokenizer.bos_token = "<s>"  # which the processor writes, not the tokenizer
    images = hf.Kosmos2_5ImageProcessorPil(patch_size={"height": 8, "width": 8}, max_patches=24)
    processor = hf.Kosmos2_5Processor(images, tokenizer, num_image_tokens=8)
    if hasattr(processor, "images_kwargs"):  # 4096 otherwise, and in transformers 5.17
        processor.images_kwargs = {**processor.images_kwargs, "max_patches": 24}
    vision = {
        "hidden_size": 32,
        "patch_embed_hidden_size": 192,
        "intermediate_size": 32,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
    }
    config = hf.Kosmos2_5Config(text_config=_kosmos_text(tokenizer), vision_config=vision, latent_query_num=8)
    torch.manual_seed(0)
    return hf.Kosmos2_5ForConditionalGeneration(config).eval(), processor


# Phi-4 --------------------------------------------------------------------------------------------------


def phi4_multimodal() -> tuple[Any, Any]:
    """Crops in one grid, without what is padding, then the whole picture; rows end in a newline token.

    Its processor counts tokens for crops of 448 pixels with patches of 14 and no others.
    """
    named = {"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"}
    tokenizer = tiny_tokenizer(
        "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", eos="<|endoftext|>", named=named
    )
    images = _phi4_images()
    template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|endoftext10|>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    processor = hf.Phi4MultimodalProcessor(
        images, hf.Phi4MultimodalFeatureExtractor(), tokenizer, chat_template=template
    )
    audio = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_blocks": 1,
        "num_attention_heads": 2,
        "ext_pw_out_channel": 16,
        "depthwise_separable_out_channel": 16,
        "nemo_conv_channels": 16,
        "audio_token_id": tokenizer.audio_token_id,
    }
    vision = vision_settings(448, 14, num_hidden_layers=2, image_token_id=tokenizer.image_token_id)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    config = hf.Phi4MultimodalConfig(
        **text_settings(tokenizer),
        vision_config=vision,
        audio_config=audio,
        rope_parameters=rope,
    )
    torch.manual_seed(0)
    model = hf.Phi4MultimodalForCausalLM(config).eval()
    tower = model.model.embed_tokens_extend.image_embed.img_processor
    return mixing_little(model, tower), processor


def _phi4_images() -> Any:
    module = "transformers.models.phi4_multimodal.image_processing_phi4_multimodal"
    images = image_processor(module, "Phi4MultimodalImageProcessor", dynamic_hd=4)
    if not HAS_TORCHVISION:
        import importlib

        functions = importlib.import_module(module).tvF
        functions.resize = lambda image, size: F.interpolate(
            image[None].float(), size, mode="bilinear", antialias=True
        )[0].to(image.dtype)
        functions.pad = _pad_white
    return images


def _pad_white(image: torch.Tensor, padding: list[int], fill: list[int]) -> torch.Tensor:
    left, top, right, bottom = padding
    return F.pad(image, (left, right, top, bottom), value=fill[0])


# Grids of pixels in their own shape ---------------------------------------------------------------------


def paddleocr_vl() -> tuple[Any, Any]:
    """Pictures in their own shape, four patches a token, positions on three axes."""
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    marks = ("<|IMAGE_START|>", "<|IMAGE_END|>", "<|begin_of_sentence|>", "<|VIDEO_PLACEHOLDER|>")
    tokenizer = tiny_tokenizer(*marks, named=named)
    images = hf.PaddleOCRVLImageProcessorPil(
        size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84}, patch_size=14, merge_size=2
    )
    template = (
        "<|begin_of_sentence|>{% for message in messages %}{{ message['role'] | capitalize }}: "
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
    )
    processor = hf.PaddleOCRVLProcessor(images, tokenizer, chat_template=template)
    start, end, _, video = tokenizer.convert_tokens_to_ids(list(marks))
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = hf.PaddleOCRVLConfig(
        text_config=text_settings(tokenizer, head_dim=8, rope_parameters=rope),
        vision_config=vision_settings(56, 14),
        image_token_id=tokenizer.image_token_id,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    torch.manual_seed(0)
    return hf.PaddleOCRVLForConditionalGeneration(config).eval(), processor


def kimi_k25() -> tuple[Any, Any]:
    """Pictures in their own shape before a DeepSeek-V3, whose values are narrower than its keys."""
    named = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    marks = ("<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|im_user|>", "<|im_assistant|>")
    marks += ("<|im_middle|>", "<|im_system|>")
    tokenizer = tiny_tokenizer(*marks, eos="<|im_end|>", named=named)
    images = image_processor(
        "transformers.models.kimi_k25.image_processing_kimi_k25", "Kimi_K25ImageProcessor", max_patches=36
    )
    template = (
        "{% for message in messages %}<|im_{{ message['role'] }}|>{{ message['role'] }}<|im_middle|>"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
    )
    processor = images_only(
        hf.Kimi_K25Processor,
        video={"merge_size": 2, "temporal_patch_size": 4},
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=template,
    )
    text = {
        "model_type": "deepseek_v3",
        **text_settings(tokenizer, num_key_value_heads=4),
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    }
    vision = {
        "patch_size": 14,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
    }
    config = hf.Kimi_K25Config(
        text_config=text,
        vision_config=vision,
        projection_hidden_size=32,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|media_begin|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|media_end|>"),
    )
    torch.manual_seed(0)
    return hf.Kimi_K25ForConditionalGeneration(config).eval(), processor


def molmo2() -> tuple[Any, Any]:
    """The whole picture, then overlapping crops in one grid; each row ends in a column token."""
    marks = ("<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>")
    marks += ("<frame_end>", "<im_low>", "<|im_start|>")
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = tiny_tokenizer(*marks, eos="<|im_end|>", pad="<|endoftext|>", named=named)
    images = image_processor(
        "transformers.models.molmo2.image_processing_molmo2",
        "Molmo2ImageProcessor",
        size={"height": 84, "width": 84},
        max_crops=4,
        overlap_margins=[1, 1],
    )
    processor = images_only(
        hf.Molmo2Processor,
        video={"max_fps": 2},
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=_CHATML.format("<|image|>"),
    )
    patch, _, start, low, frame, end, frame_end, *_ = tokenizer.convert_tokens_to_ids(list(marks))
    config = hf.Molmo2Config(
        text_config=text_settings(tokenizer, head_dim=8, additional_vocab_size=4),
        vision_config=vision_settings(
            [84, 84], 14, num_hidden_layers=2, num_key_value_heads=2, head_dim=16, initializer_range=0.2
        ),
        adapter_config={
            "vision_feature_layer": [-1, -2],
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 32,
            "text_hidden_size": 32,
            "initializer_range": 0.2,
        },
        initializer_range=0.2,
        image_start_token_id=start,
        low_res_image_start_token_id=low,
        image_end_token_id=end,
        image_patch_id=patch,
        frame_start_token_id=frame,
        frame_end_token_id=frame_end,
    )
    torch.manual_seed(0)
    return hf.Molmo2ForConditionalGeneration(config).eval(), processor


def granite4_vision() -> tuple[Any, Any]:
    """As LLaVA-NeXT, with four patches a token; features are added to the text's in several layers."""
    tokenizer = tiny_tokenizer("<|start_of_role|>", "<|end_of_role|>", named={"image_token": "<image>"})
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=pinpoints,
    )
    template = (
        "{% for message in messages %}<|start_of_role|>{{ message['role'] }}<|end_of_role|>"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{{ '\n' }}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '</s>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
    )
    processor = hf.Granite4VisionProcessor(
        images,
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        chat_template=template,
    )
    vision = vision_settings(56, 7, hidden_size=64, num_hidden_layers=2, model_type="siglip_vision_model")
    config = hf.Granite4VisionConfig(
        text_config=text_settings(tokenizer),
        vision_config=vision,
        qformer_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 64,
            "encoder_hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "intermediate_size": 32,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=pinpoints,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        deepstack_layer_map=[[-2, 0]],
        spatial_target_layers=[0, 1, 2, 3],
        projector_dropout=0.0,
    )
    torch.manual_seed(0)
    model = hf.Granite4VisionForConditionalGeneration(config).eval()
    mixing_little(model, model.model.layerwise_projectors)
    mixing_little(model, model.model.spatial_projectors)
    return mixing_little(model, model.model.vision_tower), processor


ENTRIES = (
    Entry("ovis2", ovis2),
    Entry(
        "kosmos-2",
        kosmos2,
        images=1,
        batch=False,
        lacks=("none",),
        note="resampled: image tokens have no place; left padding shifts positions of the answer",
    ),
    Entry(
        "kosmos-2.5",
        kosmos2_5,
        images=1,
        batch=False,
        lacks=("none",),
        note="resampled: image tokens have no place; left padding shifts positions of the answer",
    ),
    Entry(
        "phi4_multimodal",
        phi4_multimodal,
        sizes=((84, 56), (56, 84)),
        note="transformers' vision tower is causal unless a picture of the batch has padding",
    ),
    Entry("paddleocr_vl", paddleocr_vl),
    Entry("kimi_k25", kimi_k25),
    Entry("molmo2", molmo2),
    Entry("granite4_vision", granite4_vision),
)
