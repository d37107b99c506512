"""Plain text: accepted words, and log-probabilities of passages under a method."""

from __future__ import annotations

import math

import pytest
import torch

from regaze.errors import InputError
from regaze.eval import EvalTask, evaluate
from regaze.eval.benchmarks.common.base import with_items
from regaze.eval.benchmarks.plain_text import ACCEPTED, LOG_PROBABILITY, Perplexity, TextQuestions
from regaze.eval.run.loglikelihood import answer_prefix, continuation_ids
from regaze.interventions import CARVE, DoLa, HeadKnockout
from regaze.toolkit import load, wrap


def test_a_word_is_accepted_wherever_it_stands_but_not_within_another():
    words = ("seven", "7")
    for answer, right in (("Seven.", 1), ("There are 7 days", 1), ("seventeen", 0), ("17", 0), ("", 0)):
        assert ACCEPTED.score([words], [answer])["accuracy"] == right
    bench = TextQuestions.of_bed()
    assert len(bench.items) == 20
    assert not any(item.images for item in bench.items)
    right = [item.label for item in bench.items]
    assert bench.score({"plain": right}, seed=0)["text"]["regaze"]["plain"]["accuracy"]["value"] == 1


def test_figures_are_per_token_over_all_passages():
    figures = LOG_PROBABILITY.score(["a", "b"], ["-6.000000 of 2 tokens", "-2.000000 of 6 tokens"])
    assert figures == pytest.approx({"logprob": -1, "perplexity": math.e})
    with pytest.raises(InputError, match=r"expected an answer such as .* got 'A passage'"):
        LOG_PROBABILITY.score(["a"], ["A passage"])


@pytest.fixture(scope="module")
def gaze():
    return wrap(*load("demo"))


def test_passages_are_decoded_under_the_method(gaze, tmp_path):
    """Plain ones are those of one forward over prompt and passage; without a head they are others."""
    bench = with_items(Perplexity.of_demo(), Perplexity.of_demo().items[:3])
    methods = {"knockout": HeadKnockout([(1, 0)]), "neutral": DoLa(weight=0.0), "carve": CARVE()}
    results = evaluate(gaze, [EvalTask(bench)], methods, tmp_path, model_name="demo", progress=False)
    expected, tokens = 0.0, 0
    for item in bench.items:
        prompt = gaze.reader.render(item.question, 0).text
        ids = continuation_ids(gaze.reader, prompt, answer_prefix(gaze.processor) + item.continuation)
        inputs = gaze.inputs([[]], [item.question])
        whole = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
        with torch.inference_mode():
            logits = gaze.model(input_ids=whole).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
        expected += float(logits[range(len(ids)), ids].sum())
        tokens += len(ids)
    found = results["benchmarks"]["perplexity"]
    figures = found["plain"]["figures"]["text"]["regaze"]["plain"]
    assert figures["logprob"]["value"] == pytest.approx(expected / tokens, rel=1e-5)
    assert figures["perplexity"]["value"] == pytest.approx(math.exp(-expected / tokens), rel=1e-5)
    assert found["methods"]["knockout"]["answers_changed"] == 3
    assert found["methods"]["neutral"]["answers_changed"] == 0
    assert "has no likelihoods" in found["methods"]["carve"]["error"]
