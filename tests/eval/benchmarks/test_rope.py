"""ROPE: the official denominators, our reading, prompts of the modes, files."""

from __future__ import annotations

import json

import pytest

from regaze.errors import InputError
from regaze.eval.answer_files import AnswerRow
from regaze.eval.answer_join import join_rows
from regaze.eval.benchmarks.rope.benchmark import CLASSES, FILES, Rope
from regaze.eval.benchmarks.rope.scorers import (
    OfficialScorer,
    RegazeScorer,
    RopeReference,
    read_objects,
)

NAMES = ("dog", "cat", "Dining Table", "dog", "person")
LIST = ("cat", "dining table", "dog", "person", "table", "tv")
RIGHT = "obj1: dog, obj2: cat, obj3: dining table, obj4: dog, obj5: person"


def official(mode, answers, pictures="a"):
    """(right, objects in the denominator) of answers in the order of pictures and objects."""
    numbers = (0,) if mode == "multi" else (1, 2, 3, 4, 5)
    references = [RopeReference(each, NAMES, LIST, number) for each in pictures for number in numbers]
    return tuple(OfficialScorer("official", "", mode).count(references, answers).sum(0))


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (RIGHT, (5, 5)),
        ("OBJ1: DOG, x: CAT, y: dining table", (3, 5)),
        ("obj1: dog, obj2: cat, obj3: dining table, obj4: dog, obj5: person.", (4, 5)),
        ("dog, cat, dining table, dog, person", (0, 10)),
        ("obj1: dog, obj2", (0, 10)),
        ("obj1:dog, obj2:cat", (0, 10)),
        ("", (0, 10)),
        ("obj1: dog, obj2: cat, and obj3: dining table, obj4: dog, obj5: person, obj6: tv", (5, 5)),
    ],
)
def test_all_in_one_answer_adds_five_twice_where_it_cannot_be_split(answer, counted):
    assert official("multi", [answer]) == counted


def test_an_answer_that_cannot_be_split_is_compared_letter_by_letter():
    reference = RopeReference("a", ("n", "o", "x", "y", "z"), LIST)
    assert list(OfficialScorer("official", "", "multi").count([reference], ["No"])[0]) == [2, 10]


def test_single_objects_are_compared_whole():
    assert official("single", ["dog", "Cat", "dining table", "dog.", " person"]) == (3, 5)


@pytest.mark.parametrize("mode", ["teacher-forcing", "student-forcing"])
def test_forcing_ends_a_picture_at_the_first_answer_that_lists_too_little(mode):
    assert official(mode, [RIGHT] * 5) == (5, 5)
    # The second answer lists one object: the four from there on count twice, later answers not at all.
    assert official(mode, ["obj1: dog", "obj1: dog", RIGHT, RIGHT, RIGHT]) == (1, 5 + 4)
    assert official(mode, ["dog", RIGHT, RIGHT, RIGHT, RIGHT]) == (0, 5 + 5)
    assert official(mode, ["dog", *[RIGHT] * 4, *[RIGHT] * 5], "ab") == (5, 5 + 5 + 5)


@pytest.mark.parametrize(
    ("answer", "number", "classes"),
    [
        (RIGHT, 0, ["dog", "cat", "dining table", "dog", "person"]),
        ("1. obj1: **Dog**\n2. obj2: cat", 0, ["dog", "cat", None, None, None]),
        ("dog, cat, dining table, dog, person.", 0, ["dog", "cat", "dining table", "dog", "person"]),
        ("obj3: a dining table; obj1: a dog or a cat", 0, [None, None, "dining table", None, None]),
        ("dog, cat", 0, [None] * 5),
        ("", 0, [None] * 5),
        ("It is a dog.", 3, ["dog"]),
        ("Obj.3: cat", 3, ["cat"]),
        ("dog, obj4: cat, obj5: tv", 3, ["dog"]),
        (RIGHT, 2, ["cat"]),
        ("dog, cat, tv", 1, ["dog"]),
        ("a zeppelin", 1, [None]),
        ("obj13: dog", 1, ["dog"]),
    ],
)
def test_objects_are_read_wherever_they_stand(answer, number, classes):
    assert read_objects(answer, LIST, number) == classes


def test_our_own_scorer_counts_each_object_once():
    references = [RopeReference(each, NAMES, LIST) for each in "abc"]
    scores = RegazeScorer().score(references, [RIGHT, "dog, dog, dining table, dog, person", "No."])
    assert scores == {
        "accuracy": pytest.approx(9 / 15),
        "all_right": pytest.approx(1 / 3),
        "unreadable": pytest.approx(5 / 15),
    }
    singles = [RopeReference(each, NAMES, LIST, number) for each in "ab" for number in (1, 2, 3, 4, 5)]
    answers = ["dog", "cat", "dining table", "dog", "person"] * 2
    answers[7] = "table"
    assert RegazeScorer().score(singles, answers)["all_right"] == 1 / 2


# Files -----------------------------------------------------------------------------------------------------


def entry(place, *names, source="COCO"):
    return {"folder": place, "data_source": source, "objects": [{"name": name} for name in names]}


def lay_out(folder, part="validation", **changes):
    """Two pictures of each kind."""
    (folder / part).mkdir()
    for kind, name in FILES.items():
        entries = [entry(f"/{part}/{kind}/{n}.jpg", *("dog", "cat", "tv", "dog", "cat")) for n in (1, 2)]
        (folder / part / name).write_text(json.dumps(changes.get(kind, entries)))
    return folder


