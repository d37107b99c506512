"""Tiny models of the Gemma family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import transformers as hf
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from zoo.base import Entry
from zoo.qwen import seeded, template, text_settings
from zoo.tokenizer import tiny_tokenizer
from zoo.without_torchvision import from_module, images_only

_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
_SQUARE = {"height": 56, "width": 56}
_GEMMA_TEMPLATE = template(
    "<start_of_image>",
    user=("<start_of_turn>user\n", "<end_of_turn>\n"),
    assistant="<start_of_turn>model\n",
    start="{{ bos_token }}",
    system=("<start_of_turn>user\n", "<end_of_turn>\n"),
)


def paligemma() -> tuple[Any, Any]:
    """Without a chat template; the prompt attends to all of itself."""
    tokenizer = tiny_tokenizer("<image>", bos="<bos>", eos="<eos>")
    images = hf.SiglipImageProcessorPil(size=_SQUARE)
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(images, tokenizer)
    config = hf.PaliGemmaConfig(
        vision_config={**_SIGLIP, "projection_dim": 64},
        text_config=text_settings(tokenizer, model_type="gemma", head_dim=16),
        image_token_index=processor.image_token_id,
        projection_dim=64,
        hidden_size=64,
        vocab_size=len(tokenizer),
    )
    return seeded(hf.PaliGemmaForConditionalGeneration, config), processor


def gemma3() -> tuple[Any, Any]:
    """Layers with a window of 16 tokens and without one in turn; an image's tokens see each other."""
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = tiny_tokenizer("<start_of_turn>", "<end_of_turn>", bos="<bos>", eos="<eos>", named=named)
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size={"height": 112, "width": 112}),
        tokenizer,
        chat_template=_GEMMA_TEMPLATE,
        image_seq_length=16,
    )
    text = text_settings(
        tokenizer,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    config = hf.Gemma3Config(
        text_config=text,
        vision_config={**_SIGLIP, "image_size": 112},
        mm_tokens_per_image=16,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    model = seeded(hf.Gemma3ForConditionalGeneration, config)
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    nn.init.normal_(projection, std=0.2)  # zero in a new model: images would change nothing
    return model, processor


class PatchTower(nn.Module):
    """Takes the place of Gemma 3n's MobileNet, which needs timm: a map of features, each of its own patch."""

    def __init__(self, config: Any):
        super().__init__()
        self.patches = nn.Conv2d(3, config.hidden_size, 14, 14)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.patches(pixel_values))


def gemma3n() -> tuple[Any, Any]:
    """Text and images. The last layer reads the keys and values of the one before."""
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "audio_token": "<audio_soft_token>",
        "boa_token": "<start_of_audio>",
        "eoa_token": "<end_of_audio>",
    }
    tokenizer = tiny_tokenizer("<start_of_turn>", "<end_of_turn>", bos="<bos>", eos="<eos>", named=named)
    processor = hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(),
        hf.SiglipImageProcessorPil(size=_SQUARE, do_normalize=False),
        tokenizer,
        chat_template=_GEMMA_TEMPLATE.replace("<start_of_image>", "<image_soft_token>"),
        image_seq_length=16,
        audio_seq_length=4,
    )
    size = len(tokenizer)
    text = text_settings(
        tokenizer,
        head_dim=16,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=size,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
    )
    vision = hf.Gemma3nVisionConfig(hidden_size=32, vocab_size=8, vocab_offset=size)
    audio = {
        "vocab_size": 8,
        "vocab_offset": size + 8,
        "input_feat_size": 16,
        "hidden_size": 16,
        "conf_num_attention_heads": 2,
        "conf_num_hidden_layers": 1,
        "sscp_conv_channel_size": (4, 4),
    }
    config = hf.Gemma3nConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        vision_soft_tokens_per_image=16,
        audio_soft_tokens_per_image=4,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()},
    )
    source = hf.models.gemma3n.modeling_gemma3n

    real = hf.AutoModel.from_config

    def part(config: Any) -> nn.Module:
        return PatchTower(config) if config.model_type == "gemma3n_vision" else real(config)

    with patch.object(source, "AutoModel", SimpleNamespace(from_config=part)):
        return seeded(hf.Gemma3nForConditionalGeneration, config), processor


def gemma4() -> tuple[Any, Any]:
    """Images of any shape, 3 x 3 patches a token; layers with a window of 16 tokens and without."""
    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    tokenizer = tiny_tokenizer("<|turn>", "<turn|>", "<|video|>", bos="<bos>", eos="<eos>", named=named)
    processor = images_only(
        from_module("transformers.models.gemma4.processing_gemma4", "Gemma4Processor"),
        video={},
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70),
        tokenizer=tokenizer,
        chat_template=template(
            "<|image|>",
            user=("<|turn>user\n", "<turn|>\n"),
            assistant="<|turn>model\n",
            start="{{ bos_token }}",
            system=("<|turn>system\n", "<turn|>\n"),
        ),
    )
    text = text_settings(
        tokenizer,
        head_dim=16,
        global_head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        vocab_size_per_layer_input=len(tokenizer),
        hidden_size_per_layer_input=16,
        use_bidirectional_attention="vision",
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 4,
        "position_embedding_size": 64,
    }
    config = hf.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()},
    )
    return seeded(hf.Gemma4ForConditionalGeneration, config), processor


ENTRIES = (
    Entry(
        "paligemma",
        paligemma,
        note="no chat template; the whole prompt sees itself",
        lacks=("none",),
    ),
    Entry("gemma3", gemma3, note="crops of pan-and-scan count as images of their own"),
    Entry("gemma3n", gemma3n, note="text and images; the image encoder (timm) is replaced in the tests"),
    Entry("gemma4", gemma4, note="text and images"),
)
