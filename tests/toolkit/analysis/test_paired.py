"""The plain and the edited model on the same tokens."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from models import picture, small_var

from regaze import Role
from regaze.errors import BadParameterError, ShapeError
from regaze.interventions import HeadKnockout
from regaze.toolkit.analysis import (
    difference,
    head_table,
    image_map,
    logit_lens,
    plain_and_edited,
    rhythm,
    role_flow,
    rollout,
    with_answers,
)

QUESTIONS = ["Is there a dog in the image?", "What?"]


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1), picture(2)], QUESTIONS)


def test_a_difference_map_is_that_of_two_runs(gaze, inputs):
    both = plain_and_edited(gaze, inputs, small_var(), rollout, answers=["Yes, a dog", "No"], rows="answer")
    forced = with_answers(gaze, inputs, ["Yes, a dog", "No"])
    plain = rollout(gaze, forced, rows="answer")
    with gaze.using(small_var()):
        edited = rollout(gaze, forced, rows="answer")
    assert torch.equal(both.plain.values, plain.values)
    assert torch.equal(both.edited.values, edited.values)
    assert torch.equal(both.difference.values, edited.values - plain.values)
    assert both.difference.values.abs().max() > 1e-4
    assert torch.equal(both.difference.rows, plain.rows)  # positions are not subtracted
    assert both.difference.image_map(row=0, sample=1).shape == (8, 8)
    assert torch.equal(both.inputs["input_ids"], forced["input_ids"])


def test_records_show_edited_rows_of_the_same_tokens(gaze, inputs):
    both = plain_and_edited(gaze, inputs, [small_var()], role_flow, max_new_tokens=3, record={})
    moved = both.difference.masses
    torch.testing.assert_close(moved.sum(-1), torch.zeros(moved.shape[:-1]), rtol=0, atol=1e-5)
    assert moved[..., Role.IMAGE].abs().max() > 1e-3
    assert both.plain.text == both.edited.text
    maps = plain_and_edited(
        gaze, inputs, small_var(), image_map, record={"slices": "image"}, max_new_tokens=3
    )
    torch.testing.assert_close(maps.difference, maps.edited - maps.plain)


def test_a_method_that_does_nothing_makes_no_difference(gaze, inputs):
    same = plain_and_edited(gaze, inputs, small_var(moved=0.0), rhythm, max_new_tokens=5)
    assert len(same.difference) == 2
    assert not same.difference[0].waad.any()
    assert torch.equal(same.difference[1].local, same.plain[1].local)


def test_tables_in_another_order_are_compared_head_by_head(gaze, inputs):
    out = HeadKnockout(heads=[(0, head) for head in range(6)])
    both = plain_and_edited(gaze, inputs, out, head_table, record={"entropy": True}, max_new_tokens=2)
    assert [(r.layer, r.head) for r in both.plain] != [(r.layer, r.head) for r in both.edited]
    torch.testing.assert_close(both.difference.grid(), both.edited.grid() - both.plain.grid())
    assert both.difference.grid("entropy").abs().max() > 1e-3


def test_a_lens_under_an_edit(gaze, inputs):
    both = plain_and_edited(
        gaze, inputs, HeadKnockout(heads=[(2, 1)]), logit_lens, targets=[7], max_new_tokens=2
    )
    before = both.difference.target_probs[:3]  # layers 0, 1 and what enters 2
    assert not before.any()
    assert both.difference.target_probs[3:].abs().max() > 0


class Pair(NamedTuple):
    one: torch.Tensor
    other: float


def test_what_is_subtracted():
    a, b = Pair(torch.tensor([1.0, 2.0]), 1.0), Pair(torch.tensor([4.0, 2.0]), 3.5)
    less = difference(a, b)
    assert isinstance(less, Pair)
    assert less.one.tolist() == [3.0, 0.0]
    assert less.other == 2.5
    nested = difference({"x": [a], "n": 3, "text": "old"}, {"x": [b], "n": 5, "text": "new"})
    assert nested["x"][0].other == 2.5
    assert (nested["n"], nested["text"]) == (5, "new")
    assert difference(torch.tensor([1, 2]), torch.tensor([5, 6])).tolist() == [5, 6]  # numbers of something
    for one, other, message in (
        (torch.ones(2), torch.ones(3), r"cannot subtract \[2\] from \[3\]"),
        ([1.0], [1.0, 2.0], "cannot subtract 1 entries from 2"),
        (1.0, "one", "cannot subtract a float from a str"),
    ):
        with pytest.raises(ShapeError, match=message):
            difference(one, other)


def test_nothing_to_compare_with(gaze, inputs):
    with pytest.raises(BadParameterError, match="at least one intervention"):
        plain_and_edited(gaze, inputs, [], rollout)
