"""SID: what it hides, and scores against forwards in which other tokens are really hidden in each layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_choices,
    check_json,
    check_neutral,
    check_padding,
    check_shared_keys,
    close_as_goldens_ask,
    golden,
    inputs_of,
    plain_logits,
    scores,
)
from models import logits_of, picture, tiny_llava

from regaze.errors import BadParameterError
from regaze.interventions.common.ranking import least_attended
from regaze.interventions.controls import PlausibilityCut
from regaze.interventions.controls.random_tokens import random_scores
from regaze.interventions.sid import SID
from regaze.interventions.vcd import VCD

HIDING = SID(kept=9, beta=0.0, alpha=1.0)


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    heads = torch.tensor([[0.10, 0.02, 0.06, 0.01, 0.05, 0.04], [0.06, 0.04, 0.02, 0.03, 0.05, 0.08]])
    chosen = least_attended(heads.mean(0)[None], torch.ones(1, 6, dtype=torch.bool), torch.tensor([2]))
    assert chosen[0].nonzero().flatten().tolist() == [1, 3]
    main, other = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]]), torch.tensor([[[1.0, 2.0, 0.0, -9.0]]])
    assert torch.equal(scores(main, other, 0.5, 0.1), torch.tensor([[[2.5, 0.5, 0.0, -torch.inf]]]))
    assert scores(main, other, 0.5, 0.0).argmax() == 3  # as the release's greedy search


def test_golden_combine(shared):
    spec, tensors = golden(shared / "goldens", "sid", "combine")
    for name, case in spec["cases"].items():
        params = case["params"]
        main, other = (tensors[f"{name}/in/logits_{part}"] for part in ("main", "second"))
        want = tensors[f"{name}/out/scores"]
        released = case["kind"] == "as_released"
        for step in range(params["steps"]):
            pair = main[step][:, None], other[step][:, None]
            got = scores(*pair, params["alpha"], params["beta"])[:, 0]
            if released:
                greedy = scores(*pair, params["alpha"], 0.0)[:, 0].argmax(-1)
                assert torch.equal(greedy, tensors[f"{name}/out/tokens_released"][step])
                assert torch.equal(got.argmax(-1), tensors[f"{name}/out/tokens_ours"][step])
            else:
                close_as_goldens_ask(got, want[step], atol=5e-6)
    assert len(spec["cases"]) >= 3


def test_golden_select(shared):
    """Every sample chooses for itself, as `own_choice` says; the release takes the first one's for all."""
    spec, tensors = golden(shared / "goldens", "sid", "select")
    for name, case in spec["cases"].items():
        params, attention = case["params"], tensors[f"{name}/in/attention"]
        start, count = params["image_start"], params["image_tokens"]
        row = attention.mean(1)[:, -1, start : start + count]
        kept = torch.full((len(row),), params["kept"])
        chosen = least_attended(row, torch.ones_like(row, dtype=torch.bool), kept)
        want = tensors[f"{name}/out/own_choice"]
        assert torch.equal(chosen.nonzero()[:, 1].view(len(row), -1) + start, want.long())
        if case["kind"] == "paper":
            hidden = torch.zeros(attention.shape[-1], dtype=torch.bool)
            hidden[start : start + count] = ~chosen[0]
            before, after = (tensors[f"{name}/out/visible_{part}"][0].bool() for part in ("before", "after"))
            assert torch.equal(after, before & ~hidden)
    assert len(spec["cases"]) >= 3


# In a model -------------------------------------------------------------------------------------------


def branch_logits(inputs, answer, kept, first_layer, scores=None):
    """[T, B, V] of the branch, each step by a fresh eager forward in which rows see what they saw.

    The rows of the prompt have the choice of its last row, each later row its own; all that of `scores`, if
    given.
    """
    model = tiny_llava()
    model.model.language_model.config._attn_implementation = "eager"
    model.config._attn_implementation = "eager"
    layers, prompt = model.model.language_model.layers, inputs["input_ids"].shape[1]
    results = []
    for step in range(answer.shape[1]):
        ids = torch.cat([inputs["input_ids"], answer[:, :step]], 1)
        given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            row = model(**given, output_attentions=True).attentions[first_layer - 1].mean(1)[0]
        length, image = ids.shape[1], (ids[0] == model.config.image_token_id).nonzero().flatten()
        mask = torch.full((length, length), -torch.inf).triu(1)
        for end in range(prompt - 1, length):
            order = (row[end, image] if scores is None else scores).argsort(stable=True)
            rows = slice(0, prompt) if end == prompt - 1 else slice(end, end + 1)
            mask[rows, image[order[kept:]]] = -torch.inf

        def hide(module, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask[None, None].clamp_min(-1e30)}

        handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers[first_layer:]]
        with torch.no_grad():
            results.append(model(**given).logits[:, -1])
        for handle in handles:
            handle.remove()
    return torch.stack(results)


