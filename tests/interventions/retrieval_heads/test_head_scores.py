"""Files of head scores."""

from __future__ import annotations

import json
import os
import random
import resource

import pytest
import torch
from copying_model import (
    HEADS,
    LAYERS,
    RETRIEVAL,
)
from damaged_records import with_junk

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
        ('{"format": "regaze retrieval heads", "version": 1, "layers": 1}', "heads: Field required"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "heads.json").write_text(content)
    with pytest.raises(InputError, match=message):
        RetrievalHeads.load(tmp_path / "heads.json")


OURS = {
    "format": "regaze retrieval heads",
    "version": 1,
    "model": "m",
    "layers": 2,
    "heads": 3,
    "trials": [
        {
            "needle": 0,
            "length": 9,
            "depth": 50,
            "span": [1, 3],
            "recall": 1.0,
            "response": "x",
            "kinds": 2,
            "copied": {"1-2": [2, 2], "0-0": [1, 1]},
        }
    ],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 10**9}, "layers: Input should be less than or equal to 10000"),
        ({"layers": 10_000, "heads": 10_000}, "1 trials of 10000 x 10000 heads are over"),
        ({"trials": []}, "trials: List should have at least 1 item"),
        ({"heads": 2}, "there is no head 1-2 in 2 x 2 heads"),
        ({"trials": [OURS["trials"][0] | {"kinds": 0}]}, r"trials\.0\.kinds: "),
        ({"trials": [OURS["trials"][0] | {"span": [3, 3]}]}, r"trials\.0\.span: \[3, 3\] is empty"),
        ({"trials": [OURS["trials"][0] | {"copied": {"-1-0": [1, 1]}}]}, r"trials\.0\.copied\.-1-0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    (tmp_path / "heads.json").write_text(json.dumps(OURS | change))
    with pytest.raises(InputError, match=message):
        RetrievalHeads.load(tmp_path / "heads.json")


def refusal(path) -> str | None:
    """Why a file is no head file; None for one that is."""
    try:
        RetrievalHeads.load(path).mean("released")
    except InputError as error:
        return str(error)
    return None


def load_damaged(path, cases: int, seed: int) -> int:
    """How many of the damaged files are refused."""
    rng, refused = random.Random(seed), 0
    released = {f"{layer}-{head}": [0.5, 0.25] for layer in range(2) for head in range(3)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(cases):
        content = rng.choice((OURS, released))
        if rng.random() < 0.7:
            content = with_junk(content, rng)
        data = bytearray(json.dumps(content).encode())
        if rng.random() < 0.3:
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] = rng.choice(b'0123456789"{}[],:-eE. \x00\xff')
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)
        message = refusal(path)
        refused += message is not None
        assert message is None or (message.isprintable() and len(message) < 600), f"case {number}: {message}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500 << 10, "over 500 MiB"
    return refused


def test_hundreds_of_damaged_files(tmp_path):
    assert refusal_of(OURS, tmp_path) is None
    assert load_damaged(tmp_path / "heads.json", 500, 0) > 250


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path):
    assert load_damaged(tmp_path / "heads.json", 10_000, 1) > 5_000


def refusal_of(content: dict, tmp_path) -> str | None:
    (tmp_path / "whole.json").write_text(json.dumps(content))
    return refusal(tmp_path / "whole.json")


def test_other_objects_and_deep_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "digits").write_text('{"0-0": [' + "9" * 5000 + "]}")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path in (
        tmp_path,
        tmp_path / "pipe",
        "/dev/zero",
        *(tmp_path / n for n in ("deep", "digits", "bytes")),
    ):
        with pytest.raises(InputError, match=r"cannot be read|nested deeper|digits|not UTF-8"):
            RetrievalHeads.load(path)


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
