"""MARINE: its sum, and scores against separate forwards of the prompt with the objects in its question."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    answer_of,
    assert_same_scores,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_spares_text,
    context_with,
    inputs_of,
    plain_logits,
)
from family_checks import case_of
from models import logits_of, picture
from standins import spotted
from zoo.every import VISION, skip_if_older

import regaze.demo
from regaze.errors import BadParameterError, InputError, UnsupportedModelError
from regaze.interventions.controls import RandomObjects
from regaze.interventions.marine import MARINE
from regaze.interventions.vcd import VCD
from regaze.toolkit.model.logits import combine

QUESTION = "Is there a dog in the image?"
GUIDED = f"This image contains dog, cup. Based on this, {QUESTION}"


def marine(**changes):
    return MARINE(**{"detector": spotted, "threshold": 0.5, **changes})


# The equation and the question --------------------------------------------------------------------------


def test_hand_example():
    """l + 0.7 (l_with - l) = 0.3 l + 0.7 l_with; a strength of 1 is the guided prompt alone."""
    main, guided = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 3.0, 1.0]])
    for strength, want in ((0.7, [[0.6, 2.4, 0.7]]), (1.0, [[0.0, 3.0, 1.0]]), (2.0, [[-2.0, 5.0, 2.0]])):
        method = marine(strength=strength)
        context, reading = context_with(main, {method.branch: guided}, MARINE(strength=0.0))
        context.state(method)["where"] = None
        with reading:
            scores = combine(context.logits(), [method.combine_logits(context)])
        torch.testing.assert_close(scores[:, 0], torch.tensor(want))


def test_the_question_with_objects():
    assert marine().guided(QUESTION, ("dog", "cup")) == GUIDED
    other = marine(template="{question} (There is {objects}.)")
    assert (
        other.guided("Is {objects} a word?", ["{question}"]) == "Is {objects} a word? (There is {question}.)"
    )


def test_objects_are_named_once_and_best_first():
    def detector(image, texts):
        assert texts is None
        labels = ["cat", "dog", "cup", "dog", "cow"]
        return {"boxes": [[0, 0, 9, 9]] * 5, "labels": labels, "scores": [0.7, 0.8, 0.95, 0.9, 0.3]}

    found = marine(detector=detector, threshold=0.7).found_in(picture(1), "cpu")
    assert found == ("cup", "dog", "cat")
    assert MARINE(detector=detector).found_in(picture(1), "cpu") == ("cup",)


def test_given_objects_are_looked_for():
    assert marine(objects=("horse", "bus")).found_in(picture(1), "cpu") == ("horse", "bus")
    scene = regaze.demo.scenes()[1]
    there = tuple(thing.category for thing in scene.objects)
    assert MARINE(detector="demo").found_in(scene.image(), "cpu") == there
    assert MARINE(detector="demo", objects=("dog", there[1])).found_in(scene.image(), "cpu") == (there[1],)


# In a model ---------------------------------------------------------------------------------------------


def test_every_step_moves_towards_a_fresh_forward_of_the_guided_prompt(model, gaze):
    inputs = gaze.inputs([picture(1)], [QUESTION], "Be brief.")
    answer, got = answer_of(gaze, inputs, marine())
    guided = gaze.inputs([picture(1)], [GUIDED], "Be brief.")
    main, other = (plain_logits(model, each, answer) for each in (inputs, guided))
    assert not torch.allclose(main, other, atol=1e-2)
    assert_same_scores(got, main + 0.7 * (other - main), tolerance=1e-3)


def test_the_detector_is_shown_what_the_model_sees_of_each_image_once(gaze):
    shown = []

    def detector(image, texts):
        shown.append(image)
        return spotted(image, ["dog"] if len(shown) == 1 else ["cup", "dog"])

    inputs = gaze.inputs([[picture(3), picture(4)], picture(3)], [QUESTION, QUESTION])
    with gaze.using(marine(detector=detector)):
        gaze.model.generate(**inputs, max_new_tokens=2, num_beams=3)
    assert [image.tobytes() for image in shown] == [picture(3).tobytes(), picture(4).tobytes()]


def test_objects_of_several_images_come_in_one_list(model, gaze):
    names = {picture(3).tobytes(): ["dog", "cow"], picture(4).tobytes(): ["cup", "dog"]}
    method = marine(detector=lambda image, texts: spotted(image, names[image.tobytes()]), strength=1.0)
    inputs = gaze.inputs([[picture(3), picture(4)]], [QUESTION])
    answer, got = answer_of(gaze, inputs, method, steps=2)
    question = f"This image contains dog, cow, cup. Based on this, {QUESTION}"
    guided = gaze.inputs([[picture(3), picture(4)]], [question])
    assert_same_scores(got, plain_logits(model, guided, answer), tolerance=1e-3)


@pytest.mark.parametrize("name", ["internvl", "idefics3", "llava_next"])
def test_of_an_image_in_tiles_each_is_shown_for_its_prompt(name):
    """The longer side of the second image makes more tiles of it; a thumbnail shows the whole."""
    entry = next(each for each in VISION if each.name == name)
    skip_if_older(entry)
    case, shown = case_of(entry), []

    def detector(image, texts):
        shown.append(image)
        return spotted(image, [f"object {len(shown)}"])

    inputs = case.inputs(0, 1)
    pictures = case.gaze.reader.sight.pictures(inputs, case.gaze.tokens(inputs).views)
    assert min(map(len, pictures)) >= 1
    assert max(map(len, pictures)) > 1
    for row, alone in enumerate(case.inputs(row) for row in (0, 1)):
        (own,) = case.gaze.reader.sight.pictures(alone, case.gaze.tokens(alone).views)
        seen = {picture.tobytes() for picture in pictures[row]}
        assert {picture.tobytes() for picture in own} <= seen
    method = MARINE(detector=detector, threshold=0.5)
    with case.gaze.using(method):
        logits_of(case.model, inputs, tokens=1)
    different = {picture.tobytes() for each in pictures for picture in each}
    assert {image.tobytes() for image in shown} == different
    assert len(shown) == len(different)


def test_tiles_that_only_pad_a_batch_are_not_shown():
    entry = next(each for each in VISION if each.name == "llava_next")
    skip_if_older(entry)
    case = case_of(entry)
    inputs = case.inputs(0, 1)
    sight, views = case.gaze.reader.sight, case.gaze.tokens(inputs).views
    every = sight.pictures(inputs, views)
    inputs["pixel_values"][0, 2] = 0.0
    padded = sight.pictures(inputs, views)
    assert [len(each) for each in every] == [3, 3]
    assert padded[1] == every[1]
    assert padded[0] == every[0][:2]


def test_pixels_that_belong_to_no_prompt(gaze):
    inputs = dict(gaze.inputs([picture(1)], [QUESTION]))
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    with gaze.using(marine()), pytest.raises(UnsupportedModelError, match="makes 2 pictures of 1 images"):
        gaze.model(**inputs)


def test_prompts_in_whose_images_nothing_is_found(gaze):
    """They stay as they are, alone to the bit, also beside others."""
    empty = picture(1).tobytes()

    def detector(image, texts):
        return ([], [], []) if image.tobytes() == empty else spotted(image, texts)

    inputs, method = gaze.inputs([picture(1), picture(2)], [QUESTION, QUESTION]), marine(detector=detector)
    plain = logits_of(gaze.model, inputs)
    with gaze.using(method):
        edited = logits_of(gaze.model, inputs)
    assert_same_scores(edited[:, 0], plain[:, 0])
    assert not torch.allclose(edited[:, 1], plain[:, 1], atol=1e-2)
    alone = gaze.inputs([picture(1)], [QUESTION])
    plain = logits_of(gaze.model, alone)
    with gaze.using(method):
        assert torch.equal(logits_of(gaze.model, alone), plain)


def test_neutral_strength_batches_full_forward_choices_and_json(gaze):
    check_neutral(gaze, marine(strength=0.0), MARINE(strength=0.0))
    check_spares_text(gaze, marine(strength=1.5))
    check_full_forward(gaze, marine())
    check_choices(gaze, marine())
    check_json(MARINE(detector="demo", threshold=0.3, objects=("dog",), template="{question} {objects}"))
    assert marine().to_dict()["detector"] == "<spotted>"


def test_beside_another_method(model, gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    logits = []
    for methods in ((marine(), VCD()), (VCD(), marine()), (VCD(),)):
        with gaze.using(*methods):
            logits.append(logits_of(model, inputs, tokens=2))
    assert_same_scores(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


# What it needs ------------------------------------------------------------------------------------------


def test_without_a_detector(gaze):
    assert "give `detector`" in MARINE().lacks
    assert not marine().lacks
    with gaze.using(MARINE()), pytest.raises(BadParameterError, match="'marine': give `detector`"):
        gaze.model(**inputs_of(gaze, slice(0, 1)))


def test_prompts_padded_on_the_right_are_refused(gaze):
    inputs = dict(inputs_of(gaze))
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name].flip(1)
    with pytest.raises(InputError, match="padded on the left"), gaze.using(marine()):
        gaze.model(**inputs)


def test_what_the_detector_gives_is_checked(gaze):
    with (
        gaze.using(marine(detector=lambda image, texts: [1, 2])),
        pytest.raises(InputError, match=r"returns \{.boxes.: .* it returned list"),
    ):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
    with gaze.using(MARINE(detector="demo")), pytest.raises(InputError, match="the detector 'demo' knows"):
        gaze.model(**inputs_of(gaze, slice(0, 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": -1.0}, "strength must be float >= 0, got -1"),
        ({"threshold": 1.5}, r"threshold must be float in \[0, 1\]"),
        ({"detector": 3}, "detector must be 'demo', a model's name, a function or None, got 3"),
        ({"template": "Look: {question}"}, r"template must be a text with \{objects\} and \{question\}"),
        ({"template": "{objects} {objects} {question}"}, r"template must be a text with \{objects\}"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        MARINE(**changes)


def test_what_it_has_to_beat():
    assert marine().controls() == (RandomObjects(marine()),)
    assert marine(strength=0.0).controls() == ()
