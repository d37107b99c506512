"""FLB against the authors' outputs, and against sums of the logits of separate forwards."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    close_as_goldens_ask,
    golden,
    inputs_of,
    plain_logits,
)
from models import logits_of

from regaze import Role, TokenMap
from regaze.errors import BadParameterError, InputError
from regaze.interventions import M3ID, VCD
from regaze.interventions.flb import FLB
from regaze.toolkit.model.logits import LogitsCombination, combine

STRONG = FLB(gamma=2.0, decay=0.5)


def boosted(flb: FLB, logits: torch.Tensor) -> torch.Tensor:
    """Scores of the logits [T, B, V] of consecutive tokens from the first."""
    weight = flb.weight(torch.arange(len(logits))[:, None])
    return combine(logits, [LogitsCombination(others=[(weight, logits[:1])], plausibility=flb.beta)])


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    first, later = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, 1.5])
    wanted = {
        1: [0.043894, 2.014631, 1.5],
        10: [0.354122, 2.118041, 1.5],
        100: [0.893936, 2.297979, 1.5],
    }
    for t, want in wanted.items():
        got = later + FLB().weight(torch.tensor([[t]]))[0, 0] * first
        torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=1e-6)
    weights = FLB().weight(torch.tensor([[-1, 0, 1, 10, 20, 50, 100, 10_000]]))[0, :, 0]
    published = torch.tensor([0.0, 0.0, 0.014631, 0.118041, 0.189636, 0.275374, 0.297979, 0.3])
    torch.testing.assert_close(weights, published, rtol=0, atol=1e-6)


def test_golden_boost(shared):
    """All but the case together with VCD, whose scores the release boosts: here both read plain logits."""
    spec, tensors = golden(shared / "goldens", "flb", "boost")
    for name, case in spec["cases"].items():
        params = case["params"]
        flb = FLB(gamma=params["gamma"], decay=params["lambda"], beta=params["beta"])
        weights = flb.weight(torch.arange(params["steps"])[None])[0, :, 0]
        close_as_goldens_ask(weights, tensors[f"{name}/out/weights"])
        if case["kind"] == "paper":
            close_as_goldens_ask(boosted(flb, tensors[f"{name}/in/logits"]), tensors[f"{name}/out/scores"])
    assert len(spec["cases"]) >= 3


def test_the_same_boost_of_every_token_changes_nothing():
    logits = torch.randn(4, 2, 9, generator=torch.Generator().manual_seed(0))
    logits[0] = 1.7
    scores = boosted(FLB(gamma=3.0, decay=1.0, beta=0.0), logits)
    torch.testing.assert_close(scores.softmax(-1), logits.softmax(-1))


# In a model -------------------------------------------------------------------------------------------


def test_every_step_adds_the_first_logits(model, gaze):
    inputs = inputs_of(gaze)
    with gaze.using(STRONG):
        got = logits_of(model, inputs, tokens=5)
    inputs = {name: value for name, value in inputs.items() if name != "position_ids"}
    plain = plain_logits(model, inputs, got.argmax(-1).T)
    assert_same_scores(got, boosted(STRONG, plain))
    assert not torch.equal(got.argmax(-1), plain.argmax(-1)), "no token was changed"


def test_batches_padding_full_forward_and_json(gaze):
    assert check_batch(gaze, STRONG).isinf().any()
    check_padding(gaze, STRONG)
    check_full_forward(gaze, STRONG)
    check_choices(gaze, STRONG)
    check_neutral(gaze, FLB(gamma=0.0, beta=0.0))
    check_json(FLB(gamma=0.5, decay=0.1, beta=0.2))


def test_beside_a_branch_beams_keep_the_first_logits_of_their_prompt(gaze):
    """The rows of the branch are re-ordered with the user's."""
    check_choices(gaze, VCD(), STRONG)
    inputs = inputs_of(gaze, slice(0, 2))
    with gaze.using(STRONG):
        alone = logits_of(gaze.model, inputs)
    with gaze.using(VCD(alpha=1e-9, beta=0.0), STRONG):
        assert_same_scores(logits_of(gaze.model, inputs), alone)


def test_without_a_boost_the_cut_acts_alone(model, gaze):
    inputs = inputs_of(gaze)
    plain = logits_of(model, inputs)
    cut = plain < plain.amax(-1, keepdim=True) + torch.tensor(0.3).log()
    with gaze.using(FLB(gamma=0.0, beta=0.3)):
        assert torch.equal(logits_of(model, inputs), plain.masked_fill(cut, -torch.inf))
    with gaze.using(FLB(beta=0.3)):  # the first token, whatever the boost
        first = logits_of(model, inputs, tokens=1)
        assert torch.equal(first, plain[:1].masked_fill(cut[:1], -torch.inf))


@pytest.mark.parametrize("method", [FLB(gamma=2.0, decay=0.5, beta=0.0), M3ID(decay=0.4, kappa=1.0)])
def test_a_further_turn_counts_from_its_own_first_token(model, gaze, method):
    """The same as the whole chat as a prompt: the first logits, and their weight, begin anew."""
    inputs = inputs_of(gaze, slice(0, 1))
    options = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    question = gaze.processor.tokenizer(" What colour is the dog?", add_special_tokens=False)["input_ids"]
    with gaze.using(method):
        first = model.generate(**inputs, max_new_tokens=4, **options)
        ids = torch.cat([first.sequences, torch.tensor([question])], 1)
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        more = {"past_key_values": first.past_key_values, "max_new_tokens": 4, "output_logits": True}
        got = torch.stack(model.generate(**turn, **more, **options).logits)
    with gaze.using(method, tokens=whole_prompt(gaze, inputs, ids)):
        want = logits_of(model, {**inputs, **turn}, tokens=4)
    assert_same_scores(got, want, tolerance=5e-4)


def whole_prompt(gaze, inputs, ids):
    """Roles of a chat whose answers are part of the prompt, so that none of them counts."""
    roles = torch.full(ids.shape, int(Role.QUERY))
    start = gaze.tokens(inputs).roles
    roles[:, : start.shape[1]] = start
    return TokenMap.from_roles(roles)


def test_the_first_row_must_be_among_the_logits(model, gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    with gaze.using(STRONG):
        answer = logits_of(model, inputs, tokens=3).argmax(-1).T
        ids = torch.cat([inputs["input_ids"], answer], 1)
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with pytest.raises(InputError, match="leave out logits_to_keep"), torch.no_grad():
            model(**whole, logits_to_keep=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": -1.0}, "gamma must be float >= 0, got -1"),
        ({"decay": -0.1}, "decay must be float >= 0, got -0.1"),
        ({"beta": 1.5}, r"in \[0, 1\], got 1.5"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        FLB(**changes)
