"""What a detector may return, and what is done with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import picture

from regaze.errors import InputError
from regaze.interventions.detection import Detections, detect

IMAGE = picture(1, 40, 30)
BOXES = [[0, 0, 10, 10], [5.5, 2, 20, 30], [1, 1, 2, 2]]
WANT = Detections(((0.0, 0.0, 10.0, 10.0), (5.5, 2.0, 20.0, 30.0), (1.0, 1.0, 2.0, 2.0)), ("a", "b", "a"))


@pytest.mark.parametrize(
    "found",
    [
        {"boxes": BOXES, "labels": ["a", "b", "a"], "scores": [0.5, 0.25, 1]},
        (np.array(BOXES), ("a", " b", "a "), np.array([0.5, 0.25, 1.0])),
        [torch.tensor(BOXES), ["a", "b", "a"], torch.tensor([0.5, 0.25, 1.0])],
        {"scores": (0.5, 0.25, 1.0), "labels": iter("aba"), "boxes": tuple(map(tuple, BOXES)), "more": 1},
        Detections(WANT.boxes, WANT.labels, (0.5, 0.25, 1.0)),
    ],
    ids=["dict", "arrays", "tensors", "more", "detections"],
)
def test_boxes_labels_and_scores_of_any_kind(found):
    given = []

    def detector(image, texts):
        given.append((image, texts))
        return found

    got = detect(detector, IMAGE, ("a", "b"))
    assert got == Detections(WANT.boxes, WANT.labels, (0.5, 0.25, 1.0))
    assert given == [(IMAGE, ["a", "b"])]
    assert got.names == ("a", "b")


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_nothing_found(boxes):
    assert detect(lambda image, texts: (boxes, [], []), IMAGE) == Detections()


def test_the_best_come_first_and_equals_in_their_order():
    found = Detections(
        tuple((0.0, 0.0, 1.0, float(i)) for i in range(1, 5)), tuple("abcd"), (0.3, 0.9, 0.3, 0.2)
    )
    assert found.best().labels == ("b", "a", "c", "d")
    assert found.best(0.3).labels == ("b", "a", "c")
    assert found.best(0.3).boxes[1] == (0.0, 0.0, 1.0, 1.0)
    assert found.best(0.95) == Detections()


def test_boxes_end_at_the_edges_of_the_image():
    boxes = [[-5, -1, 50, 31], [41, 0, 45, 10], [3, 3, 3, 9], [30, 20, 60, 25]]
    got = detect(lambda image, texts: (boxes, list("abcd"), [0.1, 0.2, 0.3, 0.4]), IMAGE)
    assert got == Detections(((0.0, 0.0, 40.0, 30.0), (30.0, 20.0, 40.0, 25.0)), ("a", "d"), (0.1, 0.4))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "it returned NoneType"),
        ([BOXES, ["a"] * 3], "it returned list"),
        ({"boxes": BOXES, "scores": [1] * 3}, "it returned boxes, scores, without labels"),
        ({}, "it returned nothing, without boxes and labels and scores"),
        ((BOXES, ["a", "b"], [1.0] * 3), "3 boxes, 2 labels, 3 scores"),
        (([1, 2, 3, 4], ["a"], [1.0]), r"its boxes are \[1, 2, 3, 4\]"),
        ((torch.zeros(2, 5), ["a"] * 2, [1.0] * 2), r"its boxes are \[2, 5\]"),
        (([[5, 0, 1, 9]], ["a"], [1.0]), r"left, upper, right and lower .* gave \[5.0, 0.0, 1.0, 9.0\]"),
        (([[0, 0, float("nan"), 9]], ["a"], [1.0]), "gave .*nan"),
        ((BOXES, [1, 2, 3], [1.0] * 3), "a label is 1: give names"),
        ((BOXES, "aba", [1.0] * 3), "its labels are 'aba'"),
        ((BOXES, list("aba"), [1.0, 3.0, 0.5]), r"scores are in \[0, 1\], the detector gave 3.0"),
        ((BOXES, list("aba"), None), "its scores are None"),
    ],
)
def test_what_it_may_not_return(found, message):
    with pytest.raises(InputError, match=message):
        detect(lambda image, texts: found, IMAGE)
