"""What `generate` and its users do to a stack of contexts: several sequences, caches, interrupts, Qwen-VL."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import assert_same_scores, inputs_of
from models import llava_processor, logits_of, tiny_llava
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

import regaze
from regaze import Role, TokenMap
from regaze.errors import InputError, UnsupportedModelError
from regaze.interventions import AGLA, DAMRO, GIFT, ICD, PAI, PAINT, SPARC, VCD, VISTA
from regaze.interventions.vcd import add_noise


@pytest.fixture(scope="module")
def model():
    return tiny_llava(seed=3)


@pytest.fixture(scope="module")
def gaze(model):
    return regaze.wrap(model, llava_processor())


def relevance(image, text):
    return torch.arange(64.0).view(8, 8), 0.6


@pytest.mark.parametrize(
    "method",
    [VCD(), DAMRO(), PAI(), PAINT(), AGLA(relevance=relevance), VISTA(), ICD()],
    ids=lambda method: method.name,
)
@pytest.mark.parametrize("beams", [1, 3])
def test_every_returned_sequence_sees_all_images_of_its_prompt(model, gaze, method, beams):
    """Scores of sampled answers and of beams equal full forwards, also where a prompt has two images."""
    inputs = inputs_of(gaze)
    torch.manual_seed(0)
    with gaze.using(method):
        out = model.generate(
            **inputs,
            max_new_tokens=4,
            num_beams=beams,
            num_return_sequences=3,
            do_sample=beams == 1,
            eos_token_id=None,
            length_penalty=0.0,
            output_logits=True,
            output_scores=True,
            return_dict_in_generate=True,
        )
        answers = out.sequences[:, inputs["input_ids"].shape[1] :]
        for row, answer in enumerate(answers):
            alone = inputs_of(gaze, slice(row // 3, row // 3 + 1))
            ids = torch.cat([alone["input_ids"], answer[None]], 1)
            with torch.no_grad():
                full = model(**{**alone, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
            full = full[0, -5:-1]
            if beams == 1:
                assert_same_scores(torch.stack(out.logits)[:, row], full, tolerance=2e-4)
            else:
                total = full.log_softmax(-1).gather(-1, answer[:, None]).sum()
                assert float(out.sequences_scores[row]) == pytest.approx(float(total), abs=1e-3)
    assert "_expand_inputs_for_generation" not in model.__dict__


def test_images_that_cannot_be_told_apart_are_not_repeated(model, gaze):
    inputs = dict(inputs_of(gaze, slice(1, 2)))
    inputs["pixel_values"] = inputs["pixel_values"].repeat(3, 1, 1, 1)[:5]
    with gaze.using(VCD()), pytest.raises(UnsupportedModelError, match="which image belongs to which prompt"):
        model.generate(**inputs, max_new_tokens=2, num_beams=2)


def test_a_static_cache_has_room_for_a_longer_branch(model, gaze):
    inputs = inputs_of(gaze)
    with gaze.using(ICD()):
        dynamic = logits_of(model, inputs)
        for _ in range(2):
            static = logits_of(model, {**inputs, "cache_implementation": "static"})
            assert_same_scores(static, dynamic, tolerance=2e-4)


@pytest.mark.parametrize("inside", [False, True])
def test_an_interrupt_leaves_no_hook_behind(model, gaze, inside):
    """Ctrl-C during a forward: torch then calls no hook that would clean up."""
    inputs, method = inputs_of(gaze), VISTA(strength=0.3)
    plain = logits_of(model, inputs)
    with gaze.using(method):
        steered = logits_of(model, inputs)
    assert not torch.equal(steered, plain)

    def interrupt(module, args, output):
        if len(calls) == 2:  # after the two forwards that VISTA runs aside
            raise KeyboardInterrupt
        calls.append(module)

    calls: list[torch.nn.Module] = []
    layer = model.get_decoder().layers[3]
    handle = layer.register_forward_hook(interrupt)
    with gaze.using(method):
        with pytest.raises(KeyboardInterrupt):
            logits_of(model, inputs)
        handle.remove()
        if inside:
            assert torch.equal(logits_of(model, inputs), steered)
    assert torch.equal(logits_of(model, inputs), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.get_decoder().layers.modules())


def test_a_replay_takes_positional_ids_and_needs_outputs_by_name(model, gaze):
    inputs = dict(inputs_of(gaze, slice(0, 1)))
    ids = inputs.pop("input_ids")
    with gaze.using(GIFT(saliency_layer="auto", layers=(1, 4))), torch.no_grad():
        named = model(input_ids=ids, **inputs).logits
        assert torch.equal(model(ids, **inputs).logits, named)
        with pytest.raises(InputError, match="return_dict=True"):
            model(ids, **inputs, return_dict=False)


def test_sparc_needs_steps(model, gaze):
    with gaze.using(SPARC()), pytest.raises(InputError, match="use_cache=True"):
        model.generate(**inputs_of(gaze), max_new_tokens=2, use_cache=False)


# Positions along several axes ---------------------------------------------------------------------------

IMAGE = 190


@pytest.fixture(scope="module")
def qwen():
    """A random Qwen2-VL, prompts with images of 8 and 4 tokens, and their roles."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    text = {"vocab_size": 200, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    text |= {"rope_parameters": rope, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "patch_size": 4}
    ids = {"image_token_id": IMAGE, "video_token_id": 191, "vision_start_token_id": 192}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids, vision_end_token_id=193)
    prompts = ([5, 6, 192, *[IMAGE] * 8, 193, 10, 11, 12, 13], [5, 6, 192, *[IMAGE] * 4, 193, 20])
    rows = torch.tensor([[0] * (16 - len(prompt)) + prompt for prompt in prompts])
    inputs = {
        "input_ids": rows,
        "attention_mask": (rows != 0).long(),
        "mm_token_type_ids": (rows == IMAGE).int(),
        "pixel_values": torch.randn(48, 3 * 2 * 16),
        "image_grid_thw": torch.tensor([[1, 4, 8], [1, 4, 4]]),
    }
    roles = torch.full_like(rows, int(Role.SYSTEM)).masked_fill(rows == IMAGE, int(Role.IMAGE))
    roles[(rows >= 10) & (rows < 30)] = int(Role.QUERY)
    roles[rows == 0] = int(Role.PAD)
    return Qwen2VLForConditionalGeneration(config).eval(), inputs, TokenMap.from_roles(roles)


