"""Attention of the class token of a vision tower against transformers' own eager attention."""

from __future__ import annotations

import pytest
import torch
from models import llava_processor, picture, tiny_llama, tiny_llava
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from regaze.errors import BadParameterError, ShapeError, UnsupportedModelError
from regaze.toolkit.model.vision import class_attention, received_attention, vision_tower


@pytest.fixture(scope="module")
def tower():
    """Random, with attention that is far from uniform."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 5, "num_attention_heads": 3}
    config = CLIPVisionConfig(**sizes, image_size=20, patch_size=4)
    config._attn_implementation = "eager"
    model = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 20, 20)


@pytest.fixture(scope="module")
def attentions(tower, pixels):
    return tower(pixel_values=pixels, output_attentions=True).attentions


def test_the_class_row_is_that_of_the_eager_matrix(tower, pixels, attentions):
    found = class_attention(tower, pixels, (0, -2, 3))
    assert found.shape == (3, 2, 3, 25)
    for row, layer in zip(found, (0, 3, 3), strict=True):
        torch.testing.assert_close(row, attentions[layer][:, :, 0, 1:], rtol=1e-5, atol=1e-6)
    assert found.std(-1).min() > 1e-3  # no uniform attention, with which any row would do


def test_received_attention_is_the_mean_of_the_columns(tower, pixels, attentions):
    found = received_attention(tower, pixels, (1,))[0]
    torch.testing.assert_close(found, attentions[1].mean(2)[..., 1:], rtol=1e-5, atol=1e-6)


def test_the_tower_is_found_inside_a_llava_and_left_as_it_was(tower):
    model = tiny_llava()
    assert vision_tower(model) is model.model.vision_tower
    assert vision_tower(tower) is tower
    pixel_values = llava_processor().image_processor(picture(0), return_tensors="pt")["pixel_values"]
    before = model.model.vision_tower(pixel_values).last_hidden_state
    assert class_attention(model, pixel_values, (0,)).shape == (1, 1, 6, 64)
    assert torch.equal(before, model.model.vision_tower(pixel_values).last_hidden_state)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_towers_and_inputs_that_do_not_fit(tower, pixels):
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
    siglip = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=20, patch_size=4))
    with pytest.raises(UnsupportedModelError, match="has no class token"):
        class_attention(siglip, pixels, (0,))
    with pytest.raises(UnsupportedModelError, match="has no patches"):
        class_attention(tiny_llama(), pixels, (0,))
    with pytest.raises(BadParameterError, match=r"vision layers \[5, -6\] do not exist"):
        class_attention(tower, pixels, (0, 5, -6))
    with pytest.raises(ShapeError, match=r"pixel_values must be \[N, 3, H, W\]"):
        class_attention(tower, pixels[None], (0,))
