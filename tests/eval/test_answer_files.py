"""Answer files of other harnesses: every layout is read, and answers are matched to their questions."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standins import write_pope
from typer.testing import CliRunner

from regaze.cli import app
from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.answer_fields import choose_answer_field, items_from_rows, label_of, question_field, split_of
from regaze.eval.answer_files import AnswerRow, group_by_condition, read_answer_rows
from regaze.eval.answer_join import Join, join_rows
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.benchmarks.common.base import Benchmark

ROW = {"index": 3, "question": "a dog?", "answer": "yes", "prediction": "Yes.", "category": "random"}


def rows_of(*values: dict[str, Any]) -> list[AnswerRow]:
    return [AnswerRow(f"f:{line}", each) for line, each in enumerate(values, start=1)]


def answers_of(benchmark: Benchmark, rows: list[AnswerRow]) -> tuple[str, list[str]]:
    """What the rows were joined by, and their answers in the order of the items."""
    join = join_rows(benchmark, rows)
    field = choose_answer_field(join.rows, benchmark.items)
    return join.by, [row.text(field) for row in join.rows]


# Layouts ------------------------------------------------------------------------------------------------


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
    rows = read_answer_rows(tmp_path / name)
    field, (row,) = choose_answer_field(rows), rows
    question = row.text(question_field(rows))
    assert (row.text(field), label_of(row, field), question, split_of(row)) == (
        "Yes.",
        "yes",
        "a dog?",
        "random",
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"doc_id": 0, "target": "no", "filtered_resps": ["No"], "input": "?"}, ("No", "no", "?")),
        (
            {"doc_id": 0, "target": "no", "resps": [["n"]], "filtered_resps": ["No"], "input": "?"},
            ("No", "no", "?"),
        ),
        ({"doc_id": 0, "target": "no", "resps": [["No"]], "input": "?"}, ("No", "no", "?")),
        ({"question_id": 7, "prompt": "?", "text": "No"}, ("No", "", "?")),
        ({"query": "?", "label": "no", "ans": "No"}, ("No", "no", "?")),
        ({"image_id": 42, "caption": "a dog"}, ("a dog", "", "")),
        ({"id": 1005, "response": "Yes"}, ("Yes", "", "")),
        ({"question": "?", "answer": "no"}, ("no", "", "?")),
        ({"question": "?", "answer": ""}, ("", "", "?")),
    ],
    ids=["lmms-eval", "lmms-eval both", "lmms-eval raw", "LLaVA", "OPERA", "CHAIR", "AMBER", "POPE", "empty"],
)
def test_the_layouts_of_the_repositories(tmp_path, record, expected):
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    rows = read_answer_rows(tmp_path / "a.jsonl")
    field, question, (row,) = choose_answer_field(rows), question_field(rows), rows
    assert (row.text(field), label_of(row, field), row.text(question)) == expected


# Which field is the answer --------------------------------------------------------------------------------

DOG, CAT = "Is there a dog in the image?", "Is there a cat in the image?"


@pytest.mark.parametrize(
    ("records", "field"),
    [
        ([{"text": text, "label": "yes", "response": "Yes."} for text in (DOG, CAT)], "response"),
        ([{"question": DOG, "label": "yes", "answer": "yes", "output": "It is."}] * 2, "output"),
        ([{"question": DOG, "text": DOG, "label": "no", "caption": "None"}] * 2, "caption"),
    ],
)  # fmt: skip
def test_the_whole_file_decides_which_field_is_the_answer(records, field):
    assert choose_answer_field(rows_of(*records)) == field


def test_the_benchmarks_own_questions_and_labels_decide(tmp_path):
    pope = write_pope(tmp_path)
    records = [
        {"question": item.question, "answer": item.label, "response": f"I say no, {n}"}
        for n, item in enumerate(pope.items)
    ]
    assert answers_of(pope, rows_of(*records))[1] == [each["response"] for each in records]
    turned = [{**each, "answer": "perhaps"} for each in records]
    with pytest.raises(
        InputError, match=r"^f: the answers could stand under 'answer' or 'response'; choose by --answer"
    ):
        answers_of(pope, rows_of(*turned))


def test_right_answers_are_a_models_or_those_of_a_file_of_questions(tmp_path):
    """A file of questions names its images and has no other answers; a model may be right every time."""
    pope = write_pope(tmp_path)
    right = [item.label for item in pope.items]
    records = [{"question": item.question, "answer": item.label} for item in pope.items]
    assert answers_of(pope, rows_of(*records))[1] == right
    assert answers_of(pope, rows_of(*({**each, "label": each["answer"]} for each in records)))[1] == right
    images = [item.image.name for item in pope.items]
    asked = [{**each, "image": image} for each, image in zip(records, images, strict=True)]
    with pytest.raises(InputError, match=r"^f: 'answer' is the right answer in every line.*--answer-key"):
        answers_of(pope, rows_of(*asked))
    spelt = [{**each, "answer": each["answer"].title()} for each in asked]
    assert answers_of(pope, rows_of(*spelt))[1] == [label.title() for label in right]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": DOG, "answer": "yes", "response": "Yes"}, "could stand under 'answer' or 'response'"),
        ({"image_id": 1, "caption": "a dog", "output": "a cat"}, "could stand under 'caption' or 'output'"),
        ({"text": DOG, "label": "yes", "image": "a.png"}, r"holds questions \(under 'text'\) and no answers"),
        ({"question": DOG, "label": "yes"}, "f:1: no answer, which stands under one of"),
    ],
)
def test_files_without_answers_or_with_two_are_refused_with_the_option_that_chooses(record, message):
    with pytest.raises(InputError, match=f"{message}.*--answer-key"):
        choose_answer_field(rows_of(record, record))


def test_the_caller_may_choose_the_field():
    rows = rows_of({"question": DOG, "answer": "yes", "response": "Yes"}, {"question": CAT, "answer": "no"})
    assert choose_answer_field(rows, answer_key="answer") == "answer"
    with pytest.raises(InputError, match="f:2: no field 'response', which --answer-key names"):
        choose_answer_field(rows, answer_key="response")


def test_question_files_and_truths_are_not_scored(tmp_path):
    """From the command line: a question file is refused; --answer-key chooses among two."""

    def score(records: list[dict[str, str]], *more: str) -> Any:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
        return CliRunner().invoke(app, ["score", "pope", str(tmp_path / "a.jsonl"), "--json", *more])

    questions = [{"text": DOG, "label": "yes"}, {"text": CAT, "label": "no"}]
    refused = score(questions)
    assert refused.exit_code == 2
    assert "holds questions (under 'text') and no answers" in refused.stderr
    asked = [{"question": each["text"], "answer": each["label"], "response": "Yes"} for each in questions]
    assert score(asked).exit_code == 2
    figures = json.loads(score(asked, "--answer-key", "response").stdout)
    assert figures["plain"]["figures"]["answers"]["official"]["plain"]["accuracy"]["value"] == 0.5
    assert figures["joined_by"] == {"plain": "text"}


# Joining --------------------------------------------------------------------------------------------------


def test_ids_win_over_the_position(tmp_path):
    pope = write_pope(tmp_path)
    pope = replace(pope, items=tuple(replace(item, id=str(n)) for n, item in enumerate(pope.items, start=1)))
    expected = [f"answer {n}" for n in range(1, 6)]
    for spell in (int, str, "{:.1f}".format, "{:04d}".format):
        rows = rows_of(*({"question_id": spell(n), "answer": f"answer {n}"} for n in (1, 3, 5, 2, 4)))
        assert answers_of(pope, rows) == ("question_id", expected)
    from_zero = rows_of(*({"question_id": n - 1, "answer": f"answer {n}"} for n in (1, 3, 5, 2, 4)))
    assert answers_of(pope, from_zero) == ("question_id", expected)


def test_a_question_files_ids_are_those_of_its_items(tmp_path):
    """Answers in another order score as those in the file's."""
    pope = write_pope(tmp_path)
    order = [0, 2, 4, 1, 3]
    lines = [
        {"question_id": 100 + n, "image": item.image.name, "text": item.question, "label": item.label}
        for n, item in enumerate(pope.items)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    answers = [{"question_id": 100 + n, "answer": f"{lines[n]['label']}."} for n in order]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, answers)))
    options = [
        "--questions",
        str(tmp_path / "q.jsonl"),
        "--images",
        str(pope.items[0].image.parent),
        "--json",
    ]
    result = CliRunner().invoke(app, ["score", "pope", str(tmp_path / "a.jsonl"), *options])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["joined_by"] == {"plain": "question_id"}
    assert found["plain"]["figures"]["q"]["official"]["plain"]["accuracy"]["value"] == 1.0


