"""Nullu: the equations and goldens, the projection inside a model, what the fit measures."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    check_batch,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    golden,
    inputs_of,
)
from directions import LLAVA, about, directions, normal, nullu_directions
from models import llava_processor, logits_of, picture, tiny_llama, tiny_llava
from zoo.every import RUNNING, label, skip_if_older

import regaze
from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.interventions import Nullu
from regaze.interventions.fitting import demo_pairs
from regaze.interventions.nullu import NulluFit
from regaze.interventions.nullu.fit import edit_features, first_directions
from regaze.interventions.nullu.method import remove

# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    """E = (-2, 0, 0), (0, -1, 0), (-1, 0, 1): its main direction is removed from (1, 1, 1), or both."""
    invented = torch.tensor([[4.0, 0, 0], [0, 2, 0], [2, 0, 0]])
    true = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 2]])
    basis = first_directions(edit_features(true, invented), 2).float()
    assert basis[0].abs().tolist() == pytest.approx([0.973249, 0, 0.229753], abs=1e-6)
    y = torch.ones(1, 3)
    assert remove(y, basis[:1])[0].tolist() == pytest.approx([0.276393, 1, 1.170820], abs=1e-6)
    assert remove(y, basis)[0].tolist() == pytest.approx([0.276393, 0, 1.170820], abs=1e-6)


def test_goldens(shared):
    described, tensors = golden(shared / "goldens", "nullu", "fit")
    for case, entry in described["cases"].items():
        params = entry["params"]
        true, invented, down, rows = (
            tensors[f"{case}/in/{name}"] for name in ("true", "invented", "down", "mlp_output")
        )
        for number, layer in enumerate(range(params["first"], params["end"])):
            features = edit_features(true[:, layer], invented[:, layer], params["centering"])
            basis = first_directions(features, params["rank"]).float()
            found = {
                "projector": basis.mT @ basis,
                "down": down[number] - basis.mT @ (basis @ down[number]),
                "mlp_output": remove(rows, basis),
            }
            for name, got in found.items():
                want = tensors[f"{case}/out/{name}"][number]
                torch.testing.assert_close(got, want, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize(("samples", "width"), [(5, 12), (40, 12), (12, 12)])
def test_directions_are_those_of_the_singular_value_decomposition(samples, width):
    x = normal(samples, width).double()
    right = torch.linalg.svd(x, full_matrices=False).Vh[:4]
    basis = first_directions(x, 4)
    torch.testing.assert_close(basis.mT @ basis, right.mT @ right)


def test_what_varies_along_fewer_directions_has_no_more():
    x = normal(6, 2) @ normal(2, 9, seed=1)
    basis = first_directions(x, 4)
    assert basis.norm(dim=-1).round().tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(remove(x, basis.float()), torch.zeros(6, 9), atol=1e-5, rtol=0)


def test_invariants():
    y, basis = normal(3, 5, 16), torch.linalg.qr(normal(16, 4)).Q.mT
    once = remove(y, basis)
    torch.testing.assert_close(remove(once, basis), once, atol=1e-6, rtol=0)
    assert (once.norm(dim=-1) <= y.norm(dim=-1)).all()
    turned = torch.linalg.qr(normal(4, 4, seed=1)).Q @ basis
    torch.testing.assert_close(remove(y, turned), once)
    a, b = normal(7, 16), normal(7, 16, seed=2)
    one, other = (first_directions(edit_features(*pair), 3) for pair in ((a, b), (b, a)))
    torch.testing.assert_close(one.mT @ one, other.mT @ other)
    weight, bias, x = normal(16, 8), normal(16, seed=3), normal(5, 8, seed=4)
    edited = weight - basis.mT @ (basis @ weight)
    torch.testing.assert_close(remove(x @ weight.mT + bias, basis, basis @ bias), x @ edited.mT + bias)
    assert remove(y.bfloat16(), basis).dtype == torch.bfloat16


# In a model -------------------------------------------------------------------------------------------

METHOD = Nullu(directions=nullu_directions(rank=40), rank=40)


def with_other_weights(found, rank, layers):
    """A LLaVA whose down projections are multiplied by I - V V^T."""
    model = tiny_llava()
    with torch.no_grad():
        for number in layers:
            weight, basis = (
                model.get_decoder().layers[number].mlp.down_proj.weight,
                found["basis"][number, :rank],
            )
            weight -= basis.mT @ (basis @ weight)
    return model


@pytest.mark.parametrize(("rank", "layers"), [(40, None), (7, (1, 4)), (4, None)])
def test_every_step_is_that_of_the_edited_weights(gaze, rank, layers):
    found = nullu_directions(rank=40)
    inputs = inputs_of(gaze)
    plain = logits_of(gaze.model, inputs)
    with gaze.using(Nullu(directions=found, rank=rank, layers=layers)):
        got = logits_of(gaze.model, inputs)
    edited = with_other_weights(found, rank, range(layers[0], layers[1] + 1) if layers else range(3, 6))
    torch.testing.assert_close(got, logits_of(edited, inputs), rtol=1e-4, atol=2e-4)
    assert not torch.allclose(got, plain, atol=1e-3)
    assert torch.equal(logits_of(gaze.model, inputs), plain)


def test_beams_and_samples_are_those_of_the_edited_weights(gaze):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    edited = with_other_weights(METHOD.given(), 40, range(3, 6))
    for options in ({"num_beams": 3, "do_sample": False}, {"do_sample": True, "temperature": 0.7}):
        answers = []
        for model, method in ((gaze.model, METHOD), (edited, Nullu(rank=0))):
            torch.manual_seed(0)
            with regaze.wrap(model, llava_processor()).using(method):
                answers.append(model.generate(**inputs, max_new_tokens=6, eos_token_id=None, **options))
        assert torch.equal(*answers)


def test_batch_padding_cache_neutral_and_json(gaze, tmp_path):
    check_batch(gaze, METHOD)
    check_padding(gaze, METHOD)
    check_full_forward(gaze, METHOD)
    check_neutral(gaze, Nullu(rank=0), Nullu(directions=nullu_directions(), rank=0))
    nullu_directions().save(tmp_path / "nullu.safetensors")
    check_json(Nullu(directions=str(tmp_path / "nullu.safetensors"), rank=2, layers=(1, 3)))


def test_its_control_removes_as_many_random_directions(gaze):
    (control,) = METHOD.controls()
    acting = control.for_model(None)
    basis = acting.given()["basis"]
    torch.testing.assert_close(basis @ basis.mT, torch.eye(40).expand(6, 40, 40), atol=1e-5, rtol=0)
    assert not Nullu(rank=0).controls()
    with gaze.using(control):
        random = logits_of(gaze.model, inputs_of(gaze))
    with gaze.using(METHOD):
        assert not torch.allclose(random, logits_of(gaze.model, inputs_of(gaze)), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Nullu(), "regaze fit nullu"),
        (Nullu(directions=nullu_directions(), rank=9), "of rank 8, not 9: set rank, or fit"),
        (Nullu(directions=nullu_directions(), layers=(5, 6)), r"the model has layers 0\.\.5"),
        (Nullu(directions=nullu_directions({**LLAVA, "layers": 7})), "with 7 layers of width 192, but this"),
    ],
)
def test_what_does_not_fit_the_model(gaze, method, message):
    with pytest.raises(BadParameterError, match=message), gaze.using(method):
        gaze.model(**inputs_of(gaze))


# The fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["all", "answer", "last"])
def test_pooled_states_are_those_of_plain_forwards(model, pool):
    """After every layer, the caption as a finished turn; the mean over the prompt comes with them."""
    gaze, pair = regaze.wrap(model, llava_processor()), demo_pairs().items[1]
    got = NulluFit(pool=pool)._states(gaze, pair)
    prompt, means = f"USER: <image>\n{pair.question} ASSISTANT:", []
    for caption in (pair.true, pair.invented):
        with regaze.toolkit.prompts.images.open_image(pair.image) as image:
            inputs = llava_processor()(text=f"{prompt} {caption}</s>", images=[image], return_tensors="pt")
            start = llava_processor()(text=prompt, images=[image], return_tensors="pt")["input_ids"].shape[1]
        assert inputs["input_ids"][0, -1] == llava_processor().tokenizer.eos_token_id
        kept: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(
                lambda m, a, out, kept=kept: kept.append((out[0] if isinstance(out, tuple) else out)[0])
            )
            for layer in model.get_decoder().layers
        ]
        with torch.no_grad():
            model(**inputs)
        for hook in hooks:
            hook.remove()
        rows = {"all": slice(None), "answer": slice(start, None), "last": slice(-1, None)}[pool]
        means.append(torch.stack([hidden[rows].mean(0) for hidden in kept]))
        prompts = torch.stack([hidden[:start].mean(0) for hidden in kept])
    torch.testing.assert_close(got[:2], torch.stack(means), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[2], prompts, rtol=1e-4, atol=1e-4)


def test_a_fit_is_used_and_says_how_far_it_points_along_the_prompt(model, tmp_path):
    gaze, data = regaze.wrap(model, llava_processor()), demo_pairs().first(4)
    found = NulluFit(rank=3).run(gaze, data, parts=tmp_path / "parts")
    assert NulluFit(rank=3).run(gaze, data, parts=tmp_path / "parts") == found
    assert found["basis"].shape == (6, 3, 192)
    assert len(found.about["report"]["largest cosine with the prompt's mean"]) == 6
    found.save(tmp_path / "nullu.safetensors")
    method = Nullu(directions=str(tmp_path / "nullu.safetensors"), rank=3)
    plain = logits_of(model, inputs_of(gaze))
    with gaze.using(method):
        assert not torch.equal(logits_of(model, inputs_of(gaze)), plain)


# Families ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("entry", RUNNING, ids=label)
def test_families_run_or_say_why_not(entry):
    skip_if_older(entry)
    gaze = regaze.wrap(*entry.build())
    shape = about(gaze.host)
    method = Nullu(directions=nullu_directions(shape, rank=8), rank=8)
    inputs = gaze.inputs([picture(1, *entry.sizes[0])], ["What is this?"])
    if entry.name in ("blip-2", "florence2"):
        with gaze.using(method), pytest.raises(UnsupportedModelError, match="no `mlp` whose output"):
            logits_of(gaze.model, inputs, tokens=2)
        return
    plain = logits_of(gaze.model, inputs, tokens=2)
    with gaze.using(method):
        edited = logits_of(gaze.model, inputs, tokens=2)
    assert not torch.equal(edited, plain)
    assert not edited.isnan().any()


def test_a_bias_of_the_last_matrix_stays():
    small = tiny_llama(mlp_bias=True)
    with torch.no_grad():
        for number, layer in enumerate(small.get_decoder().layers):
            layer.mlp.down_proj.bias.copy_(normal(48, seed=number))
    found = directions(
        "nullu", about(small), {"basis": torch.linalg.qr(normal(5, 48, 6)).Q.mT.contiguous()}, basis="basis"
    )
    inputs = {"input_ids": torch.randint(5, 200, (2, 7)), "attention_mask": torch.ones(2, 7).long()}
    with regaze.wrap(small).using(Nullu(directions=found, rank=6, layers=(0, 4))):
        got = logits_of(small, inputs)
    with torch.no_grad():
        for number, layer in enumerate(small.get_decoder().layers):
            layer.mlp.down_proj.weight -= found["basis"][number].mT @ (
                found["basis"][number] @ layer.mlp.down_proj.weight
            )
    torch.testing.assert_close(got, logits_of(small, inputs), rtol=1e-4, atol=2e-4)
