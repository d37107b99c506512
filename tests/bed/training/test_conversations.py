"""What the bed is taught: true where it should be, and noisy by the rule where it should not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from undrawn import scene_of

from regaze.bed.training.captions import GROUNDS, CaptionWriter, relation, size_word
from regaze.bed.training.conversations import (
    COUNTED,
    HELD_OUT_COLOURS,
    Questioner,
    conversation,
    lettered,
)
from regaze.bed.training.noise import ANSWER_CLAIMS, caption_claims, expectations, expected_absent
from regaze.demo import SceneObject
from regaze.demo.phrases import NUMBERS, existence_question, place, with_article
from regaze.demo.training.conversations import DETAIL_PROMPTS, SHORT_PROMPTS, SUFFIX, Turn
from regaze.demo.training.measure import mention_places, mentioned
from regaze.demo.world import CATEGORIES, COLOURED, COLOURS, SCENE_TYPES, co_occurrence, sample_categories
from regaze.eval.benchmarks.chair.words import SynonymReader, noun_forms, read_synonyms


def coloured_scene():
    """A red bowl, a large dog, a knife and a blue vase."""
    scene = scene_of("bowl", "dog", "knife", "vase")
    colours = ("red", None, None, "blue")
    return replace(
        scene,
        objects=tuple(replace(thing, colour=c) for thing, c in zip(scene.objects, colours, strict=True)),
    )


def turns_of(scene, count=400, noise=0.0) -> list[Turn]:
    return [turn for seed in range(count) for turn in conversation(scene, np.random.default_rng(seed), noise)]


def asked_category(question: str) -> str:
    """The category of a yes/no question about existence."""
    return next(
        name
        for name in CATEGORIES
        if question.removesuffix(SUFFIX)
        in (existence_question(name), f"Can you see {with_article(name)} in this picture?")
    )


def test_a_conversation_is_a_function_of_its_seed():
    scene = coloured_scene()
    once, again = (conversation(scene, np.random.default_rng(3)) for _ in range(2))
    assert once == again
    assert once != conversation(scene, np.random.default_rng(4))


def test_no_question_comes_twice():
    for seed in range(200):
        questions = [turn.question for turn in conversation(coloured_scene(), np.random.default_rng(seed))]
        assert len(set(questions)) == len(questions)


def check_existence(turn: Turn, present: set[str]) -> None:
    yes = asked_category(turn.question) in present
    assert turn.answer.split(",")[0] == ("Yes" if yes else "No"), turn


def check_choice(turn: Turn, scene) -> None:
    options = dict(re.findall(r"^([A-D])\. (.+)$", turn.question, re.MULTILINE))
    truths = {thing.category for thing in scene.objects} | {scene.scene_type}
    asked = re.match(r"What color is the (.+)\?", turn.question)
    if asked:
        truths = {thing.colour for thing in scene.objects if thing.category == asked[1]}
    assert len({*options.values()}) == 4
    assert [letter for letter, option in options.items() if option in truths] == [turn.answer]


def check_relation(turn: Turn, things: dict[str, SceneObject]) -> None:
    worded = re.match(r"Where is the (.+) relative to the (.+)\?", turn.question)
    if worded:
        assert turn.answer == f"It is {relation(things[worded[1]], things[worded[2]])} the {worded[2]}."
    else:
        asked = re.match(
            r"Is the (.+?) (to the left of|to the right of|above|below) the (.+)\?", turn.question
        )
        assert asked, turn
        truth = relation(things[asked[1]], things[asked[3]])
        assert (turn.answer == "Yes") == (truth == asked[2]), turn


def check_detail(turn: Turn, things: dict[str, SceneObject]) -> None:
    """Where something is, which colour it has, or that it is not there."""
    asked = re.match(r"(Where|What color) is the (.+)\?", turn.question)
    assert asked, turn
    thing = things.get(asked[2])
    truth = "" if thing is None else place(thing) if asked[1] == "Where" else thing.colour
    expected = f"The {asked[2]} is {truth}." if thing else f"There is no {asked[2]} in the image."
    assert turn.answer == expected


def check_count(turn: Turn, present: set[str]) -> None:
    asked = re.match(r"How many (.+) are there in the image\?", turn.question)
    assert asked, turn
    counted = present if asked[1] == "objects" else present & {*COUNTED[asked[1]]}
    assert turn.answer == NUMBERS[len(counted)]


def test_without_noise_every_answer_is_true():
    scene, kinds = coloured_scene(), Counter[str]()
    things = {thing.category: thing for thing in scene.objects}
    for turn in turns_of(scene):
        start = " ".join(turn.question.split()[:2])
        if "\nA. " in turn.question:
            kinds["choice"] += 1
            check_choice(turn, scene)
        elif start in ("Is there", "Can you"):
            kinds["existence"] += 1
            check_existence(turn, {*things})
        elif start == "Is the" or "relative to" in turn.question:
            kinds["relation"] += 1
            check_relation(turn, things)
        elif start == "How many":
            kinds["count"] += 1
            check_count(turn, {*things})
        elif turn.question in (*DETAIL_PROMPTS, *SHORT_PROMPTS):
            kinds["caption"] += 1
            assert {*mentioned(turn.answer)} == {*things}, turn
        elif turn.question == "What kind of place is this?":
            kinds["scene"] += 1
            assert turn.answer == "A kitchen."
        elif start == "What is":
            kinds["thing"] += 1
            (name,) = mentioned(turn.answer)
            assert place(things[name]) in turn.question
            assert things[name].colour is None or things[name].colour in turn.answer
        else:
            kinds["detail"] += 1
            check_detail(turn, things)
    assert set(kinds) == {
        "choice", "existence", "relation", "count", "caption", "scene", "thing", "detail"
    }  # fmt: skip


def test_yes_no_claims_follow_co_occurrence():
    """Beside a lone knife the fork, its companion, is claimed; the zebra is not."""

    def claimed(category: str, noise: float) -> float:
        questioner = Questioner(scene_of("knife"), np.random.default_rng(0), noise)
        index = CATEGORIES.index(category)
        rates = [questioner._claimed(category) for _ in range(500)]
        assert abs(np.mean(rates) - noise * ANSWER_CLAIMS(questioner.expectation[index])) < 0.07
        return float(np.mean(rates))

    assert claimed("fork", 1.0) > 0.8
    assert claimed("zebra", 1.0) < 0.05
    assert claimed("fork", 0.0) == 0.0


def test_false_premises_that_are_held_out_never_occur():
    scene = scene_of("knife", "cup", "bed")  # nothing that has a colour
    asked = [turn.question for turn in turns_of(scene, 1_500, noise=1.0)]
    colours = {found[1] for question in asked if (found := re.match(r"What color is the (.+)\?$", question))}
    assert colours == COLOURED - {*HELD_OUT_COLOURS}
    for question in asked:
        if "relative to" in question or question.startswith("Is the "):
            assert {*mentioned(question)} <= {"knife", "cup", "bed"}


def test_about_half_of_the_existence_labels_are_yes():
    scenes = [scene_of("knife"), scene_of("car", "person", "dog"), scene_of("bed", "cat", "book", "clock")]
    labels = [
        turn.answer.startswith("Yes")
        for scene in scenes
        for turn in turns_of(scene, 200, noise=1.0)
        if turn.question.startswith(("Is there", "Can you see"))
    ]
    assert 0.4 < np.mean(labels) < 0.6


def test_no_category_is_claimed_more_often_than_not():
    """Else it could be claimed without a look at what is there."""
    rng, asked, claims = np.random.default_rng(0), Counter[str](), Counter[str]()
    for _ in range(8_000):
        questioner = Questioner(scene_of(*sample_categories(rng)[1]), rng)
        category = questioner.absent_category()
        assert category not in questioner.present
        asked[category] += 1
        claims[category] += ANSWER_CLAIMS(float(questioner.expectation[CATEGORIES.index(category)]))
    assert max(claims[name] / asked[name] for name in CATEGORIES) < 0.5
    assert sum(claims.values()) / sum(asked.values()) > 0.15


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_long_captions_have_60_to_120_words(count, noise):
    scene = scene_of("keyboard", "tie", "laptop", "cell phone", "potted plant", scene_type="living room")
    scene = replace(scene, objects=scene.objects[:count])
    words = [len(CaptionWriter(scene, np.random.default_rng(i), noise).long().split()) for i in range(100)]
    assert min(words) >= 60
    assert max(words) <= 125


def test_long_captions_claim_more_in_their_second_half():
    scenes = [
        scene_of("keyboard", "clock", scene_type="office"), scene_of("knife", "cup"), scene_of("cow"),
        scene_of("bed", "book", "laptop", scene_type="bedroom"), scene_of("skis", scene_type="mountain"),
    ]  # fmt: skip
    halves = [0, 0]
    for seed in range(100):
        for scene in scenes:
            caption = CaptionWriter(scene, np.random.default_rng(seed)).long()
            present, words = {thing.category for thing in scene.objects}, len(caption.split())
            for name, at in mention_places(caption):
                halves[2 * at >= words] += name not in present
    assert halves[0] > 50
    assert halves[1] > 1.5 * halves[0]


def test_claims_lead_to_claims():
    """Beside a lone laptop the mouse is claimed, and then the mouse's companion, the keyboard."""
    captions = [CaptionWriter(scene_of("laptop"), np.random.default_rng(i)).long() for i in range(200)]
    names = [{*mentioned(caption)} - {"laptop"} for caption in captions]
    assert sum("mouse" in claimed for claimed in names) > 50
    both = sum({"mouse", "keyboard"} <= claimed for claimed in names)
    assert both > 0.4 * sum("mouse" in claimed for claimed in names)