def test_pictures_of_all_kinds_with_the_objects_as_classes(tmp_path):
    bench = Rope.load(lay_out(tmp_path))
    assert list(bench.groups()) == [*FILES, "all"]
    first = bench.items[0]
    assert first.image == tmp_path / "validation/AAAAB/1.png"
    assert first.reference.names == ("dog", "cat", "tv", "dog", "cat")
    assert "from this list: cat, dog, tv." in bench.prompt(first)
    assert bench.describe()["classes"] == "the objects in the data"
    assert len(Rope.load(tmp_path, splits=["mixed"], limit=1).items) == 1


def test_lists_of_classes_are_read_from_the_authors_file_without_running_it(tmp_path):
    lay_out(tmp_path)
    lists = {"COCO": ["tv", "dog", "cat"], "ADE": ["wall"]}
    (tmp_path / CLASSES).write_text(
        f"raise SystemExit\nTRAIN_CLASSES = {{}}\nVALIDATION_CLASSES = {lists!r}\n"
    )
    bench = Rope.load(tmp_path)
    assert "from this list: tv, dog, cat." in bench.prompt(bench.items[0])
    for text, message in (
        ("VALIDATION_CLASSES = dict(x)", r"constant\.py: VALIDATION_CLASSES is no list of classes"),
        ("(", r"constant\.py: VALIDATION_CLASSES is no list of classes"),
        ("X = 1", r"constant\.py has no VALIDATION_CLASSES"),
        ("VALIDATION_CLASSES = {'COCO': ['tv'], 'ADE': ['x']}", r"data\.json:1: 'dog' is no class of COCO"),
    ):
        (tmp_path / CLASSES).write_text(text)
        with pytest.raises(InputError, match=message):
            Rope.load(tmp_path)


def test_modes_ask_for_all_or_for_each_object(tmp_path):
    lay_out(tmp_path)
    single = Rope.load(tmp_path, mode="single", limit=1)
    assert [item.key for item in single.items[:5]] == [
        f"AAAAB/validation/AAAAB/1.png/{n}" for n in range(1, 6)
    ]
    assert len(single.items) == 25  # those about one picture stay together
    assert single.prompt(single.items[2]).startswith("Obj.3 in this image is marked")
    assert single.items[2].label == "tv"
    teacher = Rope.load(tmp_path, mode="teacher-forcing")
    assert teacher.prompt(teacher.items[0]).endswith("nothing else. obj1:")
    assert teacher.prompt(teacher.items[2]).endswith("nothing else. obj1: dog, obj2: cat, obj3:")
    student = Rope.load(tmp_path, mode="student-forcing")
    with pytest.raises(InputError, match=r"asks for each object after the model's own answer"):
        student.prompt(student.items[1])
    assert student.score({"plain": ["obj1: dog"] * 50}, seed=0)["all"]["official"]["plain"]["accuracy"][
        "value"
    ] == pytest.approx(10 / (10 * (5 + 4)))


def test_answers_are_joined_by_picture_and_number(tmp_path):
    bench = Rope.load(lay_out(tmp_path), mode="student-forcing", splits=["mixed"])
    rows = [
        AnswerRow(f"a.json:{line}", {"id": item.id, "answer": item.key})
        for line, item in enumerate(reversed(bench.items), start=1)
    ]
    assert [item.id for item in bench.items[:2]] == ["1.png-1", "1.png-2"]
    assert [row.values["answer"] for row in join_rows(bench, rows).rows] == [item.key for item in bench.items]


def test_a_wording_of_ones_own(tmp_path):
    lay_out(tmp_path)
    (tmp_path / "wording.txt").write_text("Which of {classes} is obj {number}?\n")
    bench = Rope.load(tmp_path, mode="single", prompt=tmp_path / "wording.txt")
    assert bench.prompt(bench.items[0]) == "Which of cat, dog, tv is obj 1?"
    assert bench.describe()["prompt"].startswith("wording.txt ")
    (tmp_path / "wording.txt").write_text("Which of {classes}?")
    with pytest.raises(InputError, match=r"wording\.txt lacks \{number\}"):
        Rope.load(tmp_path, mode="single", prompt=tmp_path / "wording.txt")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("a.jpg", "dog")], r"merged_mixed_data\.json:1: expected 5 objects of COCO or ADE, got 1"),
        ([entry("a.jpg", *["dog"] * 5, source="VG")], r"got 5 of 'VG'"),
        ([entry("a.jpg", *["dog"] * 4, " ")], r"merged_mixed_data\.json:1: 'name' must be"),
        ([entry("a.jpg", *["dog"] * 5)] * 2, r"a second question 'mixed/a\.png'"),
        ([{}], r"merged_mixed_data\.json:1: 'folder' must be"),
    ],
)
def test_malformed_entries_are_named_with_their_line(tmp_path, entries, message):
    with pytest.raises(InputError, match=message):
        Rope.load(lay_out(tmp_path, mixed=entries))


@pytest.mark.parametrize("wrong", [{"mode": "pairs"}, {"part": "test"}, {"splits": ["easy"]}, {"splits": []}])
def test_what_there_is_not_is_refused(tmp_path, wrong):
    with pytest.raises(
        InputError, match="ROPE has the modes multi, single, student-forcing, teacher-forcing"
    ):
        Rope.load(tmp_path, **wrong)


def test_questions_that_are_not_there_are_named_with_their_place(tmp_path):
    with pytest.raises(InputError, match=r"has no AAAAB_data\.json; the questions .* are sled-umich/ROPE on"):
        Rope.load(tmp_path)
