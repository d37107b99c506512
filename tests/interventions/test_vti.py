"""VTI: the equations and goldens, the turn inside language model and tower, what the fit measures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from decoding_checks import (
    check_batch,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    golden,
    inputs_of,
    plain_logits,
)
from directions import DEMO, LLAVA, about, directions, normal, vti_directions
from models import llava_processor, logits_of, picture, tiny_llama, tiny_llava
from zoo.every import RUNNING, label, skip_if_older

import regaze
from regaze.errors import BadParameterError, InputError, RegazeError, UnsupportedModelError
from regaze.interventions import VTI
from regaze.interventions.common.components import mean_and_components
from regaze.interventions.fitting import CaptionPair, Examples, demo_pairs
from regaze.interventions.vti import VTIFit
from regaze.interventions.vti.fit import draw_patches, mask_patches
from regaze.interventions.vti.groups import grouped_rows, ungrouped
from regaze.interventions.vti.steering import UnitDirections, steer

# The equations ----------------------------------------------------------------------------------------


def test_hand_example_of_the_turn():
    """x = (3, 4), d = (2, 0), 0.9: (.6, .8) + .09 (1, 0) = (.69, .8), back to length 5."""
    unit = UnitDirections.of(torch.tensor([[2.0, 0.0]])).rows[0]
    got = steer(torch.tensor([[[3.0, 4.0]]]), unit, 0.9)
    torch.testing.assert_close(got[0, 0], torch.tensor([3.265635, 3.786242]))


def test_hand_example_of_the_fit():
    """X = (3, 0), (0, 1), (0, 2): the component is not scaled, the mean neither."""
    x = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    mean, direction = mean_and_components(x[:, None])
    assert mean[0].tolist() == [1.0, 1.0]
    assert direction[0].tolist() == pytest.approx([1.881675, 0.528142], abs=1e-6)


def test_hand_example_of_the_mask():
    image = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert mask_patches(image, torch.tensor([0, 3]), 1).tolist() == [[[3.0, 2.0], [3.0, 3.0]]]


def test_six_of_576_patches_stay():
    drawn = draw_patches(torch.zeros(3, 336, 336), 14, 0.99, torch.Generator().manual_seed(0))
    assert len(set(drawn.tolist())) == 570


def cases(shared, name):
    described, tensors = golden(shared / "goldens", "vti", name)
    return [(case, entry, tensors) for case, entry in described["cases"].items()]


def test_golden_turns(shared):
    for case, entry, tensors in cases(shared, "steer"):
        hidden, (vectors,) = (tensors[f"{case}/in/{name}"] for name in ("hidden", "directions"))
        got = steer(hidden, UnitDirections.of(vectors).rows, entry["params"]["strengths"][0])
        torch.testing.assert_close(got, tensors[f"{case}/out/hidden"], rtol=1e-5, atol=2e-6)


def test_golden_masks(shared):
    for case, entry, tensors in cases(shared, "mask"):
        got = mask_patches(
            tensors[f"{case}/in/image"], tensors[f"{case}/in/patches"], entry["params"]["patch"]
        )
        torch.testing.assert_close(got, tensors[f"{case}/out/image"], rtol=0, atol=1e-6)


def test_golden_text_directions(shared):
    for case, entry, tensors in cases(shared, "text_fit"):
        positive, negative = (tensors[f"{case}/in/{name}"][:, :, -1] for name in ("positive", "negative"))
        x, rank = (positive - negative).flatten(1)[:, None], entry["params"]["rank"]
        for released, name in ((rank > 1, "direction"), (False, "direction_own_signs")):
            if f"{case}/out/{name}" in tensors:
                mean, got = mean_and_components(x, rank, released)
                want = tensors[f"{case}/out/{name}"]
                torch.testing.assert_close(got.view_as(want).float(), want, rtol=1e-4, atol=2e-5)
        want = tensors[f"{case}/out/mean_difference"]
        torch.testing.assert_close(mean.view_as(want).float(), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("released", [False, True])
def test_golden_vision_directions(shared, released):
    for case, _, tensors in cases(shared, "vision_fit"):
        difference = tensors[f"{case}/in/masked"].mean(1) - tensors[f"{case}/in/clean"]
        x = torch.stack([grouped_rows(image, released) for image in difference])
        direction = mean_and_components(x.flatten(2))[1].view(x.shape[1:])
        want = tensors[f"{case}/out/{'direction' if released else 'direction_per_token'}"]
        torch.testing.assert_close(ungrouped(direction, released).float(), want, rtol=1e-4, atol=2e-5)


def test_invariants_of_the_turn():
    x, d = normal(2, 5, 16), normal(16, seed=1)
    unit = UnitDirections.of(d[None]).rows[0]
    assert steer(x, unit, 0.0) is x
    torch.testing.assert_close(steer(x, unit, 0.9).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(steer(x, UnitDirections.of(4 * d[None]).rows[0], 0.9), steer(x, unit, 0.9))
    far = steer(x, unit, 1e7)
    torch.testing.assert_close(far, x.norm(dim=-1, keepdim=True) * unit, rtol=1e-4, atol=1e-5)
    assert not steer(torch.zeros(1, 2, 16), unit, 0.9).any()
    torch.testing.assert_close(steer(x, torch.zeros(16), 0.9), x)
    assert steer(x.bfloat16(), unit, 0.9).dtype == torch.bfloat16


def test_the_order_of_pairs_and_a_constant_difference_do_not_matter():
    x = normal(6, 1, 12)
    torch.testing.assert_close(mean_and_components(x)[1], mean_and_components(x[torch.randperm(6)])[1])
    same = normal(1, 1, 12).expand(4, 1, 12)
    mean, direction = mean_and_components(same)
    torch.testing.assert_close(direction, mean)


# In a model -------------------------------------------------------------------------------------------

METHOD = VTI(directions=vti_directions(), text=3.0, vision=3.0)


def by_hand(model, inputs, answer, found, text, vision):
    """[T, B, V] of forwards with hooks on the MLPs, each step from the beginning."""
    handles = []

    def turn(vectors, strength):
        def hook(module, args, out):
            x = F.normalize(out, dim=-1) + 0.1 * strength * F.normalize(vectors, dim=-1)
            return F.normalize(x, dim=-1) * out.norm(dim=-1, keepdim=True)

        return hook

    for number, layer in enumerate(model.get_decoder().layers):
        handles.append(layer.mlp.register_forward_hook(turn(found["text"][number], text)))
    for number, block in enumerate(model.model.vision_tower.encoder.layers):
        handles.append(block.mlp.register_forward_hook(turn(found["vision"][number], vision)))
    logits = plain_logits(model, inputs, answer)
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize(("text", "vision"), [(3.0, 3.0), (0.0, 5.0), (2.0, 0.0)])
def test_every_step_equals_a_forward_with_hooks(model, gaze, text, vision):
    found, inputs = vti_directions(), gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    plain = logits_of(model, inputs, tokens=4)
    with gaze.using(VTI(directions=found, text=text, vision=vision)):
        got = logits_of(model, inputs, tokens=4)
    want = by_hand(model, inputs, got.argmax(-1).T, found, text, vision)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-4)
    assert not torch.allclose(got, plain, atol=1e-2)


def test_batch_padding_cache_neutral_and_json(gaze, tmp_path):
    check_batch(gaze, METHOD)
    check_padding(gaze, METHOD)
    check_full_forward(gaze, METHOD)
    check_neutral(gaze, VTI(directions=vti_directions(), text=0.0, vision=0.0), VTI(text=0.0, vision=0.0))
    vti_directions().save(tmp_path / "vti.safetensors")
    check_json(VTI(directions=str(tmp_path / "vti.safetensors"), text=0.5))


def test_beams_and_samples_are_steered(model, gaze):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    with gaze.using(METHOD):
        out = model.generate(**inputs, num_beams=3, length_penalty=0.0, **options)
        torch.manual_seed(0)
        drawn = model.generate(**inputs, **{**options, "do_sample": True, "output_logits": True})
    answer = out.sequences[:, inputs["input_ids"].shape[1] :]
    scores = by_hand(model, inputs, answer, METHOD.given(), 3.0, 3.0).log_softmax(-1)[:, 0]
    total = scores[torch.arange(4), answer[0]].sum()
    assert float(out.sequences_scores[0]) == pytest.approx(float(total), abs=1e-3)
    answer = drawn.sequences[:, inputs["input_ids"].shape[1] :]
    want = by_hand(model, inputs, answer, METHOD.given(), 3.0, 3.0)
    torch.testing.assert_close(torch.stack(drawn.logits), want, rtol=1e-4, atol=2e-4)


def test_random_directions_are_a_control_of_the_same_lengths(gaze):
    found = vti_directions()
    (control,) = VTI(directions=found, text=0.7).controls()
    acting = control.for_model(None)
    assert acting == VTI(directions=found.random_like(0), text=0.7) != VTI(directions=found, text=0.7)
    for name in found.names:
        torch.testing.assert_close(acting.given()[name].norm(dim=-1), found[name].norm(dim=-1))
    with gaze.using(control):
        random = logits_of(gaze.model, inputs_of(gaze))
    with gaze.using(VTI(directions=found)):
        assert not torch.allclose(random, logits_of(gaze.model, inputs_of(gaze)), atol=1e-3)


def test_without_directions_it_says_how_to_get_them(gaze):
    with pytest.raises(BadParameterError, match="regaze fit vti"), gaze.using(VTI()):
        gaze.model(**inputs_of(gaze))


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (vti_directions(vision=False), BadParameterError, "no part 'vision': set vision=0"),
        (vti_directions({**LLAVA, "width": 64}), BadParameterError, "layers of width 64, but this model"),
        (directions("other", LLAVA, {"text": normal(6, 192)}), BadParameterError, "those of 'other'"),
        (
            directions("vti", LLAVA, {"text": normal(6, 192), "vision": normal(4, 50, 192)}),
            UnsupportedModelError,
            r"tokens \[50, 192\], but block 0 of this one has \[65, 192\]",
        ),
    ],
)
def test_directions_that_do_not_fit(gaze, found, error, message):
    with pytest.raises(error, match=message), gaze.using(VTI(directions=found)):
        gaze.model(**inputs_of(gaze))


# The fit ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    return demo_pairs().first(3)


FIT = VTIFit(copies=3, strength=0.0)


@pytest.fixture(scope="module")
def fitted(pairs):
    gaze = regaze.wrap(tiny_llava(), llava_processor())
    return FIT.run(gaze, pairs)


def test_text_directions_are_those_of_plain_forwards(model, pairs, fitted):
    """Every layer's residual stream at the last token, the last layer's before the final norm."""
    processor, differences = llava_processor(), []
    for pair in pairs.items:
        states = []
        for caption in (pair.true, pair.invented):
            text = f"USER: <image>\n{pair.question} ASSISTANT:{caption}"
            inputs = processor(text=text, images=[pair.image.as_posix()], return_tensors="pt")
            kept: list[torch.Tensor] = []

            def entering(module, args, kwargs, kept=kept):
                kept.append((args[0] if args else kwargs["hidden_states"])[0, -1])

            def leaving(module, args, output, kept=kept):
                kept.append((output[0] if isinstance(output, tuple) else output)[0, -1])

            layers = model.get_decoder().layers
            hooks = [layer.register_forward_hook(leaving) for layer in layers]
            hooks.append(layers[0].register_forward_pre_hook(entering, with_kwargs=True))
            with torch.no_grad():
                model(**inputs)
            for hook in hooks:
                hook.remove()
            states.append(torch.stack(kept))
        differences.append(states[0] - states[1])
    want = mean_and_components(torch.stack(differences).flatten(1)[:, None])[1].view(7, -1)[1:]
    torch.testing.assert_close(fitted["text"], want.float(), rtol=1e-3, atol=1e-4)


def test_vision_directions_are_those_of_the_tower(model, pairs, fitted):
    """With one image the direction is its difference: masked copies minus the image, after each block."""
    gaze = regaze.wrap(model, llava_processor())
    one = VTIFit(copies=2, masked=0.5, seed=4)
    difference = one._vision_difference(gaze, pairs.items[0], 0)
    assert difference.shape == (65, 5, 192)
    pixels = gaze.inputs([pairs.items[0].image], ["What is this?"])["pixel_values"][0]
    generator = torch.Generator().manual_seed(4 * 100_003)
    copies = [mask_patches(pixels, draw_patches(pixels, 14, 0.5, generator), 14) for _ in range(2)]
    with torch.no_grad():
        states = [
            torch.stack(model.model.vision_tower(pixel_values=x, output_hidden_states=True).hidden_states, 1)
            for x in (torch.stack(copies), pixels[None])
        ]
    want = (states[0].mean(0) - states[1][0]).transpose(0, 1)
    torch.testing.assert_close(difference, want, rtol=1e-4, atol=1e-4)
    assert fitted["vision"].shape == (4, 65, 192)


def test_text_directions_are_fitted_on_the_steered_tower(model, pairs, fitted):
    gaze = regaze.wrap(model, llava_processor())
    steered = VTIFit(copies=3, strength=5.0).run(gaze, pairs)
    torch.testing.assert_close(steered["vision"], fitted["vision"])
    assert not torch.allclose(steered["text"], fitted["text"], atol=1e-3)


def test_a_fit_continues_where_it_was_stopped(model, pairs, fitted, tmp_path):
    gaze, parts = regaze.wrap(model, llava_processor()), tmp_path / "parts"

    class Stop(Exception):
        pass

    def stop(label, done, total):
        if (label, done) == ("captions", 2):
            raise Stop

    with pytest.raises(Stop):
        FIT.run(gaze, pairs, parts=parts, progress=stop)
    before = {path: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert len(before) == 5
    assert FIT.run(gaze, pairs, parts=parts) == fitted
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = VTIFit(copies=3, strength=0.0, seed=1)
    assert other.run(gaze, pairs, parts=parts) != fitted, "parts of other settings are not taken"


def test_the_plain_model_is_fitted_and_left_as_it_was(pairs, fitted):
    model = tiny_llava()
    gaze = regaze.wrap(model, llava_processor())
    plain = logits_of(model, inputs_of(gaze))
    with gaze.using(METHOD), pytest.raises(InputError, match="fit outside of"):
        FIT.run(gaze, pairs)
    assert FIT.run(gaze, pairs) == fitted
    assert torch.equal(logits_of(model, inputs_of(gaze)), plain)


def test_two_pairs_are_too_few(gaze, pairs):
    with pytest.raises(RegazeError, match="needs 3 pairs at the least to be fitted, demo gives 2"):
        FIT.run(gaze, pairs.first(2))


# Families ---------------------------------------------------------------------------------------------


#: Their layers have no MLP as a module of its own, or the tower runs before the part that is edited.
NO_MLP = {"blip-2", "florence2"}
#: Towers with a row of tokens per picture that is the same for all.
FITTED = [
    *("llava", "vipllava", "deepseek_vl", "deepseek_vl_hybrid", "janus", "llava_next", "llava_next_video"),
    *("llava_onevision", "internvl", "aya_vision", "cohere2_vision", "perception_lm", "paligemma", "gemma3"),
    *("aria", "idefics2", "idefics3", "smolvlm", "ovis2", "granite4_vision", "qianfan_ocr"),
]
#: One of each kind of the others, and what is said about it.
REFUSED = {
    "qwen2_vl": "has no vision tower whose blocks regaze knows",
    "lfm2_vl": "is not given pictures",
    "mistral3": "the tokens of PixtralVisionModel are",
    "gemma3n": "has no vision tower",
    "instructblip": "has no vision tower whose blocks regaze knows",
    "emu3": "has no vision tower whose blocks regaze knows",
}


@pytest.mark.slow
@pytest.mark.parametrize("entry", RUNNING, ids=label)
def test_families_run_under_text_directions_or_say_why_not(entry):
    skip_if_older(entry)
    gaze = regaze.wrap(*entry.build())
    shape = about(gaze.host)
    found = directions("vti", shape, {"text": normal(shape["layers"], shape["width"])})
    inputs = gaze.inputs([picture(1, *entry.sizes[0])], ["What is this?"])
    method = VTI(directions=found, text=5.0, vision=0.0)
    if entry.name in NO_MLP:
        with gaze.using(method), pytest.raises(UnsupportedModelError, match="no `mlp` whose output"):
            logits_of(gaze.model, inputs, tokens=2)
        return
    plain = logits_of(gaze.model, inputs, tokens=2)
    with gaze.using(method):
        edited = logits_of(gaze.model, inputs, tokens=2)
    assert not torch.equal(edited, plain)
    assert not edited.isnan().any()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for number in range(3):
        path = folder / f"{number}.png"
        picture(number, 56, 56).save(path)
        found.append(CaptionPair(path, path.name, "a dog.", "the cat."))
    return Examples(tuple(found), "made", "0")


def family(name):
    entry = next(each for each in RUNNING if each.name == name)
    skip_if_older(entry)
    return regaze.wrap(*entry.build())


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
def test_families_are_fitted_and_steered(name, made):
    gaze = family(name)
    found = VTIFit(copies=2, strength=1.0).run(gaze, made)
    inputs = gaze.inputs([picture(5, 56, 56)], ["What is this?"])
    with torch.no_grad():
        plain = gaze.model(**inputs).logits
        for text, vision in ((5.0, 0.0), (0.0, 5.0)):
            with gaze.using(VTI(directions=found, text=text, vision=vision)):
                assert not torch.equal(gaze.model(**inputs).logits, plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_families_whose_towers_are_not_fitted_say_why(name, made):
    gaze = family(name)
    with pytest.raises(UnsupportedModelError, match=f"{REFUSED[name]}.*vision=false"):
        VTIFit(copies=2).run(gaze, made)
    assert VTIFit(vision=False).run(gaze, made).names == ("text",)


def test_text_models_are_steered(model):
    small = tiny_llama()
    found = directions("vti", about(small), {"text": normal(5, 48)})
    inputs = {"input_ids": torch.randint(5, 200, (2, 7)), "attention_mask": torch.ones(2, 7).long()}
    plain = logits_of(small, inputs)
    with regaze.wrap(small).using(VTI(directions=found, vision=0.0, text=3.0)):
        assert not torch.allclose(logits_of(small, inputs), plain, atol=1e-2)


def test_another_model_of_the_same_shape_is_warned_about(gaze):
    with pytest.warns(Warning, match="were fitted on demo"), gaze.using(VTI(directions=vti_directions(DEMO))):
        gaze.model(**inputs_of(gaze))
