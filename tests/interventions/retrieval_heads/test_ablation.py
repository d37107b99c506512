"""Needles with heads masked."""

from __future__ import annotations

import json

import pytest
import torch
from copying_model import (
    HAYSTACK,
    HEADS,
    LAYERS,
    NEEDLE,
    OPTIONS,
    PREVIOUS,
    RETRIEVAL,
)

from regaze.errors import BadParameterError
from regaze.interventions.retrieval_heads import (
    RetrievalHeads,
    ablate_heads,
)
from regaze.interventions.retrieval_heads.ablation import choose_masks


def ablate(copier, tokenizer, heads, **options):
    merged = {"counts": (0, 1, 3), "draws": 4, **OPTIONS, **options}
    return ablate_heads(copier, tokenizer, heads, HAYSTACK, [NEEDLE], (60,), (20, 80), **merged)


@pytest.mark.parametrize("mode", ["zero", "uniform"])
def test_masking_the_head_loses_the_needle(copier, tokenizer, found, tmp_path, mode):
    result = ablate(copier, tokenizer, found, mode=mode, log=tmp_path / "log")
    done = [json.loads(line)["knockout"] for line in (tmp_path / "log").read_text().splitlines()]
    assert {knockout["mode"] for knockout in done} == {mode}
    assert {tuple(map(tuple, knockout["heads"])) for knockout in done} == {
        tuple(sorted(c.heads)) for c in result.recall
    }
    assert result.needle_score("top", 0)["value"] == result.needle_score("random", 0)["value"] == 100
    for count in (1, 3):
        assert result.needle_score("top", count)["value"] == result.success("top", count) == 0
        # The answer is read from keys and values that exist already: it needs no other head.
        assert result.draws(count) == [100.0] * 4
        assert result.difference(count) == {"value": -100, "low": -100, "high": -100}


def test_masking_while_reading_breaks_the_circuit(copier, tokenizer, found):
    """The other half of the circuit, which scores 0, is needed at prefill."""
    result = ablate(copier, tokenizer, found, while_reading=True)
    for condition, recall in result.recall.items():
        expected = 0.0 if {PREVIOUS, RETRIEVAL} & set(condition.heads) else 1.0
        assert recall.tolist() == [expected] * 2, condition
    draws = [c for c in result.recall if c.kind == "random"]
    assert any(PREVIOUS in c.heads for c in draws)
    assert any(PREVIOUS not in c.heads for c in draws)
    score = result.needle_score("random", 1)
    assert 0 <= score["low"] < score["value"] < score["high"] <= 100


def test_masking_spares_the_prompt_unless_asked_not_to(copier, tokenizer):
    scores = torch.zeros(1, LAYERS, HEADS, dtype=torch.float64)
    scores[0][PREVIOUS] = 1.0
    heads, options = RetrievalHeads(scores, scores), {"counts": (1,), "draws": 1}
    assert ablate(copier, tokenizer, heads, **options).needle_score("top", 1)["value"] == 100
    reading = ablate(copier, tokenizer, heads, while_reading=True, **options)
    assert reading.needle_score("top", 1)["value"] == 0


def test_masking_goes_on_after_an_interruption(copier, tokenizer, found, tmp_path):
    def stop(what, done, total):
        if done == 1:
            raise KeyboardInterrupt

    log = tmp_path / "masking.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ablate(copier, tokenizer, found, log=log, progress=stop)
    lines = log.read_text().splitlines()
    result = ablate(copier, tokenizer, found, log=log)
    assert log.read_text().splitlines()[: len(lines)] == lines
    fresh = ablate(copier, tokenizer, found)
    assert {c: r.tolist() for c, r in result.recall.items()} == {
        c: r.tolist() for c, r in fresh.recall.items()
    }
    assert len(log.read_text().splitlines()) < 2 * len(result.recall) + 1


def test_random_heads_are_seeded_and_no_retrieval_heads():
    mean = torch.zeros(1, 4, 6, dtype=torch.float64)
    mean[0, 1, :5] = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.05])
    heads = RetrievalHeads(mean, mean)
    conditions = choose_masks(heads, (2, 0, 10), draws=5)
    assert [(c.kind, c.count) for c in conditions] == (
        [("top", 0), ("top", 2), ("top", 10)] + [("random", 2)] * 5 + [("random", 10)] * 5
    )
    assert conditions[1].heads == ((1, 0), (1, 1))
    for c in conditions[3:]:
        assert len(set(c.heads)) == c.count
        assert not set(c.heads) & {(1, 0), (1, 1), (1, 2), (1, 3)}
        assert not set(c.heads) & set(heads.top(c.count))
    assert len({c.heads for c in conditions[3:]}) == 10
    assert choose_masks(heads, (2, 0, 10), draws=5) == conditions
    assert set(choose_masks(heads, (2,), draws=3)) <= set(conditions)
    assert choose_masks(heads, (2,), draws=1, seed=1)[-1].heads != conditions[3].heads
    with pytest.raises(
        BadParameterError, match=r"20 random heads are needed, but only \d+ heads score below 0\.1"
    ):
        choose_masks(heads, (20,), draws=1)
    for counts, draws in (((), 1), ((2,), 0)):
        with pytest.raises(BadParameterError, match="at least one count and one random draw"):
            choose_masks(heads, counts, draws)


def test_masking_as_json(copier, tokenizer, found):
    result = ablate(copier, tokenizer, found, counts=(0, 1), draws=2)
    content = json.loads(json.dumps(result.to_dict()))
    assert [(f["heads"], f["kind"], f["value"]) for f in content["figures"]] == [
        (0, "none", 100.0),
        (1, "top", 0.0),
        (1, "random", 100.0),
    ]
    assert content["cells"][0] == {"length": 60, "needle": 0, "depth": 20}
    assert [c["heads"] for c in content["conditions"]][:2] == [[], [list(RETRIEVAL)]]
    assert content["heads of"] == "copier"
    with pytest.raises(BadParameterError, match=r"7 top heads were not masked; there are \[0, 1\]"):
        result.needle_score("top", 7)


def test_nothing_stays_on_the_model(copier, tokenizer, found):
    ids = torch.tensor([tokenizer(HAYSTACK)["input_ids"]])
    before = copier(ids).logits
    ablate(copier, tokenizer, found, counts=(0, 1), draws=1)
    assert torch.equal(copier(ids).logits, before)
    assert "_regaze_hook" not in copier.__dict__
