"""The demo model's architecture: transformers' own LLaVA, small enough to ship and to train on two cores."""

from __future__ import annotations

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from regaze.demo.training.render import PATCH, SIDE

HIDDEN = 192


def build_model(tokenizer: PreTrainedTokenizerFast, layers: int = 6) -> LlavaForConditionalGeneration:
    """An untrained model for ``tokenizer``; draws from torch's global generator.

    The vision tower is a 4-layer CLIP encoder on 14-pixel patches (64 image tokens, class token dropped),
    the language model a Llama with 6 query heads on 2 key/value heads. ``initializer_range`` is
    1/sqrt(hidden): with the usual 0.02, word embeddings are so small that the model learns to match words
    with image patches much later.
    """
    vision = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=HIDDEN,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=HIDDEN**-0.5,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    _init_matching(model)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=96,
    )
    return model


@torch.no_grad()
def _init_matching(model: LlavaForConditionalGeneration) -> None:
    """Initialise so that words attend to the patches that show them: existence is then learned in minutes.

    All word embeddings get a common part, as trained ones have, which separates words from patches. The
    first query head of every group starts with the weights of its key head, with the sign of that part
    flipped: the query of a word matches the key of a patch of the same meaning, and no word, itself
    included. Training is free to change all of this.
    """
    words = model.get_input_embeddings().weight
    words += torch.randn(HIDDEN) * HIDDEN**-0.5
    common = common_part(words)
    flip = torch.eye(HIDDEN) - 2 * torch.outer(common, common) / common.square().sum()
    for layer in model.model.language_model.layers:
        shape = (-1, layer.self_attn.head_dim, HIDDEN)
        queries, keys = layer.self_attn.q_proj.weight.view(shape), layer.self_attn.k_proj.weight.view(shape)
        queries[:: len(queries) // len(keys)] = keys @ flip


def common_part(words: torch.Tensor) -> torch.Tensor:
    """The common part of word embeddings [V, H]: their mean [H]."""
    return words.mean(0)


def pixel_batch(pixels: list, mean: list[float], std: list[float]) -> torch.Tensor:
    """uint8 [112, 112, 3] arrays to the processor's ``pixel_values`` [B, 3, 112, 112], float32."""
    stacked = torch.stack([torch.from_numpy(array) for array in pixels]).permute(0, 3, 1, 2).float() / 255
    return (stacked - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
