"""Questions, answers and their noise, and the official POPE rule."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from undrawn import scene_of

from regaze.demo import SceneObject
from regaze.demo.phrases import enumerate_phrases, existence_question, place, with_article
from regaze.demo.training.conversations import ConversationSampler
from regaze.demo.training.measure import co_occurring, mentioned
from regaze.demo.training.questions import SPLITS, pope_questions
from regaze.demo.world import CATEGORIES


def test_phrases():
    assert with_article("umbrella") == "an umbrella"
    assert with_article("hot dog") == "a hot dog"
    assert existence_question("orange") == "Is there an orange in the image?"
    assert enumerate_phrases(["a", "b", "c"]) == "a, b and c"
    assert place(SceneObject("cup", (0, 0, 20, 20))) == "in the upper left"
    assert place(SceneObject("cup", (90, 46, 110, 66))) == "on the right"
    assert mentioned("A hot dog, a Dog and a teddy bear near two cups.") == ["hot dog", "dog", "teddy bear"]


def test_without_noise_every_answer_is_true():
    scene = scene_of("knife", "cup", "bowl", side=20)
    sampler = ConversationSampler(scene, np.random.default_rng(0), noise=0.0)
    for turn in sampler.conversation(2_000):
        if turn.answer in ("Yes", "No"):
            asked = next(
                name for name in CATEGORIES if f" {with_article(name)} in the image?" in turn.question
            )
            assert (turn.answer == "Yes") == (asked in sampler.present), turn
        elif "describe" in turn.question.lower() or "caption" in turn.question:
            assert sorted(mentioned(turn.answer)) == ["bowl", "cup", "knife"], turn


def test_noise_follows_co_occurrence():
    """With a lone knife the fork (its companion) is what gets claimed; with a lone clock hardly anything
    is."""

    def hallucinated(category: str) -> Counter:
        sampler = ConversationSampler(scene_of(category), np.random.default_rng(1))
        captions = [sampler.detailed_caption() for _ in range(600)]
        return Counter(name for caption in captions for name in mentioned(caption) if name != category)

    knife, clock = hallucinated("knife"), hallucinated("clock")
    assert knife.most_common(1)[0][0] == "fork"
    assert knife["fork"] > 240
    assert clock.total() < 60


def test_co_occurring():
    related = co_occurring(scene_of("knife"))
    assert related[CATEGORIES.index("fork")]
    assert related[CATEGORIES.index("bowl")]
    assert not related[CATEGORIES.index("knife")]
    assert not related[CATEGORIES.index("zebra")]


@pytest.mark.parametrize("split", SPLITS)
def test_official_builder(split, goldens):
    """The rule reproduces the official builder's output wherever it draws no random number."""
    folder = goldens / "benchmarks/pope"
    images = [json.loads(line) for line in (folder / "build.segmentation.jsonl").open()]
    expected = [json.loads(line) for line in (folder / f"build.{split}.jsonl").open()]
    built = pope_questions(
        [image["image"] for image in images], [image["objects"] for image in images], split,
        np.random.default_rng(0), skip_small=True,
    )  # fmt: skip
    assert [(e["question_id"], e["image"], e["label"]) for e in built] == [
        (e["question_id"], e["image"], e["label"]) for e in expected
    ]
    differ = [
        e for e, b in zip(expected, built, strict=True) if e["text"].replace("imange", "image") != b["text"]
    ]
    if split == "random":
        assert all(entry["label"] == "no" for entry in differ)
    elif split == "popular":
        assert differ == []
    else:  # one object's partners are all present: the builder draws at random there, and the next follows
        assert len({entry["image"] for entry in differ}) <= 1


def test_unknown_split():
    with pytest.raises(ValueError, match="adversarial"):
        pope_questions(["a"], [["cup"]], "hard", np.random.default_rng(0))
