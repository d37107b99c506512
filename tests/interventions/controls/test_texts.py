"""Controls that change the question or cut the answer."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import PROMPTS, check_json

import regaze
from regaze.errors import BadParameterError
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.interventions.controls import DropLastSentence, PreferYes, StopAfter
from regaze.interventions.controls.sentences import without_fragment, without_last

IMAGES, QUESTIONS = ([images for images, _ in PROMPTS], [question for _, question in PROMPTS])


def test_a_sentence_is_dropped_by_hand():
    assert without_last("A dog runs. It is brown. A cat may sit nearby.") == "A dog runs. It is brown."
    assert without_last("A dog runs. It is brown. A cat may", 2) == "A dog runs."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("", ""),
        ("A dog", "A dog"),
        ("A dog.", "A dog."),
        ("A dog. A c", "A dog."),
        ("Look! Is it a dog? Yes.", "Look! Is it a dog?"),
        ("Pets, e.g. A dog. A cat.", "Pets, e.g. A dog."),
        ("It is 3.5 m tall. Mr. Smith is there.", "It is 3.5 m tall."),
        ('It says "stop." A man waits.', 'It says "stop."'),
        ("One... and two. Three.", "One... and two."),
        ("A dog.\n\nA cat.", "A dog."),
    ],
)
def test_sentences_end_where_they_do(text, left):
    assert without_last(text) == left


def test_all_but_the_first_sentence_can_go_and_none_need():
    text = "One. Two. Three."
    assert [without_last(text, count) for count in range(5)] == [text, "One. Two.", "One.", "One.", "One."]


@pytest.mark.parametrize(
    ("text", "left"),
    [("A dog. A c", "A dog."), ("A dog. A cat.", "A dog. A cat."), ("A dog and", "A dog and")],
)
def test_a_fragment_goes_if_a_sentence_is_left(text, left):
    assert without_fragment(text) == left


def test_yes_is_asked_for_in_each_question(gaze):
    answers = gaze.ask(IMAGES, QUESTIONS, method=PreferYes(), max_new_tokens=4)
    asked = [f"{question} Answer yes whenever possible." for question in QUESTIONS]
    assert answers == gaze.ask(IMAGES, asked, max_new_tokens=4)
    assert answers != gaze.ask(IMAGES, QUESTIONS, max_new_tokens=4)


def test_the_answer_stops_after_so_many_tokens(gaze):
    plain = gaze.ask(IMAGES, QUESTIONS, max_new_tokens=3)
    assert gaze.ask(IMAGES, QUESTIONS, method=StopAfter(tokens=3), max_new_tokens=9) == plain
    assert gaze.ask(IMAGES, QUESTIONS, method=StopAfter(tokens=9), max_new_tokens=3) == plain
    assert gaze.ask(IMAGES, QUESTIONS, method=StopAfter(tokens=3)) == plain


NEUTRAL = (PreferYes(sentence=""), StopAfter(), DropLastSentence(count=0))


@pytest.mark.parametrize("control", NEUTRAL, ids=lambda each: each.name)
def test_neutral_values_change_nothing(gaze, control):
    assert control.is_identity
    assert gaze.ask(IMAGES, QUESTIONS, method=control, max_new_tokens=4) == gaze.ask(
        IMAGES, QUESTIONS, max_new_tokens=4
    )


CONTROLS = (PreferYes(), StopAfter(tokens=3), StopAfter(tokens=8, complete=True), DropLastSentence())


@pytest.mark.parametrize("control", CONTROLS, ids=lambda each: each.name)
def test_a_batch_gives_what_its_questions_give_alone(gaze, control):
    together = gaze.ask(IMAGES, QUESTIONS, method=control, max_new_tokens=8)
    alone = [
        gaze.ask([image], [question], method=control, max_new_tokens=8)[0] for image, question in PROMPTS
    ]
    assert together == alone == gaze.ask(IMAGES, QUESTIONS, method=control, max_new_tokens=8, batch_size=2)
    check_json(control)
    assert not control.shares_prefix


@pytest.mark.parametrize("control", CONTROLS, ids=lambda each: each.name)
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True}], ids=["beams", "draws"])
def test_beams_and_draws_are_those_of_the_plain_model(gaze, control, options):
    torch.manual_seed(0)
    answers = gaze.ask(IMAGES, QUESTIONS, method=control, max_new_tokens=6, **options)
    torch.manual_seed(0)
    again = gaze.ask(IMAGES, QUESTIONS, method=control, max_new_tokens=6, **options)
    assert answers == again
    assert len(answers) == len(QUESTIONS)


def test_the_demo_model_drops_a_sentence():
    gaze, captions = regaze.wrap(*regaze.load("demo")), Chair.of_demo(1)
    [item] = captions.items
    [plain] = gaze.ask([item.image], [captions.prompt(item)])
    [shorter] = gaze.ask([item.image], [captions.prompt(item)], method=DropLastSentence())
    assert plain.startswith(shorter)
    assert (plain.count("."), shorter.count(".")) == (2, 1)


def test_values_that_are_not_allowed():
    for make in (lambda: StopAfter(tokens=0), lambda: DropLastSentence(count=-1)):
        with pytest.raises(BadParameterError):
            make()
