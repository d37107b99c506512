"""WAAD, FAI and the rest of the rhythm, against the notes' hand example, dense attention and invariants."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import picture

from regaze.errors import BadParameterError, InputError, RecordingError, ShapeError
from regaze.interventions import VCD
from regaze.toolkit.analysis import (
    Horizon,
    head_signals,
    middle_layers,
    recorded_rhythm,
    rhythm,
    split_heads,
    top_fraction,
    waad_changes,
    with_answers,
)

NAN = float("nan")


def close(actual, expected, atol=1e-6):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol, equal_nan=True)


def example():
    rows = [[1], [0.5, 0.5], [0.2, 0.3, 0.5], [0.4, 0.1, 0.1, 0.4], [0.1, 0.1, 0.2, 0.3, 0.3]]
    return torch.tensor([row + [0.0] * (5 - len(row)) for row in rows])


def test_hand_example():
    found = head_signals(example(), torch.arange(5), Horizon(window=2, low=1, high=2))
    close(found.waad, [0, 0.5, 0.7, 1.1, 1.1])
    close(found.distance, [0, 0.5, 0.7, 1.5, 1.4])
    close(found.fai, [0.35, 0.20, 0.15, 0.30, NAN])
    close(waad_changes(found.waad), [0.5, 0.2, 0.4, 0.0])
    response = head_signals(example()[1:], torch.arange(1, 5))
    close(response.distance.mean(), 1.025)
    assert top_fraction(found.fai, 0.4).tolist() == [0, 3]  # ceil(0.4 * 4) of those that have one
    assert top_fraction(waad_changes(found.waad), 0.4).tolist() == [0, 2]


def test_heads_by_hand():
    diagonal, previous = torch.eye(6), torch.zeros(6, 6)
    previous[0, 0] = 1.0
    previous[torch.arange(1, 6), torch.arange(5)] = 1.0
    first = torch.zeros(6, 6)
    first[:, 0] = 1.0
    found = head_signals(torch.stack([diagonal, previous, first]), torch.arange(6), Horizon(window=3))
    close(found.distance, [[0] * 6, [0, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5]])
    close(found.waad, [[0] * 6, [0, 1, 1, 1, 1, 1], [0, 1, 2, 3, 3, 3]])
    close(found.fai[2], [1.0, 0, 0, 0, 0, 0])
    close(found.fai[0], [1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1])  # the token's own row counts
    skipped = head_signals(torch.stack([previous, first])[:, 1:], torch.arange(1, 6), Horizon(skip=1))
    assert not skipped.distance[1].any()  # what it looks at does not count
    local, global_ = split_heads(torch.tensor([[3.0, 1.0], [1.0, 9.0], [4.0, 8.0]]), 0.3)
    assert local.tolist() == [[False, True], [False, False], [False, False]]
    assert global_.tolist() == [[False, False], [False, True], [False, False]]
    both = split_heads(torch.tensor([[3.0, 1.0], [1.0, 9.0], [4.0, 8.0]]), 0.5)
    assert both[0].tolist() == [[True, True], [True, False], [False, False]]
    assert torch.equal(~both[0], both[1])


@given(
    st.integers(1, 12),
    st.integers(0, 6),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(0, 99),
)
def test_any_response(count, prompt, heads, low, reach, seed):
    torch.manual_seed(seed)
    total = prompt + count
    weights = torch.rand(heads, total, total).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    rows = torch.arange(prompt, total)
    horizon = Horizon(window=3, low=low, high=low + reach)
    found = head_signals(weights[:, rows], rows, horizon)
    for t in range(count):
        place = prompt + t
        back = place - torch.arange(place + 1)
        close(found.waad[:, t], (weights[:, place, : place + 1] * back.clamp(max=3)).sum(-1), atol=1e-5)
        later = [u for u in range(prompt, total) if place + low <= u <= place + low + reach]
        expected = weights[:, later, place].mean(1) if later else torch.full((heads,), NAN)
        close(found.fai[:, t], expected, atol=1e-6)
    unclipped = head_signals(weights[:, rows], rows, Horizon(window=1000))
    close(unclipped.waad, unclipped.distance, atol=1e-5)
    assert found.waad.max() <= 3 + 1e-5
    known = found.fai[~found.fai.isnan()]
    assert ((known >= 0) & (known <= 1 + 1e-6)).all()


@pytest.fixture(scope="module")
def generated(gaze, model):
    """What was recorded while it was generated, and the same answers forced."""
    prompts = gaze.inputs([picture(1), picture(2)], ["Is there a dog in the image?", "What?"])
    with gaze.recording(slices="all") as record, torch.no_grad():
        out = model.generate(**prompts, max_new_tokens=9, do_sample=False, eos_token_id=None)
    return record, with_answers(gaze, prompts, out[:, -9:])


@pytest.mark.parametrize("block", [60, 1 << 21])
def test_forced_and_recorded_answers_have_one_rhythm(gaze, generated, block, monkeypatch):
    monkeypatch.setattr("regaze.toolkit.model.attention_call.CPU_BLOCK_ELEMENTS", block)
    record, inputs = generated
    horizon = Horizon(window=5, low=1, high=3, skip=1)
    found = rhythm(gaze, inputs, horizon=horizon)
    for sample, one in enumerate(found):
        count = len(one.positions)
        recorded = recorded_rhythm(record, horizon=horizon, sample=sample)
        assert one.heads.waad.shape == (6, 6, count)
        same = min(count, len(recorded.positions))
        assert same >= 4
        close(one.heads.waad[..., :same], recorded.heads.waad[..., :same], atol=1e-4)
        close(one.heads.distance[..., :same], recorded.heads.distance[..., :same], atol=1e-3)
        known = same - 4  # later tokens have other later rows
        close(one.heads.fai[..., :known], recorded.heads.fai[..., :known], atol=1e-5)
        assert one.local.sum() == one.global_.sum() == 10  # 30 % of 36
        assert one.distance[one.local].max() <= one.distance[one.global_].min()
        close(one.waad, one.heads.waad[one.local].mean(0))
        assert one.fai.shape == (count,)
        assert one.fai[-1].isnan()
        assert len(one.text) == count
        assert one.text[0].strip() == recorded.text[0].strip()
        assert one.preplans().max() < count - 1


def test_rhythm_of_other_branches_and_layers(gaze, generated):
    plain = rhythm(gaze, generated[1], layers=[4, 2])
    assert plain[0].layers == (2, 4)
    with gaze.using(VCD()):
        close(rhythm(gaze, generated[1], layers=[4, 2])[1].waad, plain[1].waad, atol=1e-4)


def test_what_has_no_rhythm(gaze, model, generated):
    prompts = gaze.inputs([picture(1)], ["What?"])
    with pytest.raises(InputError, match="use with_answers"):
        rhythm(gaze, prompts)
    with gaze.recording(slices="image") as image, torch.no_grad():
        model(**prompts)
    with pytest.raises(RecordingError, match='slices="all"'):
        recorded_rhythm(image)
    with gaze.recording(slices="all") as short, torch.no_grad():
        model(**prompts)
    with pytest.raises(RecordingError, match="two tokens at the least"):
        recorded_rhythm(short)
    for wrong in ({"window": 0}, {"low": 3, "high": 2}, {"skip": -1}):
        with pytest.raises(BadParameterError, match="window must be at least 1"):
            Horizon(**wrong)
    with pytest.raises(ShapeError, match=r"\[\.\.\., R, N\] with R = 4"):
        head_signals(torch.ones(5, 5), torch.arange(4))
    with pytest.raises(BadParameterError, match="share is a fraction"):
        split_heads(torch.ones(2, 2), 0.6)
    with pytest.raises(BadParameterError, match="q is a fraction"):
        top_fraction(torch.ones(3), 0.0)


def test_layers_and_ties():
    assert middle_layers(36) == (12, 15, 18, 21, 24)
    assert middle_layers(6) == (2, 3, 4)
    assert top_fraction(torch.tensor([1.0, 2, 2, 2, NAN]), 0.5).tolist() == [1, 2]
