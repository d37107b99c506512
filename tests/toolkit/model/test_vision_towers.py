"""Vision models used alone: every tower is wrapped, recorded and edited like a language model."""

from __future__ import annotations

import pytest
import torch
import transformers
from models import tiny_llava
from transformers import AutoConfig, AutoModel
from zoo.towers import SMALL, TOWERS, tower

import regaze
from regaze import HeadKnockout, Role
from regaze.errors import InputError, ShapeError, UnsupportedModelError


@pytest.fixture(scope="module", params=TOWERS)
def model(request):
    return tower(request.param)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(1))


def features(model, pixels):
    with torch.no_grad():
        return model(pixel_values=pixels).last_hidden_state


def output_projection(model, layer: int) -> torch.nn.Linear:
    """The linear layer that a block's heads write through, whatever its name."""
    kind = model._can_record_outputs["attentions"]
    attention = [m for m in model.modules() if isinstance(m, kind)][layer]
    linear = {name: m for name, m in attention.named_modules() if isinstance(m, torch.nn.Linear)}
    names = ("out_proj", "o_proj", "proj", "output.dense", "projection_layer")
    found = [linear[name] for name in names if name in linear]
    if found:
        return found[0]
    block = next(m for m in model.modules() if attention in getattr(m, "_modules", {}).values())
    return block.output.dense


def test_idle_is_bit_equal_and_leaves_nothing_behind(model, pixels):
    plain = features(model, pixels)
    with regaze.wrap(model).using(HeadKnockout()):
        assert model.config._attn_implementation == "regaze"
        assert torch.equal(features(model, pixels), plain)
    assert model.config._attn_implementation == "sdpa"
    assert not any(key.startswith("_regaze") for m in model.modules() for key in m.__dict__)


def test_tokens_are_the_class_token_and_a_grid_of_patches(model, pixels):
    tokens = regaze.wrap(model).tokens({"pixel_values": pixels})
    front = TOWERS[model.config.model_type]
    assert tokens.roles.shape == (2, features(model, pixels).shape[1]) == (2, front + 9)
    assert tokens.columns(Role.SYSTEM, 1).tolist() == list(range(front))
    assert tokens.grids == (((3, 3),),) * 2
    assert tokens.image_cells(0).tolist() == list(range(front, front + 9))


def test_a_bright_patch_lights_its_cell(model, pixels):
    """Without attention, so that nothing but the cell's own token can change."""
    gaze, bright = regaze.wrap(model), pixels.clone()
    bright[0, :, 14:28, 28:42] += 5.0  # row 1, column 2
    with gaze.using(HeadKnockout(heads=[(layer, head) for layer in range(3) for head in range(4)])):
        change = (features(model, bright) - features(model, pixels)).abs().sum(-1)
    tokens = gaze.tokens({"pixel_values": pixels})
    assert change[0].argmax() == tokens.image_cells(0)[5]
    assert change[0].count_nonzero() == 1
    assert not change[1].any()


