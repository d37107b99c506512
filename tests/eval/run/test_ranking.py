"""Answers chosen by likelihood: the lowest cross-entropy of one forward, and under methods as in decoding."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

import regaze
from regaze import HeadKnockout
from regaze.demo import scenes
from regaze.errors import BadParameterError
from regaze.eval import EvalTask, evaluate
from regaze.eval.benchmarks.plain_text import excludes_tokens
from regaze.eval.benchmarks.vstar import VStarLikelihood
from regaze.eval.run import loglikelihood, ranking
from regaze.eval.run.generate import AnswerGenerator
from regaze.eval.run.loglikelihood import PRUNED_LOGPROB
from regaze.eval.run.metering import TokenCounter
from regaze.eval.run.requests import AnswerRequest, Condition
from regaze.eval.run.tasks import EvalConfig
from regaze.interventions import registry

SEARCH = HeadKnockout(heads=((0, 0), (0, 3)))  # the heads with which the demo model looks for things
OPTIONS = ("Yes", "No", "There is a hot dog")


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(*regaze.load("demo"))


@pytest.fixture(scope="module")
def asked():
    """Per scene a question about something that is there and one about something that is not."""
    pairs = []
    for scene in scenes()[:4]:
        there = scene.objects[0].category
        for name in (there, "zebra" if there != "zebra" else "dog"):
            pairs.append(((scene.path,), f"Is there a {name} in the image?"))
    return pairs


def choose(gaze, asked, options=OPTIONS):
    images, prompts = [images for images, _ in asked], [prompt for _, prompt in asked]
    steps = TokenCounter()
    chosen = ranking.most_likely_options(gaze, images, prompts, [options] * len(asked), steps)
    return chosen, steps


def cross_entropy(gaze, images, prompt, option):
    """The official rule, of one forward over the whole conversation without a cache."""
    text = gaze.reader.render(prompt, len(images)).text
    inputs = gaze.inputs([list(images)], [prompt])
    tokens = loglikelihood.continuation_ids(
        gaze.reader, text, loglikelihood.answer_prefix(gaze.processor) + option
    )
    tokens = torch.tensor([[*tokens, gaze.reader.tokenizer.eos_token_id]])
    ids = torch.cat([inputs["input_ids"], tokens], 1)
    with torch.inference_mode():
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = gaze.model(**whole).logits[0, -tokens.shape[1] - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits.float(), tokens[0]))


def test_the_option_with_the_least_cross_entropy_is_chosen(gaze, asked):
    expected = []
    for images, prompt in asked:
        losses = [cross_entropy(gaze, images, prompt, option) for option in OPTIONS]
        assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3
        expected.append(OPTIONS[losses.index(min(losses))])
    chosen, steps = choose(gaze, asked)
    assert chosen == expected
    assert {"Yes", "No"} <= set(chosen)
    assert steps.count % len(OPTIONS) == 0


def test_neither_batch_nor_order_decides(gaze, asked):
    together, _ = choose(gaze, asked)
    assert [choose(gaze, [one])[0][0] for one in asked] == together
    assert choose(gaze, asked, OPTIONS[::-1])[0] == together


def test_a_method_acts_on_the_ranked_options(gaze, asked):
    plain, _ = choose(gaze, asked)
    with gaze.using(SEARCH):
        edited, _ = choose(gaze, asked)
    assert edited.count("No") > plain.count("No")
    assert choose(gaze, asked)[0] == plain


@pytest.mark.parametrize("name", ["vcd", "dola", "pai", "m3id", "vaf"])
def test_methods_of_several_contexts_rank_as_they_decode(gaze, asked, name):
    """The first token of the likeliest one-token answer is what greedy decoding under the method says."""
    method = registry.create_method(name)
    with gaze.using(method):
        chosen, _ = choose(gaze, asked, ("Yes", "No"))
        said = gaze.ask([list(i) for i, _ in asked], [p for _, p in asked], max_new_tokens=4)
    assert [answer.split(".")[0].split(",")[0] for answer in said] == chosen


def test_tokens_that_a_cut_excludes_are_counted_and_those_of_a_wrecked_model_are_none(gaze, asked):
    (images, prompt), counter = asked[0], TokenCounter()

    def answer():
        return ranking.log_probabilities(gaze, [images], [prompt], ["A zebra reads."], counter)[0]

    with gaze.using(registry.create_method("dola", beta=1.0)):  # leaves the likeliest token alone
        excluded = answer()
    assert excludes_tokens(excluded)
    assert float(excluded.split()[0]) % PRUNED_LOGPROB == 0.0
    with gaze.using(registry.create_method("pai", alpha=50.0, gamma=1.0)):
        assert not excludes_tokens(answer())
    assert not excludes_tokens(answer())


def test_methods_that_ask_in_their_own_way_are_refused(gaze, asked):
    setting = Condition("m", registry.create_method("carve"), {}, 0)
    request = AnswerRequest("0" * 32, asked[0][0], asked[0][1], None, OPTIONS)
    with pytest.raises(BadParameterError, match="carve asks in its own way"):
        AnswerGenerator(gaze, setting, batch_size=4).warm_up([request])


def test_the_runner_ranks_and_resumes(gaze, tmp_path):
    """V*Bench in its official layout, made of scenes: which of two things is in the picture?"""
    for number, scene in enumerate(scenes()[:6]):
        folder = tmp_path / ("direct_attributes" if number % 2 else "relative_position")
        folder.mkdir(exist_ok=True)
        shutil.copy(scene.path, folder / f"s{number}{scene.path.suffix}")
        there = scene.objects[0].category
        options = [
            f"There is a {there}.",
            "There is a surfboard." if there != "surfboard" else "There is a dog.",
        ]
        record = {"question": "Please describe this image in detail.", "options": options}
        (folder / f"s{number}.json").write_text(json.dumps(record))
    bench = VStarLikelihood.load(tmp_path)
    results = evaluate(
        gaze,
        [EvalTask(bench)],
        {"search": SEARCH},
        tmp_path / "out",
        model_name="demo",
        config=EvalConfig(batch_size=4),
    )
    asked = results["benchmarks"]["vstar-likelihood"]
    figures = asked["plain"]["figures"]["all"]["official"]
    assert figures["plain"]["accuracy"]["value"] >= 5 / 6
    assert figures["plain"]["unreadable"]["value"] == 0
    assert figures["statistics"]["test"] == "McNemar, exact"
    assert asked["plain"]["sharing"].startswith("given answers are decoded")
    assert asked["plain"]["cost"]["forwards_per_token"] == pytest.approx(1.0, abs=0.01)
    assert not math.isnan(asked["plain"]["cost"]["seconds"])
    again = evaluate(
        gaze,
        [EvalTask(bench)],
        {"search": SEARCH},
        tmp_path / "out",
        model_name="demo",
        config=EvalConfig(batch_size=1),
    )
    assert again["benchmarks"]["vstar-likelihood"]["plain"]["cost"] == asked["plain"]["cost"]