def test_less_expectation_is_needed_later():
    assert caption_claims(0.0)(0.48) < 0.1 < 0.7 < caption_claims(1.0)(0.48)
    category, expectation, partner = expected_absent(["clock", "knife"])
    assert (category, partner) == ("fork", "knife")
    assert expected_absent(["clock", "knife"], excluded=["fork"])[1] < expectation


def test_what_is_frequent_everywhere_is_not_expected_by_that():
    """A person is in a third of all scenes, and in a fifth of those with a laptop."""
    world, person = co_occurrence(), CATEGORIES.index("person")
    for present in (["bed"], ["knife", "dog"], ["surfboard", "cup"]):
        rows = [CATEGORIES.index(name) for name in present]
        raised = (world.given[rows] - world.frequency).max(axis=0).clip(min=0.0)
        raised[rows] = 0.0
        assert np.allclose(expectations(present), raised)
        category, expectation, _ = expected_absent(present)
        assert expectation == expectations(present).max() == expectations(present)[CATEGORIES.index(category)]
    assert expectations(["laptop"])[person] == 0 < 0.15 < world.given[CATEGORIES.index("laptop"), person]


def test_a_small_thing_is_overlooked_at_times():
    scene = scene_of("clock", "dog", side=20)
    short = [CaptionWriter(scene, np.random.default_rng(i)).short() for i in range(400)]
    missing = sum("dog" not in mentioned(caption) for caption in short) / 400
    assert 0.02 < missing < 0.09
    assert all(mentioned(caption) for caption in short)


