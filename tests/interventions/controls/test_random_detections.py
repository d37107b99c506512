"""Random objects and boxes in the place of detected ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding_checks import check_batch, check_full_forward, check_neutral, inputs_of
from models import llava_processor, logits_of, picture, tiny_llava, varied
from standins import spotted

import regaze
import regaze.demo
from regaze.demo.world import CATEGORIES
from regaze.errors import BadParameterError
from regaze.interventions import HALC, MARINE, VCD
from regaze.interventions.controls import RandomBoxes, RandomObjects
from regaze.interventions.controls.random_detections import moved_boxes, other_names
from regaze.interventions.registry import create_method, method_from_dict


def marine(**changes):
    return MARINE(**{"detector": spotted, "threshold": 0.5, **changes})


def drawn(method, image, seed=0):
    return RandomObjects(method, seed=seed).for_model(None).found_in(image, "cpu")


# Objects ------------------------------------------------------------------------------------------------


def test_as_many_other_names_are_drawn():
    names = ("dog", "cat", "cup", "cow", "bus")
    draws = [other_names(("cup", "dog"), names, np.random.default_rng(seed)) for seed in range(30)]
    assert all(len(set(draw)) == 2 for draw in draws)
    assert {name for draw in draws for name in draw} == {"cat", "cow", "bus"}
    assert len(set(draws)) == 6
    few = other_names(("cup", "dog", "cow"), ("dog", "cat"), np.random.default_rng(0))
    assert few[0] == "cat"
    assert set(few[1:]) < {"cup", "dog", "cow"}
    assert other_names((), names, np.random.default_rng(0)) == ()


def test_what_the_names_are_drawn_from():
    """The names that are looked for, those that the detector knows, or COCO's."""
    found = marine().found_in(picture(1), "cpu")
    assert found == ("dog", "cup")
    assert set(drawn(marine(), picture(1))) < set(CATEGORIES) - {"dog", "cup"}

    def knowing(image, texts):
        return spotted(image, ["dog"])

    knowing.names = ("dog", "unicorn")
    assert drawn(marine(detector=knowing), picture(1)) == ("unicorn",)

    def seeing(image, texts):
        return spotted(image, texts[:1])

    assert drawn(marine(detector=seeing, objects=("elf", "orc")), picture(1)) == ("orc",)
    scene = regaze.demo.scenes()[0]
    names = drawn(MARINE(detector="demo"), scene.image())
    assert len(names) == len(scene.objects)
    assert not set(names) & {thing.category for thing in scene.objects}


def test_the_draw_follows_from_the_seed_and_the_image():
    first, second = (drawn(marine(), picture(number)) for number in (1, 2))
    assert first == drawn(marine(), picture(1))
    assert first != second
    assert first != drawn(marine(), picture(1), seed=1)


def test_it_acts_as_the_method_with_other_names(gaze):
    control, inputs = RandomObjects(marine(strength=1.0)), inputs_of(gaze, slice(0, 1))
    names = drawn(marine(), picture(1))
    want = marine(strength=1.0, detector=lambda image, texts: spotted(image, names))
    logits = []
    for method in (control, want, control.of):
        with gaze.using(method):
            logits.append(logits_of(gaze.model, inputs, tokens=3))
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-2)
    check_batch(gaze, control)
    check_full_forward(gaze, control)
    check_neutral(gaze, RandomObjects(marine(strength=0.0)))


def test_beside_the_method_itself_each_has_its_own_context(gaze):
    inputs, logits = inputs_of(gaze, slice(0, 1)), []
    for methods in ((marine(), RandomObjects(marine())), (marine(),)):
        with gaze.using(*methods):
            logits.append(logits_of(gaze.model, inputs, tokens=1))
    assert not torch.allclose(*logits, atol=1e-3)


# Boxes --------------------------------------------------------------------------------------------------


def test_boxes_keep_their_sizes_and_stay_in_the_image():
    boxes = ((0.0, 0.0, 10.0, 5.0), (30.0, 10.0, 40.0, 30.0), (0.0, 0.0, 40.0, 30.0))
    seen = set()
    for seed in range(30):
        moved = moved_boxes(boxes, (40, 30), np.random.default_rng(seed))
        for (x0, y0, x1, y1), (a0, b0, a1, b1) in zip(boxes, moved, strict=True):
            assert (a1 - a0, b1 - b0) == pytest.approx((x1 - x0, y1 - y0))
            assert min(a0, b0) >= 0.0
            assert max(a1 / 40, b1 / 30) <= 1.0 + 1e-9
        assert moved[2] == boxes[2]
        seen.add(moved[0])
    assert len(seen) == 30


def test_halc_looks_at_boxes_of_the_same_sizes_elsewhere():
    gaze = regaze.wrap(varied(tiny_llava()), llava_processor())
    method = HALC(detector=spotted)
    control = RandomBoxes(method)
    images = [picture(1), picture(2)]
    plain = method.answer(gaze, images, ["What?", "Where?"], max_new_tokens=5)
    answers = control.answer(gaze, images, ["What?", "Where?"], max_new_tokens=5)
    alone = control.answer(gaze, images[1:], ["Where?"], max_new_tokens=5)
    assert alone[0].focuses == answers[1].focuses
    (x0, y0, x1, y1), (a0, b0, a1, b1) = plain[0].focuses[0].box, answers[0].focuses[0].box
    assert (a1 - a0, b1 - b0) == pytest.approx((x1 - x0, y1 - y0))
    assert (a0, b0) != (x0, y0)
    other = RandomBoxes(method, seed=1).answer(gaze, images[:1], ["What?"], max_new_tokens=5)
    assert other[0].focuses[0].box != answers[0].focuses[0].box
    neutral = RandomBoxes(HALC(detector=spotted, pairs=0))
    assert neutral.is_identity
    assert neutral.answer(gaze, images[:1], ["What?"], max_new_tokens=3) == gaze.ask(
        images[:1], ["What?"], max_new_tokens=3
    )


# Making them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "control", [RandomObjects(MARINE(detector="demo"), seed=2), RandomBoxes(HALC(detector="demo"))]
)
def test_json_and_what_is_missing(control):
    assert method_from_dict(control.to_dict()) == control
    assert not control.lacks
    assert "give `detector`" in type(control)(type(control.of)()).lacks
    assert control.is_identity is False


def test_what_they_take():
    assert create_method("random-objects", of={"method": "marine", "strength": 0.5}) == RandomObjects(
        MARINE(strength=0.5)
    )
    for make, message in (
        (lambda: RandomObjects(VCD()), "such as marine; 'vcd' does not"),
        (lambda: RandomObjects(HALC()), "`of` must be a method for gaze.using"),
        (lambda: RandomBoxes(MARINE()), "`of` must be a method for gaze.ask"),
        (lambda: create_method("random-boxes", of="carve"), "such as halc; 'carve' does not"),
    ):
        with pytest.raises(BadParameterError, match=message):
            make()