def coco_captions(count: int = 3) -> Chair:
    """Captions of photographs that are named as COCO's."""
    captions = Chair.of_demo(count)
    items = [
        replace(
            item, key=str(100 + n), id=str(100 + n), image=Path(f"val2014/COCO_val2014_{100 + n:012d}.jpg")
        )
        for n, item in enumerate(captions.items)
    ]
    return replace(captions, items=tuple(items))


@pytest.mark.parametrize(
    "spell",
    [
        int,
        str,
        "{}.0".format,
        "COCO_val2014_{:012d}.jpg".format,
        "COCO_val2014_{:012d}".format,
        "{:012d}.jpg".format,
        "data/val2014/COCO_val2014_{:012d}.jpg".format,
        "C:\\val2014\\COCO_val2014_{:012d}.JPG".format,
    ],
)
def test_images_are_found_by_any_spelling_of_their_name(spell):
    for field in ("image_id", "image", "file_name"):
        rows = rows_of(*({field: spell(n), "caption": f"caption {n}"} for n in (102, 100, 101)))
        assert answers_of(coco_captions(), rows) == (field, ["caption 100", "caption 101", "caption 102"])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((100, 101, 101), r"f:3: a second answer to '101' \(image_id\), after f:2"),
        ((100, 101), r"f: 1 of 3 questions have no answer, the first is '102'"),
        ((100, 101, 7), r"f:3: chair has no question '7'"),
        ((7, 8, 9), r"f:1: captions has no question '7'|f:1: chair has no question '7'"),
        ((100, 101, None), r"f:3: no 'image_id', which other lines have"),
    ],
)
def test_ids_that_do_not_fit_are_named(numbers, message):
    captions = replace(coco_captions(), name="chair")
    with pytest.raises(InputError, match=message):
        join_rows(captions, rows_of(*({"image_id": n, "caption": "c"} for n in numbers)))


