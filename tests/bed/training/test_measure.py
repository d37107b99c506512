"""The bed's measurements, on the demo model, which is at hand everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import regaze
from regaze.bed.scenes import scenes
from regaze.bed.training import plain_text
from regaze.bed.training.asking import Asker
from regaze.bed.training.measure import measure, measure_speed
from regaze.bed.training.plain_text import accepts, perplexity, plain_text_figures
from regaze.bed.training.sink_figures import sink_figures
from regaze.demo.training.conversations import DETAIL_PROMPTS
from regaze.eval.run.prefix_cache import PrefixSharing
from regaze.toolkit import Role
from regaze.toolkit.analysis.answers import token_map_of
from regaze.toolkit.analysis.sink_profile import SinkProfile, sink_values


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(*regaze.load("demo", attn_implementation="eager"))


def test_questions_that_share_a_prefill_are_answered_as_alone(gaze):
    shown = scenes()[:2]
    texts = ["Is there a skis in the image?", "Where is the dog?", "Is there a fork in the image?"]
    entries = [{"image": scene.name, "text": text} for scene in shown for text in texts]
    alone = [
        gaze.ask([scene.image()], [text], max_new_tokens=8)[0].strip() for scene in shown for text in texts
    ]
    assert Asker(gaze).ask([*entries, entries[0]], max_new_tokens=8) == [*alone, alone[0]]
    assert len(set(alone)) > 2


def test_answers_are_kept_for_further_runs(gaze, tmp_path, monkeypatch):
    path, asked = (
        tmp_path / "answers.jsonl",
        [{"image": scenes()[0].name, "text": "Is there a dog in the image?"}],
    )
    with Asker(gaze, path) as asker:
        answers = asker.ask(asked, max_new_tokens=2)
    with path.open("ab") as file:
        file.write(b'{"torn')  # by a process that died
    with monkeypatch.context() as patch:
        patch.setattr(PrefixSharing, "answer", None)
        with Asker(gaze, path) as asker:
            assert asker.ask(asked, max_new_tokens=2) == answers
    with Asker(gaze, path) as asker:
        assert len(asker.ask(asked, max_new_tokens=3)) == 1  # another question
    assert path.read_bytes().count(b"\n") == 2
    changed = gaze.model.lm_head.weight.data[0, 0].item()
    gaze.model.lm_head.weight.data[0, 0] += 1
    with monkeypatch.context() as patch, Asker(gaze, path) as asker:  # another model
        patch.setattr(PrefixSharing, "answer", lambda *given: ["asked"])
        assert asker.ask(asked, max_new_tokens=2) == ["asked"]
    gaze.model.lm_head.weight.data[0, 0] = changed


def test_some_parts_of_the_figures(gaze, tmp_path):
    figures = measure(gaze, count=1, parts=("speed",), answers=tmp_path / "answers.jsonl")
    assert set(figures) == {"scenes", "dtype", "speed", "seconds"}


@pytest.mark.slow
def test_all_figures_of_a_few_scenes(gaze):
    figures = measure(gaze, count=2)
    assert figures["scenes"] == figures["captions"]["captions"] == figures["sinks"]["scenes"] == 2
    assert set(figures["pope"]) == {"random", "popular", "adversarial"}
    present = sum(min(3, len(scene.objects)) for scene in scenes()[:2])
    assert figures["pope"]["random"]["questions"] == 2 * present
    assert figures["questions"]["multiple choice"]["questions"] == 2
    assert len(figures["plain_text"]["after"]["answers"]) == 20
    assert "before" not in figures["plain_text"]


def test_before_and_after(gaze, monkeypatch):
    monkeypatch.setattr(plain_text, "NEW_TOKENS", 2)
    figures = plain_text_figures(gaze, gaze.model)
    assert figures["before"] == figures["after"]
    assert figures["same"] == 20


def test_perplexity_is_that_of_the_loss(gaze):
    tokenizer = gaze.processor.tokenizer
    texts = ["The image shows a kitchen with a knife.", "There is also a fork."]
    total = count = 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            loss = gaze.model(input_ids=ids, labels=ids).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert math.isclose(perplexity(gaze.model, tokenizer, texts), math.exp(total / count), rel_tol=1e-4)


def test_accepted_words():
    assert accepts({"accepted": ["seven", "7"]}, "There are Seven days.")
    assert not accepts({"accepted": ["seven", "7"]}, "There are eight days.")


def test_sinks_and_their_attention_are_those_of_a_plain_forward(gaze):
    images, profile = [scene.image() for scene in scenes()[:2]], SinkProfile((125, 3), tau=2.0)
    figures = sink_figures(gaze, images, DETAIL_PROMPTS[0], profile)
    counts, shares = [], []
    for image in images:
        inputs = gaze.inputs([image], [DETAIL_PROMPTS[0]])
        tokens = token_map_of(gaze, inputs)
        with torch.no_grad():
            output = gaze.model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
        columns = tokens.mask(Role.IMAGE)[0]
        last = int(columns.nonzero()[-1])
        hidden = torch.stack(output.hidden_states[:-1])[:, 0]
        sinks = (sink_values(hidden, profile.dimensions) >= profile.tau) & columns
        attention = torch.stack(output.attentions)[:, 0, :, last + 1 :].mean((1, 2))
        counts.append(sinks.sum(1).numpy())
        shares.append(
            np.stack([(attention * sinks).sum(1), attention[:, columns].sum(1), attention[:, 0]], 1)
        )
    expected = np.mean(shares, 0)
    found = [[row[key] for key in ("to_image_sinks", "to_image", "to_first")] for row in figures["layers"]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose([row["image_sinks"] for row in figures["layers"]], np.mean(counts, 0))
    assert max(np.mean(counts, 0)) == figures["image_sinks"]["mean"] > 0


def test_speed_is_measured_on_one_thread(gaze):
    before = torch.get_num_threads()
    assert measure_speed(gaze, scenes()[:1])["median_seconds"] > 0
    assert torch.get_num_threads() == before