def fresh(model, inputs, row, answer, pixels=None):
    """Logits after one unpadded prompt and its answer; without `pixels` the image is cut out."""
    ids, shown = inputs["input_ids"][row], inputs["attention_mask"][row].bool()
    ids = ids[shown if pixels is not None else shown & (ids != IMAGE)]
    ids = torch.cat([ids, answer])[None]
    media = {}
    if pixels is not None:
        patches = slice(0, 32) if row == 0 else slice(32, 48)
        media = {"pixel_values": pixels[patches], "image_grid_thw": inputs["image_grid_thw"][row : row + 1]}
        media["mm_token_type_ids"] = (ids == IMAGE).int()
    with torch.no_grad():
        return model(input_ids=ids, **media).logits[0, -1]


@pytest.mark.parametrize("method", [VCD(noise_step=900, beta=0.0), PAI(alpha=0.0, gamma=2.0, beta=0.0)])
def test_branches_of_a_model_with_several_position_axes(qwen, method):
    """Every step equals fresh forwards of both contexts, whether `generate` gives positions or not."""
    model, inputs, tokens = qwen
    gaze, pixels = regaze.wrap(model), inputs["pixel_values"]
    with gaze.using(method, tokens=tokens), torch.no_grad():
        logits = logits_of(model, inputs, tokens=3)
        assert_same_scores(model(**inputs).logits[:, -1], logits[0])
    answers = logits.argmax(-1).T
    noised = add_noise(pixels, 900, 0, [32, 16]) if isinstance(method, VCD) else None
    for row, answer in enumerate(answers):
        for step in range(3):
            main = fresh(model, inputs, row, answer[:step], pixels)
            other = fresh(model, inputs, row, answer[:step], noised)
            want = 2 * main.log_softmax(-1) - other.log_softmax(-1)
            assert_same_scores(logits[step, row], want)
