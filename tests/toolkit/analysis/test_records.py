"""Role flow, head table and maps from records, against hand-made traces and eager attention."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import picture

from regaze import Record, Role, TokenMap
from regaze.errors import BadParameterError, RecordingError, ShapeError
from regaze.interventions.carve.contrast import contrast, contrastive_map
from regaze.interventions.carve.method import CARVE, DESCRIBE
from regaze.toolkit.analysis import (
    attention_distance,
    attention_entropy,
    cross_attention_maps,
    head_table,
    image_map,
    role_flow,
    sink_share,
    visual_entropy,
    with_answers,
)
from regaze.toolkit.analysis.forward import run_forward
from regaze.toolkit.analysis.selection import select_rows
from regaze.toolkit.record.trace import Trace

QUESTIONS = ["Is there a dog in the image?", "What?"]
ROLES = torch.tensor([[Role.PAD, Role.SYSTEM, Role.IMAGE, Role.IMAGE, Role.QUERY, Role.TAIL]])


def hand_trace(weights, rows=None, **changes) -> Trace:
    """A trace of rows [layers, heads, R, n] of one sample behind the roles above."""
    weights = torch.as_tensor(weights)[:, None]
    count = weights.shape[3]
    positions = torch.tensor(rows if rows is not None else [5, *range(6, 5 + count)])
    padded = torch.nn.functional.pad(ROLES[0], (0, weights.shape[-1] - 6)).long()
    parts = {
        "layers": tuple(range(len(weights))),
        "row_position": positions,
        "row_step": (positions - 5).clamp_min(0),
        "row_active": torch.ones(1, count, dtype=torch.bool),
        "masses": weights @ torch.nn.functional.one_hot(padded, len(Role)).float(),
        "slices": weights,
        "tokens": TokenMap.from_roles(ROLES),
        "text": (("<pad>", "<s>", "<i>", "<i>", " dog", "?", " Yes", "."),),
    }
    return Trace(**{**parts, **changes})


@pytest.fixture
def trace():
    """Two layers, two heads; the rows that predict answer tokens 0 and 1."""
    first = [[0.0, 0.1, 0.2, 0.3, 0.3, 0.1, 0.0], [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.4]]
    second = [[0.0, 0.5, 0.1, 0.1, 0.2, 0.1, 0.0], [0.0, 0.4, 0.0, 0.0, 0.1, 0.1, 0.4]]
    third = [[0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    fourth = [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.6, 0.4, 0.0, 0.0, 0.0, 0.0]]
    return hand_trace([[first, second], [third, fourth]])


# Roles ------------------------------------------------------------------------------------------------


def test_role_flow_by_layer_head_and_step(trace):
    flow = role_flow(trace)
    assert flow.masses.shape == (2, 2, 2, 7)
    assert flow.text == (" Yes", ".")
    torch.testing.assert_close(flow.masses.sum(-1), torch.ones(2, 2, 2))
    image = flow.of(Role.IMAGE)
    torch.testing.assert_close(image, torch.tensor([[[0.5, 0.2], [0.2, 0.0]], [[1.0, 0.0], [0.0, 0.4]]]))
    torch.testing.assert_close(flow.by_layer()[:, Role.IMAGE], torch.tensor([0.225, 0.35]))
    torch.testing.assert_close(flow.by_head()[1, :, Role.SYSTEM], torch.tensor([0.0, 0.8]))
    torch.testing.assert_close(flow.by_step()[:, Role.OUTPUT], torch.tensor([0.0, 0.45]))
    lines = str(flow).splitlines()
    assert lines[0].split() == ["layer", "output", "system", "image", "query", "tail"]
    assert lines[2].split() == ["1", "0.2500", "0.4000", "0.3500", "0.0000", "0.0000"]
    assert role_flow(trace, layers=[1], heads=[0], rows=[1]).masses.shape == (1, 1, 1, 7)


def test_what_is_no_row_layer_or_head(trace):
    for wrong, message in (
        ({"layers": [2]}, r"layer 2 was not recorded; the record has \[0, 1\]"),
        ({"heads": []}, "at least one head"),
        ({"rows": "some"}, 'rows must be "answer", "all"'),
        ({"rows": [7]}, "row 7 was not recorded"),
        ({"sample": 1}, "sample 1 was not recorded"),
    ):
        with pytest.raises(BadParameterError, match=message):
            role_flow(trace, **wrong)
    with pytest.raises(RecordingError, match="masses was not recorded"):
        role_flow(dataclasses.replace(trace, masses=None))


def test_distance_and_sink_share_by_hand(trace):
    distance = attention_distance(trace)
    assert distance.shape == (2, 2, 2)
    # Row 5: 0.1 * 4 + 0.2 * 3 + 0.3 * 2 + 0.3 * 1; row 6: 0.1 * 4 + 0.1 * 3 + 0.2 * 2 + 0.2 * 1.
    torch.testing.assert_close(distance[0, 0], torch.tensor([1.9, 1.3]))
    torch.testing.assert_close(distance[1, 1], torch.tensor([4.0, 0.6 * 5 + 0.4 * 4]))
    halved = dataclasses.replace(trace, slices=trace.slices / 2)  # beside a model's own sinks
    torch.testing.assert_close(attention_distance(halved), distance)
    torch.testing.assert_close(sink_share(trace)[:, 1], torch.tensor([[0.5, 0.4], [1.0, 0.6]]))
    sinks = torch.tensor([[0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]]).bool()  # the answer's keys are none
    torch.testing.assert_close(sink_share(trace, sinks)[:, 0], torch.tensor([[0.2, 0.1], [0.5, 0.0]]))
    on_image = dataclasses.replace(trace, slices=trace.slices[..., 2:4], slice_columns=torch.tensor([[2, 3]]))
    share = sink_share(on_image, sinks, of="recorded")
    torch.testing.assert_close(share[:, 0], torch.tensor([[0.4, 0.5], [0.5, 0.0]]))
    with pytest.raises(RecordingError, match='slices="all"'):
        attention_distance(on_image)
    with pytest.raises(ShapeError, match=r"\[layers, L\] = \[2, 6\] bool"):
        sink_share(trace, sinks[:, None])


def test_entropy_of_rows_and_of_what_they_see_of_the_image(trace):
    entropy = torch.special.entr(trace.slices).sum(-1)
    recorded = dataclasses.replace(trace, entropy=entropy)
    assert torch.equal(attention_entropy(recorded), entropy[:, 0])
    on_image = dataclasses.replace(trace, slices=trace.slices[..., 2:4], slice_columns=torch.tensor([[2, 3]]))
    visual = attention_entropy(on_image, of="recorded")
    assert float(visual[1, 0, 0]) == pytest.approx(math.log(2))
    assert float(visual[1, 1, 1]) == 0.0  # all of what it sees of the image is one token
    assert visual[1, 0, 1].isnan()  # nothing
    with pytest.raises(RecordingError, match="entropy=True"):
        attention_entropy(trace)
    with pytest.raises(BadParameterError, match='of must be "row"'):
        attention_entropy(recorded, of="image")


def test_head_table_sorts_prints_and_averages_traces(trace):
    table = head_table(trace)
    assert [(row.layer, row.head) for row in table] == [(1, 0), (0, 0), (1, 1), (0, 1)]
    assert [row.mass for row in table] == pytest.approx([0.5, 0.35, 0.2, 0.1])
    assert table[0].peak == pytest.approx(1.0)
    assert table[0].entropy is None
    far = table.sorted_by("distance")[0]
    assert (far.layer, far.head, far.sink) == (1, 1, pytest.approx(0.8))
    torch.testing.assert_close(table.grid(), torch.tensor([[0.35, 0.1], [0.5, 0.2]]))
    lines = str(table[:2]).splitlines()
    assert lines[0].split()[:6] == ["layer", "head", "mass", "peak", "distance", "sink"]
    assert lines[1].split()[:3] == ["1", "0", "0.5000"]
    other = dataclasses.replace(trace, masses=trace.masses * 0.5)
    both = head_table(Record({}, [trace, other]))
    assert both[0].mass == pytest.approx(0.375)
    assert head_table(trace, role=Role.SYSTEM)[0].head == 1
    with pytest.raises(BadParameterError, match="no column 'size'"):
        table.sorted_by("size")
    with pytest.raises(RecordingError, match="entropy was not recorded"):
        table.grid("entropy")
    with pytest.raises(RecordingError, match="nothing is recorded"):
        head_table(Record({}, []))
    less = table.minus(table)
    assert {row.mass for row in less} == {0.0}


def test_rows_of_a_forced_answer_are_those_of_a_generated_one(gaze, model):
    prompts = gaze.inputs([picture(1), picture(2)], QUESTIONS)
    with gaze.recording() as generated:
        ids = model.generate(**prompts, max_new_tokens=4, do_sample=False, eos_token_id=None)[:, -4:]
    forced = with_answers(gaze, prompts, ids)
    with gaze.recording(rows="text", tokens=forced.tokens) as record, torch.no_grad():
        run_forward(gaze, forced)
    assert len(select_rows(record[0])) == 5  # the row behind the last token, too
    one, other = role_flow(generated, sample=1), role_flow(record, sample=1)
    torch.testing.assert_close(one.masses, other.masses[:, :, :4], rtol=0, atol=1e-5)


# Maps -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(gaze):
    with gaze.recording(slices="image", rows="all") as record:
        gaze.ask([picture(1), picture(2)], QUESTIONS, max_new_tokens=3, eos_token_id=None)
    return record


def test_image_maps(record):
    maps = record[0].image_maps(1)  # [layers, heads, rows, 8, 8]
    rows = record[0].answer_rows()
    raw = image_map(record, token=2, over="none", layers=[4, 0], heads=[5], sample=1)
    assert torch.equal(raw, maps[[4, 0]][:, [5], rows[2]])
    assert torch.equal(image_map(record, sample=1), maps[:, :, rows[0]].mean((0, 1)))
    assert torch.equal(image_map(record, over="max", sample=1), maps[:, :, rows[0]].amax((0, 1)))
    dog = record[0].row_of("dog")
    assert torch.equal(image_map(record, token="dog"), record[0].image_maps(0)[:, :, dog].mean((0, 1)))
    for wrong, message in (
        ({"over": "sum"}, "over must be"),
        ({"token": 3}, "answer token 3 was not recorded"),
        ({"image": 1}, "image 1 was not recorded"),
    ):
        with pytest.raises(BadParameterError, match=message):
            image_map(record, **wrong)


def test_contrast_of_the_paper_and_of_records(gaze, record):
    asked, described = (
        torch.tensor([[[[0.10, 0.40, 0.30, 0.20]]]]),
        torch.tensor([[[[0.10, 0.20, 0.60, 0.10]]]]),
    )
    torch.testing.assert_close(contrast(asked, described, lam=0.0)[0].float(), torch.tensor([1, 2, 0.5, 2]))
    fused = contrast(torch.cat([asked * 0 + 1, asked * 0 + 10], 1), torch.ones(1, 3, 1, 4), lam=0.0)
    torch.testing.assert_close(fused[0].float(), torch.full((4,), 21.0))  # 1 * 1 + 2 * 10
    with pytest.raises(ShapeError, match="equal layers and grids"):
        contrast(asked, described[..., :3])
    assert float(visual_entropy(asked.flatten())) == pytest.approx(1.279854, abs=1e-6)
    with gaze.recording(slices="image") as general:
        gaze.ask([picture(1), picture(2)], [DESCRIBE] * 2, max_new_tokens=2, eos_token_id=None)
    found = contrastive_map(record, general, layers=[2, 3], sample=1, lam=1e-6)
    maps = [each[0].image_maps(1)[[2, 3]][:, :, each[0].answer_rows()].mean(1) for each in (record, general)]
    torch.testing.assert_close(found, CARVE(lam=1e-6).fuse(*maps))
    torch.testing.assert_close(
        contrastive_map(record, record, lam=0.0, steps="first"), torch.full((8, 8), 6.0).double()
    )


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2))
def test_cross_attention_maps(layers, heads, rows, columns, prefix):
    torch.manual_seed(rows)
    given_ = [torch.rand(2, heads, 3, prefix + rows * columns) for _ in range(layers)]
    raw = cross_attention_maps(given_, (rows, columns), prefix=prefix, over="none")
    assert raw.shape == (layers, 2, heads, 3, rows, columns)
    row, column = rows - 1, columns // 2
    cell = prefix + row * columns + column
    dense = torch.stack(given_)[..., cell]
    assert torch.equal(raw[..., row, column], dense)
    mean = cross_attention_maps(given_, (rows, columns), prefix=prefix)
    torch.testing.assert_close(mean[..., row, column], dense.mean((0, 2)))
    top = cross_attention_maps(given_, (rows, columns), prefix=prefix, over="max", layers=[0], heads=[0])
    assert torch.equal(top[..., row, column], given_[0][:, 0, :, cell])
    with pytest.raises(ShapeError, match=r"\[B, Hq, T, "):
        cross_attention_maps(given_, (rows, columns + 1), prefix=prefix)
