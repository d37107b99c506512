"""Retrieval scores against the authors' outputs, by hand, and their invariants; recall of an answer."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from regaze.errors import ShapeError
from regaze.interventions.retrieval_heads import (
    count_copies,
    needle_span,
    unigram_recall,
)


def golden(goldens, name):
    return json.loads((goldens / "methods/retrieval" / name).read_text())["cases"].items()


def test_goldens_of_the_score(goldens):
    tensors = load_file(goldens / "methods/retrieval/score.safetensors")
    for case, about in golden(goldens, "score.json"):
        params, given = about["params"], lambda name, case=case: tensors[f"{case}/{name}"]
        output = given("out/output_used")
        rows = given("in/attn")[: len(output)]
        columns = rows.argmax(-1)
        assert torch.equal(columns, given("in/argmax")[: len(output)])
        span = (params["needle_start"], params["needle_end"])
        copied = count_copies(columns, output, given("in/prompt"), span)
        torch.testing.assert_close(copied.released, given("out/score"), rtol=0, atol=1e-9)
        torch.testing.assert_close(copied.paper, given("out/score_set"), rtol=0, atol=1e-9)


def test_goldens_of_the_needle_span(goldens):
    for _, about in golden(goldens, "needle_span.json"):
        prompt, needle = about["params"]["prompt"], about["params"]["needle"]
        assert (needle_span(prompt, needle, as_released=True) or (-1, -1))[0] == about["found_start"]
        assert (needle_span(prompt, needle) or (-1, -1))[0] == about["exact_start"]


def test_the_released_matcher_starts_early_with_many_different_tokens():
    for kinds, early in ((10, 0), (20, 1)):
        needle = list(range(kinds))
        prompt = [100 + i for i in range(30)] + needle + [200, 201]
        assert needle_span(prompt, needle) == (30, 30 + kinds)
        assert needle_span(prompt, needle, as_released=True) == (30 - early, 30 - early + kinds)


def test_hand_example():
    prompt = [1, 11, 12, 13, 50, 51, 52, 53, 54, 20, 21]
    columns = torch.tensor([4, 5, 6, 7, 7, 0]).view(6, 1, 1)
    copied = count_copies(columns, [50, 51, 99, 53, 53, 54], prompt, (4, 9))
    assert float(copied.released) == pytest.approx(0.8)
    assert float(copied.paper) == pytest.approx(0.6)


def test_invariants_of_the_score():
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(0, 9, (40,), generator=generator)  # tokens repeat, within the needle, too
    span, steps = (11, 24), 30
    output = torch.randint(0, 9, (steps,), generator=generator)
    columns = torch.randint(8, 28, (steps, 3, 5), generator=generator)
    output[:13], columns[:13, 1, 2] = (
        prompt[11:24],
        torch.arange(11, 24),
    )  # a head that copies it all, once ...
    columns[13:, 1, 2] = 0  # ... and then rests
    copied = count_copies(columns, output, prompt, span)
    assert float(copied.paper[1, 2]) == 1.0
    assert float(copied.released[1, 2]) == 1.0
    assert copied.paper.min() >= 0
    assert copied.paper.max() <= 1
    assert (copied.released > 0).sum() > 3  # chance copies something elsewhere
    assert ((copied.paper > 0) == (copied.released > 0)).all()
    order = torch.randperm(5, generator=generator)
    again = count_copies(columns[:, :, order], output, prompt, span)
    assert torch.equal(again.paper, copied.paper[:, order])
    assert torch.equal(again.released, copied.released[:, order])
    for layer in range(3):  # the definition, slowly
        for head in range(5):
            looked = columns[:, layer, head].tolist()
            hits = [
                int(token)
                for j, token in zip(looked, output, strict=True)
                if 11 <= j < 24 and prompt[j] == token
            ]
            assert float(copied.released[layer, head]) == pytest.approx(len(hits) / 13)
            kinds = len(set(prompt[11:24].tolist()))
            assert float(copied.paper[layer, head]) == pytest.approx(len(set(hits)) / kinds)


def test_misfits_of_the_score():
    with pytest.raises(ShapeError, match=r"columns must be \[M, layers, Hq\]"):
        count_copies(torch.zeros(2, 1, 1, dtype=torch.long), [1], [1, 2], (0, 1))
    for span in ((1, 1), (0, 3), (-1, 1)):
        with pytest.raises(ShapeError, match="not a span of the prompt's 2 tokens"):
            count_copies(torch.zeros(1, 1, 1, dtype=torch.long), [1], [1, 2], span)


@pytest.mark.parametrize(
    ("answer", "response", "recall"),
    [  # as the rouge-score package (0.1.2, use_stemmer=True) gives them
        (
            "eat a sandwich and sit in Dolores Park on a sunny day",
            "Eating sandwiches, sitting in the park",
            5 / 12,
        ),
        ("a a b", "a b b", 2 / 3),
        ("the whales", "The WHALE!", 1.0),
        ("well", "", 0.0),
        ("größer als Übermut", "größer ALS übermut", 1.0),  # ours: letters beyond ASCII count
    ],
)
def test_recall(answer, response, recall):
    assert unigram_recall(answer, response) == pytest.approx(recall)