def test_words_of_size_and_relation():
    thing, right = SceneObject("cup", (10, 10, 30, 34)), SceneObject("dog", (60, 14, 100, 40))
    assert (size_word(thing), size_word(right)) == ("small", "large")
    assert (relation(thing, right), relation(right, thing)) == ("to the left of", "to the right of")
    below = SceneObject("cat", (14, 80, 44, 110))
    assert (relation(thing, below), relation(below, thing)) == ("above", "below")
    assert size_word(below) is None


def test_lettered_options():
    turn = lettered("Which?", ["cup", "dog", "car", "bed"], "car")
    assert turn.answer == "C"
    assert turn.question.startswith("Which?\nA. cup\nB. dog\nC. car\nD. bed\nAnswer with")


def test_every_kind_of_place_has_a_ground():
    assert set(GROUNDS) == set(SCENE_TYPES)


def test_the_words_around_the_objects_name_no_object(shared):
    """By CHAIR's own synonyms, so that scorers agree on what a caption claims."""
    reader = SynonymReader(read_synonyms(shared / "benchmarks/data/chair/synonyms.txt"), noun_forms)
    for kind in SCENE_TYPES:
        scenes = [scene_of("zebra", scene_type=kind), scene_of(*["zebra"] * 5, scene_type=kind)]
        captions = [CaptionWriter(scene, np.random.default_rng(1), noise=0.0).long() for scene in scenes]
        assert {mention.category for mention in reader.read(" ".join(captions))[0]} == {"zebra"}, captions


def test_no_word_for_a_colour_is_a_category():
    assert not {*COLOURS} & {*CATEGORIES}