@pytest.mark.parametrize(("kept", "first_layer"), [(9, 2), (1, 1), (40, 5)])
@pytest.mark.parametrize("images", [1, 2])
def test_every_step_contrasts_with_what_is_attended_to_least(model, gaze, kept, first_layer, images):
    inputs = gaze.inputs([[picture(n) for n in range(images)]], ["Is there a dog in the image?"])
    method = SID(kept=kept, first_layer=first_layer, alpha=1.0)
    with gaze.using(method):
        got = logits_of(model, inputs, tokens=4)
    answer, inputs = got.argmax(-1).T, {**inputs}
    inputs.pop("position_ids", None)
    main, other = plain_logits(model, inputs, answer), branch_logits(inputs, answer, kept, first_layer)
    assert not torch.allclose(main, other, atol=1e-2)
    assert_same_scores(got, scores(main, other, 1.0, 0.1), tolerance=5e-4)


def test_with_a_seed_other_tokens_are_kept_the_same_at_every_step(model, gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    method = replace(HIDING, seed=3)
    with gaze.using(method):
        got = logits_of(model, inputs, tokens=4)
    answer, inputs = got.argmax(-1).T, {**inputs}
    inputs.pop("position_ids", None)
    drawn = random_scores(
        torch.ones(1, int(inputs["input_ids"].eq(model.config.image_token_id).sum())) > 0, 3
    )
    main, other = plain_logits(model, inputs, answer), branch_logits(inputs, answer, 9, 2, drawn[0])
    assert_same_scores(got, scores(main, other, 1.0, 0.0), tolerance=5e-4)
    check_batch(gaze, method)
    assert SID().controls() == (PlausibilityCut(0.1), SID(seed=0))
    assert SID(seed=0).controls() == (PlausibilityCut(0.1),)


def test_the_default_share_is_100_of_576():
    count = SID().count(torch.tensor([576, 64, 2, 0]))
    assert count.tolist() == [100, 11, 1, 1]
    assert SID(kept=50).count(torch.tensor([576, 64])).tolist() == [50, 50]


def test_keeping_every_token_contrasts_with_nothing(model, gaze):
    inputs = inputs_of(gaze)
    plain = logits_of(model, inputs)
    with gaze.using(SID(kept=1000, beta=0.0)):
        assert_same_scores(logits_of(model, inputs), plain, tolerance=1e-3)


@pytest.mark.parametrize("method", [HIDING, SID()])
def test_batches_and_prompts_without_an_image(model, gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(model, inputs_of(gaze))
    assert_same_scores(together[:, 2], plain[:, 2])
    assert not torch.allclose(together[:, 0], plain[:, 0], atol=1e-2)


def test_neutral_strength_padding_shared_keys_choices_and_json(gaze):
    check_neutral(gaze, SID(alpha=0.0, beta=0.0))
    check_padding(gaze, HIDING)
    check_shared_keys(SID(kept=3, beta=0.0, alpha=1.0))
    check_choices(gaze, HIDING)
    check_json(SID(kept=4, share=0.5, first_layer=3))


def test_beside_another_branch_only_its_own_hides_tokens(model, gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    parts = []
    for methods in ((HIDING,), (VCD(beta=0.0),), (VCD(beta=0.0), HIDING)):
        with gaze.using(*methods):
            parts.append(logits_of(model, inputs, tokens=1))
    plain = plain_logits(model, dict(inputs), parts[-1].argmax(-1).T)
    assert_same_scores(parts[2], parts[0] + parts[1] - plain, tolerance=5e-4)


def test_layers_that_are_not_there(gaze):
    with (
        pytest.raises(BadParameterError, match="first_layer 6 does not exist"),
        gaze.using(SID(first_layer=6)),
    ):
        gaze.model(**inputs_of(gaze, slice(0, 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_layer": 0}, "first_layer must be int > 0, got 0"),
        ({"share": 0.0}, r"share must be float in \(0, 1\], got 0"),
        ({"kept": 0}, "kept must be int > 0"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        SID(**changes)
