"""Figures from answers, by hand."""

from __future__ import annotations

import pytest
from undrawn import scene_of

from regaze.bed.training.scores import chair_figures, pope_figures, question_figures


def test_pope():
    labels = ["yes", "no", "yes", "no"]
    figures = pope_figures([{"label": label} for label in labels], ["Yes", "Yes", "Maybe", "No"])
    assert figures == {
        "questions": 4, "accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5,
        "accuracy_present": 0.5, "accuracy_absent": 0.5, "neither_yes_nor_no": 1,
    }  # fmt: skip


def test_chair_by_half():
    scenes = [scene_of("knife"), scene_of("dog", "cat")]
    captions = ["A knife on a plain ground. There is a fork and zebra.", "A dog and a cat in the sun."]
    figures = chair_figures(scenes, captions)
    assert (figures["chair_s"], figures["chair_i"], figures["mentions"]) == (0.5, 0.4, 5)
    assert figures["first_half"] == {"chair_s": 0.0, "chair_i": 0.0, "mentions": 2}  # knife, dog
    assert figures["second_half"] == {"chair_s": 0.5, "chair_i": 2 / 3, "mentions": 3}
    assert figures["recall"] == 1.0
    assert figures["hallucinated_mentions"] == 2
    assert figures["co_occurring"] == 0.5  # the fork, not the zebra
    assert 0.0 < figures["co_occurring_chance"] < 0.5
    assert figures["words"] == {"mean": 10.0, "least": 8, "most": 12}
    assert figures["unfinished"] == 0


def test_captions_without_hallucinations():
    figures = chair_figures([scene_of("knife")], ["A knife and a"])
    assert figures["co_occurring"] == figures["co_occurring_chance"] == figures["chair_s"] == 0.0
    assert figures["unfinished"] == 1


def test_questions_by_kind():
    def premise(form: str, expectation: float) -> dict:
        return {"kind": "false premise", "answer": "", "form": form, "expectation": expectation}

    entries = [
        {"kind": "count", "answer": "Two"},
        {"kind": "count", "answer": "One"},
        {"kind": "relation in words", "answer": "It is above the cup."},
        premise("where", 0.6),
        premise("where", 0.6),
        premise("colour held out", 0.1),
    ]
    replies = [
        "Two",
        "Three",
        "It is above the cup",
        "The cup is red.",
        "There is no cup in the image.",
        "Red",
    ]
    assert question_figures(entries, replies) == {
        "count": {"questions": 2, "accuracy": 0.5},
        "relation in words": {"questions": 1, "accuracy": 1.0},
        "false premise": {
            "colour held out, unexpected": {"questions": 1, "rejected": 0.0},
            "where, expected": {"questions": 2, "rejected": 0.5},
        },
    }


@pytest.mark.parametrize("reply", ["yes", "Yes.", " Yes"])
def test_only_the_word_itself_is_yes(reply):
    figures = pope_figures([{"label": "yes"}, {"label": "no"}], [reply, "No"])
    assert (figures["accuracy_present"], figures["accuracy_absent"]) == (0.0, 1.0)
