"""Files of head scores."""

from __future__ import annotations

import json

import pytest
import torch
from copying_model import (
    HEADS,
    LAYERS,
    RETRIEVAL,
)

from regaze.errors import BadParameterError, InputError
from regaze.interventions.retrieval_heads import (
    RetrievalHeads,
)


def test_both_formats_come_back(found, tmp_path):
    found.save(tmp_path / "ours.json")
    again = RetrievalHeads.load(tmp_path / "ours.json")
    assert torch.equal(again.paper, found.paper)
    assert torch.equal(again.released, found.released)
    assert again.trials == found.trials
    assert json.loads(json.dumps(again.about)) == json.loads(json.dumps(found.about))
    content = json.loads((tmp_path / "ours.json").read_text())
    assert content["mean"] == {"1-2": [1.0, 1.0, 1.0]}
    found.save_released(tmp_path / "released.json")
    text = (tmp_path / "released.json").read_text()
    assert "\n" not in text
    assert json.loads(text) == {
        f"{layer}-{head}": [1.0 if (layer, head) == RETRIEVAL else 0.0] * 6
        for layer in range(LAYERS)
        for head in range(HEADS)
    }
    released = RetrievalHeads.load(tmp_path / "released.json")
    assert torch.equal(released.released, found.released)
    assert released.top(1, "released") == [RETRIEVAL]
    with pytest.raises(BadParameterError, match="no paper scores"):
        released.top(1)
    with pytest.raises(BadParameterError, match="save_released"):
        released.save(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", ":1: not valid JSON"),
        ("[1]", "is no head file"),
        ("{}", "no trial succeeded"),
        ('{"0-0": [], "0-1": []}', "no trial succeeded"),
        ('{"0-0": [0.5], "1-1": [0.5]}', "heads are missing"),
        ('{"0-0": [0.5], "0-1": [0.5, 0.1]}', "lists of different lengths"),
        ('{"zero": [0.5]}', "is no head file"),
        ('{"format": "other", "version": 1}', "this version reads"),
        ('{"format": "regaze retrieval heads", "version": 1, "layers": 1}', "KeyError: 'trials'"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "heads.json").write_text(content)
    with pytest.raises(InputError, match=message):
        RetrievalHeads.load(tmp_path / "heads.json")


def test_ties_go_to_the_lower_head():
    scores = torch.tensor([[[0.0, 0.5], [0.5, 0.2]], [[0.0, 0.5], [0.5, 0.4]]]).double()
    heads = RetrievalHeads(scores, scores)
    assert heads.top(4) == [(0, 1), (1, 0), (1, 1), (0, 0)]
    assert heads.below(0.4) == [(0, 0), (1, 1)]
    assert heads.frequency().tolist() == [[0, 1], [1, 1]]
    with pytest.raises(BadParameterError, match="no top 5"):
        heads.top(5)
    with pytest.raises(BadParameterError, match='"paper" or "released"'):
        heads.mean("mine")
