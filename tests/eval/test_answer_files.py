"""Answer files of others: each layout is read for what it says, and joined to the right question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from standins import write_pope
from typer.testing import CliRunner

from regaze.cli import app
from regaze.errors import InputError
from regaze.eval.answer_files import (
    AnswerRecord,
    group_by_condition,
    items_from_answers,
    match_answers,
    read_answers,
)
from regaze.eval.benchmarks.chair.benchmark import Chair

ROW = {"index": 3, "question": "a dog?", "answer": "yes", "prediction": "Yes.", "category": "random"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "index\tquestion\tanswer\tprediction\tcategory\n3\ta dog?\tyes\tYes.\trandom\n"),
        ("a.csv", "index,question,answer,prediction,category\n3,a dog?,yes,Yes.,random\n"),
        ("a.json", json.dumps([ROW])),
        ("a.json", json.dumps({key: {"0": value} for key, value in ROW.items()})),
        ("a.jsonl", json.dumps(ROW)),
        ("lines.json", json.dumps(ROW) + "\n"),
    ],
    ids=["tsv", "csv", "records", "columns", "lines", "lines called json"],
)
def test_vlmevalkits_predictions(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (given,) = read_answers(tmp_path / name)
    assert (given.answer, given.label, given.question, given.split) == ("Yes.", "yes", "a dog?", "random")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"doc_id": 0, "target": "no", "filtered_resps": ["No"], "input": "?"}, ("No", "no", "?", "")),
        ({"doc_id": 0, "target": "no", "resps": [["No"]], "input": "?"}, ("No", "no", "?", "")),
        ({"question_id": 7, "prompt": "?", "text": "No"}, ("No", "", "?", "7")),
        ({"query": "?", "label": "no", "ans": "No"}, ("No", "no", "?", "")),
        ({"image_id": 42, "caption": "a dog"}, ("a dog", "", "", "42")),
        ({"id": 1005, "response": "Yes"}, ("Yes", "", "", "1005")),
        ({"question": "?", "answer": "no"}, ("no", "", "?", "")),
        ({"question": "?", "answer": ""}, ("", "", "?", "")),
    ],
    ids=["lmms-eval", "lmms-eval raw", "LLaVA", "OPERA", "CHAIR", "AMBER", "POPE", "empty"],
)
def test_the_layouts_of_the_repositories(tmp_path, record, expected):
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (given,) = read_answers(tmp_path / "a.jsonl")
    assert (given.answer, given.label, given.question, given.number) == expected


def test_numbers_find_their_item_in_any_order():
    captions = Chair.of_demo(3)
    for number, item in enumerate(captions.items):
        object.__setattr__(item, "key", str(100 + number))
    given = [AnswerRecord(f"caption {n}", "f", number=str(n)) for n in (102, 100, 101)]
    assert match_answers(captions, given) == ["caption 100", "caption 101", "caption 102"]
    assert (
        match_answers(captions, [AnswerRecord(g.answer, "f", number="7") for g in given])[0] == "caption 102"
    )  # by position


def test_keys_find_their_item_in_any_order(tmp_path):
    pope = write_pope(tmp_path)
    given = [AnswerRecord(str(n), "f", key=f"random/{n}") for n in (5, 3, 1, 2, 4)]
    assert match_answers(pope, given) == ["1", "2", "3", "4", "5"]


def test_conditions_are_kept_apart():
    given = [AnswerRecord("a", "f"), AnswerRecord("b", "f", condition="var"), AnswerRecord("c", "f")]
    assert {name: [g.answer for g in each] for name, each in group_by_condition(given).items()} == {
        "plain": ["a", "c"],
        "var": ["b"],
    }


def test_a_file_may_bring_its_own_questions():
    given = [
        AnswerRecord("Yes", "f:1", label="yes", split="random", image="a.png"),
        AnswerRecord("No", "f:2", label="no"),
    ]
    first, second = items_from_answers(given, ("yes", "no"))
    assert (first.split, first.image, first.reference) == ("random", Path("a.png"), "yes")
    assert (second.split, second.image) == ("answers", None)
    with pytest.raises(
        InputError, match=r"f:3: its right answer is 'maybe', expected yes or no; for a file w"
    ):
        items_from_answers([*given, AnswerRecord("?", "f:3", label="maybe")], ("yes", "no"))


@pytest.mark.parametrize("case", ["coco_random_first200", "coco_popular_first200", "all_no_50"])
def test_the_goldens_are_scored_from_the_command_line(shared, tmp_path, case):
    folder = shared / "goldens/benchmarks/pope"
    expected = json.loads((folder / "expected.json").read_text())[case]["official_AoiDragon_POPE"]
    arguments = ["score", "pope", str(folder / f"{case}.answers.jsonl"), "--json", "--images", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--questions", str(folder / f"{case}.questions.jsonl")])
    assert result.exit_code == 0, result.stderr
    (figures,) = json.loads(result.stdout)["plain"]["figures"].values()
    for figure in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        if figure in expected:
            assert figures["official"]["plain"][figure]["value"] == expected[figure]