def test_text_and_image_join_where_there_are_no_ids(tmp_path):
    pope = write_pope(tmp_path)
    order = list(range(len(pope.items)))
    random.Random(0).shuffle(order)
    rows = rows_of(
        *(
            {
                "image": f"photos/{pope.items[n].image.name}",
                "prompt": pope.prompt(pope.items[n]),
                "text": f"a {n}",
            }
            for n in order
        )
    )
    assert answers_of(pope, rows) == ("text and image", [f"a {n}" for n in range(len(order))])
    with pytest.raises(InputError, match=r"f:6: a second answer to .*\(text and image\), after f:1"):
        join_rows(pope, [*rows, replace(rows[0], source="f:6")])


def test_counters_join_in_any_order_and_out_of_order_ids_are_refused():
    captions = Chair.of_demo(3)
    rows = rows_of(*({"doc_id": n, "resps": [[f"c {n}"]]} for n in (2, 0, 1)))
    assert answers_of(captions, rows) == ("doc_id", ["c 0", "c 1", "c 2"])
    with pytest.raises(InputError, match=r"f:2: a second answer to '2' \(doc_id\), after f:1"):
        join_rows(captions, rows_of(*({"doc_id": n, "resps": "c"} for n in (2, 2, 1))))
    with pytest.raises(InputError, match="f:2: 'index' is out of order"):
        join_rows(captions, rows_of(*({"index": n, "resps": "c"} for n in (70, 55, 90))))


def test_keys_find_their_item_in_any_order(tmp_path):
    pope = write_pope(tmp_path)
    rows = rows_of(*({"key": f"random/{n}", "answer": str(n)} for n in (5, 3, 1, 2, 4)))
    assert answers_of(pope, rows) == ("key", ["1", "2", "3", "4", "5"])


def test_without_ids_and_texts_the_position_counts(tmp_path):
    pope = write_pope(tmp_path)
    rows = rows_of(*({"answer": str(n)} for n in range(5)))
    assert join_rows(pope, rows) == Join("position", tuple(rows))


def test_columns_of_different_rows_are_no_table(tmp_path):
    """As one would make them to fill the memory: as many cells as rows times columns."""
    columns = {"answer": {str(n): "yes" for n in range(3)}, **{f"c{n}": {} for n in range(3)}}
    (tmp_path / "a.json").write_text(json.dumps(columns))
    with pytest.raises(InputError, match=r"a\.json: the column 'c0' has other rows than 'answer'"):
        read_answer_rows(tmp_path / "a.json")


def test_elements_of_an_array_are_named_by_their_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(' \n[\n {"a": 1}\n\n ,{"b": [\n2]}, 3,\n4 ]\n')
    assert files.read_records(tmp_path / "a.jsonl") == [(3, {"a": 1}), (5, {"b": [2]}), (6, 3), (7, 4)]


def test_answers_may_hold_what_models_write(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"answer": "\x1b[31m\0 yes"}))
    (row,) = read_answer_rows(tmp_path / "a.jsonl")
    assert row.text("answer") == "\x1b[31m\0 yes"


def test_conditions_are_separated():
    given = rows_of({"answer": "a"}, {"answer": "b", "condition": "var"}, {"answer": "c"})
    found = {name: [row.text("answer") for row in each] for name, each in group_by_condition(given).items()}
    assert found == {"plain": ["a", "c"], "var": ["b"]}


def test_a_file_may_bring_its_own_questions():
    given = rows_of(
        {"answer": "Yes", "label": "yes", "split": "random", "image": "a.png"},
        {"answer": "No", "label": "no"},
    )
    first, second = items_from_rows(given, "answer", ("yes", "no"))
    assert (first.split, first.image, first.reference) == ("random", Path("a.png"), "yes")
    assert (second.split, second.image) == ("answers", None)
    strange = AnswerRow("f:3", {"answer": "?", "label": "maybe"})
    with pytest.raises(
        InputError, match=r"f:3: its right answer is 'maybe', expected yes or no; for a file w"
    ):
        items_from_rows([*given, strange], "answer", ("yes", "no"))


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
