"""Which questions of a benchmark an audit asks, and how many answers that takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from regaze.audit.plan import Asked
from regaze.audit.questions import prompts_of, take
from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.plain_text import Perplexity
from regaze.eval.benchmarks.pope.benchmark import Pope

SPLITS = ("random", "popular", "adversarial")


def pope(scenes):
    """As POPE's builder writes it: present objects, the same in each split, in turn with absent ones."""
    items = [
        Item(
            f"{split} {scene} {n}",
            split,
            Path(f"{scene}.png"),
            f"present {n}" if n % 2 == 0 else f"{split} {n}",
            "no" if n % 2 else "yes",
        )
        for split in SPLITS
        for scene in range(scenes)
        for n in range(6)
    ]
    return Pope(tuple(items))


def test_no_question_is_asked_twice_and_scenes_are_as_many_as_they_can_be():
    items = take(pope(60), Asked(questions=120, per_image=2), 0).items
    assert len(items) == len({(item.image, item.question) for item in items}) == 120
    assert len({item.image for item in items}) == 60
    assert Counter(item.split for item in items) == dict.fromkeys(SPLITS, 40)
    assert Counter(item.label for item in items) == {"yes": 60, "no": 60}
    assert {*Counter(item.image for item in items).values()} == {2}


def test_one_question_about_each_scene_is_rightly_yes_as_often_as_no():
    items = take(pope(60), Asked(questions=60, per_image=1), 0).items
    assert Counter((item.split, item.label) for item in items) == {
        (split, label): 10 for split in SPLITS for label in ("yes", "no")
    }


def test_without_a_limit_a_scene_is_asked_about_as_a_whole():
    assert len(take(pope(4), Asked(questions=20), 0).items) == 36


def test_a_prompt_is_asked_once_and_a_passage_is_a_prompt():
    items = [Item(split, split, Path("a.png"), "Is there a cup?", "yes") for split in SPLITS]
    assert len(prompts_of(Pope(tuple(items)))) == 1
    passages = [Item(name, "text", None, "Write.", name, continuation=name) for name in ("one", "two")]
    assert len(prompts_of(Perplexity(tuple(passages)))) == 2