def test_records_equal_the_models_own_attention(model, pixels):
    with regaze.wrap(model).recording(rows="all", slices="all", entropy=True, top1=True) as record:
        assert torch.equal(features(model, pixels), features(model, pixels))
    plain = features(model, pixels)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        own = torch.stack(model(pixel_values=pixels, output_attentions=True).attentions)
    model.set_attn_implementation("sdpa")
    assert len(record) == 2
    trace = record[1]
    torch.testing.assert_close(trace.slices, own, rtol=0, atol=1e-5)
    front = TOWERS[model.config.model_type]
    torch.testing.assert_close(trace.masses[..., Role.IMAGE], own[..., front:].sum(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(trace.top_weight, own.amax(-1), rtol=0, atol=1e-5)
    assert trace.image_maps().shape == (3, 4, front + 9, 3, 3)
    torch.testing.assert_close(trace.image_maps(1).flatten(-2), own[:, 1, ..., front:], rtol=0, atol=1e-5)
    assert torch.equal(features(model, pixels), plain)


def test_a_head_knocked_out_is_one_that_writes_nothing(model, pixels):
    projection, plain = output_projection(model, 1), features(model, pixels)
    with regaze.wrap(model).using(HeadKnockout(heads=((1, 2),))):
        edited = features(model, pixels)
        one = features(model, pixels[1:])
    kept = projection.weight.detach().clone()
    with torch.no_grad():
        projection.weight[:, 16:24] = 0.0
        expected = features(model, pixels)
        projection.weight.copy_(kept)
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(edited[1:], one, rtol=1e-4, atol=1e-5)
    assert (edited - plain).abs().max() > 1e-3


def test_a_tower_inside_a_vision_language_model():
    """Attention of the tower while LLaVA runs; the language model is edited at the same time."""
    from models import llava_processor, logits_of, picture

    model = tiny_llava()
    gaze, inside = regaze.wrap(model, llava_processor()), regaze.wrap(model.model.vision_tower)
    inputs = gaze.inputs([picture(1), None], ["Is there a dog?", "What?"])
    plain = logits_of(model, inputs)
    with inside.recording(rows="all", slices="image") as record, gaze.using(HeadKnockout(heads=((1, 1),))):
        edited = logits_of(model, inputs)
    with gaze.using(HeadKnockout(heads=((1, 1),))):
        assert torch.equal(edited, logits_of(model, inputs))
    assert len(record) == 1, "the tower runs at the prefill alone"
    assert record[0].image_maps().shape[-2:] == (8, 8)
    with inside.using(HeadKnockout(heads=((0, 0),))):
        assert not torch.equal(logits_of(model, inputs)[:, 0], plain[:, 0])
    assert torch.equal(plain, logits_of(model, inputs))


def test_a_classifier_and_other_sizes(pixels):
    """Heads on top change nothing; an image of another size has another grid."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("vit", **SMALL)
    model = transformers.ViTForImageClassification(config).eval()
    wide = torch.randn(1, 3, 42, 70)
    with regaze.wrap(model).recording(rows="all", slices="image") as record, torch.no_grad():
        logits = model(wide, interpolate_pos_encoding=True).logits
        assert torch.equal(logits, model(wide, interpolate_pos_encoding=True).logits)
    assert record[0].image_maps().shape[-2:] == (3, 5)


def test_a_text_encoder_is_wrapped_too():
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model("clip_text_model", **SMALL, vocab_size=50)).eval()
    ids = torch.randint(3, 40, (2, 7))
    with regaze.wrap(model).recording(masses=False, slices="all", rows="all") as record:
        recorded = model(input_ids=ids).last_hidden_state
    assert torch.equal(recorded, model(input_ids=ids).last_hidden_state)
    model.set_attn_implementation("eager")
    own = torch.stack(model(input_ids=ids, output_attentions=True).attentions)
    torch.testing.assert_close(record[0].slices, own, rtol=0, atol=1e-5)


def test_two_encoders_are_wrapped_one_by_one(pixels):
    """Of CLIP's two, the text encoder is the language part; its tower is a model of its own."""
    torch.manual_seed(0)
    parts = {"text_config": {**SMALL, "vocab_size": 50}, "vision_config": dict(SMALL)}
    model = AutoModel.from_config(AutoConfig.for_model("clip", **parts)).eval()
    inputs = {"input_ids": torch.randint(3, 40, (2, 7)), "pixel_values": pixels}

    def run():
        with torch.no_grad():
            out = model(**inputs)
        return out.text_embeds, out.image_embeds

    knock, plain = HeadKnockout(heads=((0, 1),)), run()
    with regaze.wrap(model).using(knock):
        text = run()
    with regaze.wrap(model.vision_model).using(knock):
        image = run()
    assert torch.equal(text[1], plain[1])
    assert not torch.equal(text[0], plain[0])
    assert torch.equal(image[0], plain[0])
    assert not torch.equal(image[1], plain[1])


def test_what_cannot_be_placed_says_why(pixels):
    masked = tower("vit_mae")  # drops three quarters of the patches at random
    with pytest.raises(ShapeError, match="Lq=3"), regaze.wrap(masked).recording():
        masked(pixels)
    with pytest.raises(ShapeError, match=r"\[B, 3, H, W\], got \[9, 588\]"):
        regaze.wrap(tower("vit")).tokens({"pixel_values": torch.zeros(9, 588)})
    outside = AutoModel.from_config(AutoConfig.for_model("data2vec-vision", **SMALL))
    with pytest.raises(UnsupportedModelError), regaze.wrap(outside).using():
        pass
    llava = tiny_llava()
    with regaze.wrap(llava).using(HeadKnockout()), pytest.raises(InputError, match="without input_ids"):
        llava(pixel_values=pixels)
