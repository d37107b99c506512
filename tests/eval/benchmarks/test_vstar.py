"""V*Bench: both layouts, letters, and options that are never shown in the published order."""

from __future__ import annotations

import json

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.common.multiple_choice import read_choice
from regaze.eval.benchmarks.vstar import (
    LikelihoodScorer,
    VStar,
    VStarLikelihood,
    VStarReference,
    read_lmms_eval,
)


def write_official(folder, count=40):
    for category in ("direct_attributes", "relative_position"):
        (folder / category).mkdir()
        for number in range(count):
            record = {
                "question": "What colour?",
                "options": ["red", "green", "blue", "black"],
                "bbox": [[1, 2, 3, 4]],
            }
            (folder / category / f"sa_{number}.json").write_text(json.dumps(record))
            (folder / category / f"sa_{number}.jpg").write_bytes(b"")
    return folder


def test_official_files_are_shuffled_since_the_first_option_is_always_right(tmp_path):
    bench = VStar.load(write_official(tmp_path))
    assert len(bench.items) == 80
    assert {item.reference.letter for item in bench.items} == set("ABCD")
    for item in bench.items:
        assert item.reference.options["ABCD".index(item.reference.letter)] == "red"
        assert f"{item.reference.letter}. red" in bench.prompt(item)
        assert item.image.suffix == ".jpg"
        assert item.max_new_tokens == 16
    assert VStar.load(tmp_path) == bench
    assert VStar.load(tmp_path, seed=1) != bench
    answers = [item.reference.letter for item in bench.items]
    scores = bench.score({"plain": ["A"] * 80, "edited": answers}, seed=0)
    assert list(scores) == ["direct_attributes", "relative_position", "all"]
    assert scores["all"]["lmms-eval"]["edited"]["accuracy"]["value"] == 1.0
    assert scores["all"]["regaze"]["plain"]["accuracy"]["value"] < 0.5


QUESTION = {
    "image": "direct_attributes/sa_1.jpg",
    "text": "What is it made of?\n(A) rubber\n(B) cotton\nAnswer with the option's letter.",
    "category": "direct_attributes",
    "label": "B",
    "question_id": 7,
}


def test_questions_with_letters_are_read(tmp_path):
    (tmp_path / "test_questions.jsonl").write_text(json.dumps(QUESTION))
    bench = VStar.load(tmp_path)
    item = bench.items[0]
    assert item.reference.options == ("rubber", "cotton")
    assert bench.prompt(item).startswith("What is it made of?\nA. rubber\nB. cotton\nAnswer with")
    assert item.image == tmp_path / "direct_attributes/sa_1.jpg"


@pytest.mark.parametrize(
    ("answer", "lmms_eval", "own"),
    [
        ("B", "B", "B"),
        ("b.", "B", "B"),
        ("(B) cotton", "B", "B"),
        ("Cotton.", "C", "B"),
        ("The answer is B", "B", "B"),
        ("Because", "B", ""),
        ("D", "D", ""),
        ("it is", "", ""),
        ("", "", ""),
    ],
)
def test_letters(answer, lmms_eval, own):
    assert read_lmms_eval(answer) == lmms_eval
    assert read_choice(answer, ["rubber", "cotton"]) == own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "C"}, r"test_questions\.jsonl:1: expected a question with options \(A\), \(B\)"),
        ({"text": "What?"}, r"test_questions\.jsonl:1: expected 2 to 10 different options"),
        ({"image": ""}, r"test_questions\.jsonl:1: 'image' must be a non-empty string"),
    ],
)
def test_malformed_questions_are_named_with_their_line(tmp_path, change, message):
    (tmp_path / "test_questions.jsonl").write_text(json.dumps({**QUESTION, **change}))
    with pytest.raises(InputError, match=message):
        VStar.load(tmp_path)


def test_malformed_folders_are_named(tmp_path):
    with pytest.raises(InputError, match=r"has neither test_questions\.jsonl nor direct_attributes"):
        VStar.load(tmp_path)
    write_official(tmp_path, 1)
    (tmp_path / "direct_attributes/sa_0.jpg").unlink()
    with pytest.raises(InputError, match=r"sa_0\.json: there is no image of that name beside it"):
        VStar.load(tmp_path)
    (tmp_path / "direct_attributes/sa_0.json").write_text('{"question": "q", "options": ["a"]}')
    with pytest.raises(InputError, match=r"sa_0\.json: expected 2 to 10 different options"):
        VStar.load(tmp_path)


def test_the_official_way_ranks_the_options_of_the_bare_question(tmp_path):
    bench = VStarLikelihood.load(write_official(tmp_path, 3))
    for item in bench.items:
        assert bench.prompt(item) == "What colour?"
        assert sorted(item.options) == ["black", "blue", "green", "red"]
        assert item.label == "red"
    assert len({item.options[0] for item in VStarLikelihood.load(tmp_path, seed=3).items}) > 1
    scores = bench.score({"plain": ["red"] * 5 + ["green"], "edited": ["red"] * 6}, seed=0)
    assert scores["all"]["official"]["plain"]["accuracy"]["value"] == 5 / 6
    assert scores["all"]["official"]["difference"]["mcnemar_p"] == 1.0  # an image each
    with pytest.raises(InputError, match="has no direct_attributes and relative_position"):
        VStarLikelihood.load(tmp_path / "direct_attributes")


def test_an_answer_that_is_no_option_is_unreadable():
    reference = VStarReference(("a dog", "a cat"), "B")
    assert LikelihoodScorer().score([reference] * 3, ["a cat", "a dog", "B"]) == pytest.approx(
        {"accuracy": 1 / 3, "unreadable": 1 / 3}
    )
