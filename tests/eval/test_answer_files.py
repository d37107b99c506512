"""Answer files of other harnesses: every layout is read, and answers are matched to their questions."""

from __future__ import annotations

import json
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
from regaze.eval.answer_join import join_rows
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


@pytest.mark.parametrize("truth", ["answer", "text"])
@pytest.mark.parametrize(
    "name", ["completion", "reply", "Hypothesis", "llava_outputs", "predictedAnswer", "result"]
)
def test_right_answers_beside_answers_of_an_unknown_name_are_not_scored(tmp_path, name, truth):
    pope = write_pope(tmp_path)
    rows = [
        {
            "question": item.question,
            truth: item.label,
            name: "Yes",
            "model": "llava-1.5",
            "answer_id": f"x{n}",
        }
        for n, item in enumerate(pope.items)
    ]
    with pytest.raises(
        InputError, match=f"^f: {truth!r} is the right .* could stand under '{name}'.*--answer-key"
    ):
        answers_of(pope, rows_of(*rows))
    with pytest.raises(InputError, match=f"^f: the answers could stand under {truth!r} or {name!r}"):
        choose_answer_field(rows_of(*rows))
    assert choose_answer_field(rows_of(*rows), pope.items, name) == name
    for spell in (lambda label: f"{label.title()}.", lambda label: str(int(label == "yes"))):
        spelt = [{**row, truth: spell(row[truth])} for row in rows]
        with pytest.raises(InputError, match=f"^f: .*{truth!r} .*{name!r}.*--answer-key"):
            answers_of(pope, rows_of(*spelt))
    # A model's own answers are not all right.
    assert answers_of(pope, rows_of(*({**row, truth: "Yes"} for row in rows)))[1] == ["Yes"] * len(rows)


def test_the_output_of_an_instruction_is_not_the_models():
    """As in files for fine-tuning: instruction, input and the wanted output, and what a model then wrote."""
    rows = rows_of(
        *({"instruction": DOG, "input": "", "output": "yes", "generated": "No."} for _ in range(3))
    )
    with pytest.raises(InputError, match="could stand under 'output' or 'generated'; choose by --answer-key"):
        choose_answer_field(rows)


def test_what_is_no_answer_is_not_asked_about():
    """Fields beside an answer of a usual name: its reasons, its type, the truth."""
    more = {"rationale": "It barks.", "question_type": "object", "gt_text": "yes", "coco_url": "http://x/1"}
    for field in ("answer", "text", "caption"):
        assert choose_answer_field(rows_of({field: "It is.", **more}, {field: "No.", **more})) == field


@pytest.mark.parametrize("spell", ["{}.", " {}", "({})"])
def test_signs_around_right_answers_make_them_no_answers_of_a_model(spell):
    labels = ("yes", "no", "no")
    rows = rows_of(
        *({"label": each, "answer": spell.format(each.title()), "response": "no"} for each in labels)
    )
    assert choose_answer_field(rows) == "response"


def test_right_answers_that_contradict_each_other_are_refused():
    row = {"text": "a dog?", "label": "no", "target": "yes", "response": "No"}
    with pytest.raises(
        InputError, match=r"^f:2: two right answers, 'target': 'yes' and 'label': 'no'; leave"
    ):
        items_from_rows(rows_of({**row, "target": "no"}, row), "response", ("yes", "no"))


def test_an_answer_beside_a_label_is_another_models(tmp_path):
    row = {"text": "a dog?", "label": "no", "answer": "yes", "response": "No"}
    assert label_of(*rows_of(row), "response") == "no"
    assert label_of(*rows_of({**row, "label": None}), "response") == "yes"


def test_a_question_twice_with_its_id_is_refused():
    """Ids may begin anew, as where files of several splits were put together."""
    row = {"question_id": 1, "image": "a.png", "text": "a dog?", "label": "no", "response": "No"}
    others = [{**row, "text": "a cat?"}, {**row, "image": "b.png"}, {**row, "category": "popular"}]
    assert len(items_from_rows(rows_of(row, *others), "response", ("yes", "no"))) == 4
    with pytest.raises(InputError, match=r"^f:5: a second answer to '1', after f:1$"):
        items_from_rows(rows_of(row, *others, row), "response", ("yes", "no"))


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


def test_fields_of_one_name_but_for_their_capitals_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"Question-ID": 1, "questionId": 2, "answer": "yes"}))
    with pytest.raises(InputError, match=r"a\.jsonl:1: several fields are called 'question_id' but for"):
        read_answer_rows(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text(json.dumps({"Answer": "no", "answer": "yes", "Other": 1}))
    rows = read_answer_rows(tmp_path / "a.jsonl")
    assert rows[0].values == {"Answer": "no", "answer": "yes", "Other": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps({"Answer": "no", "Model Output": "yes"}))
    rows = read_answer_rows(tmp_path / "a.jsonl")
    assert choose_answer_field(rows, (), "Model Output") == choose_answer_field(rows, (), "model_output")


def test_result_files_of_mme(tmp_path):
    lines = [f"{n}.jpg\tIs there {x}?\t{x}\t{x.lower()}." for n in (1, 2) for x in ("Yes", "No")]
    (tmp_path / "results").mkdir()
    for task in ("existence", "count"):
        (tmp_path / "results" / f"{task}.txt").write_text("\n".join(lines))
    for path in (tmp_path / "results", tmp_path / "results/existence.txt"):
        scored = score("mme", path)
        scores = scored["plain"]["figures"]["all"]["official"]["plain"]
        assert scores["existence"]["value"] == 200.0
        assert ("count" in scores) == path.is_dir()
    # Another order, and the questions from elsewhere.
    (tmp_path / "existence.txt").write_text("\n".join(reversed(lines)))
    where = ["--data", str(tmp_path / "results"), "--images", str(tmp_path), "--bench", 'tasks=["existence"]']
    scored = score("mme", tmp_path / "existence.txt", *where)
    assert scored["joined_by"] == {"plain": "text and image and split"}
    (tmp_path / "existence.txt").write_text("1.jpg\tIs there?\tYes\n")
    with pytest.raises(AssertionError, match=r"existence\.txt:1: 3 fields between tabs, expected 4"):
        score("mme", tmp_path / "existence.txt")


def test_result_files_of_hallusionbench(tmp_path):
    """Its ids are ids only together: one question is asked about several figures, or about none."""
    records = [
        {
            "category": "VS",
            "subcategory": kind,
            "set_id": "0",
            "figure_id": str(figure),
            "question_id": "0",
            "visual_input": str(min(figure, 2)),
            "question": "Is A larger?",
            "filename": f"./{kind}/0_{figure}.png" if figure else None,
            "gt_answer": str(figure % 2),
        }
        for kind in ("chart", "map")
        for figure in (0, 1, 2, 3)
    ]
    (tmp_path / "HallusionBench.json").write_text(json.dumps(records))
    answers = [{**r, "model_prediction": "Yes" if r["gt_answer"] == "1" else "No"} for r in records]
    (tmp_path / "HallusionBench_result.json").write_text(json.dumps(answers[::-1]))
    scored = score("hallusionbench", tmp_path / "HallusionBench_result.json", "--data", str(tmp_path))
    by = "category, subcategory, set_id, figure_id, question_id, visual_input"
    assert scored["joined_by"] == {"plain": by}
    (figures,) = scored["plain"]["figures"].values()
    assert figures["vlmevalkit"]["plain"]["aAcc"]["value"] == 100.0


def test_a_template_for_answers_holds_none(tmp_path):
    rows = [{"question": "Is it?", "label": "no", "model_answer": "", "other": " "}] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        AssertionError, match=r"a\.jsonl: no line has a text under 'model_answer'.*--answer-key"
    ):
        score("pope", tmp_path / "a.jsonl")
    scored = score("pope", tmp_path / "a.jsonl", "--answer-key", "model_answer")
    assert scored["plain"]["figures"]["answers"]["regaze"]["plain"]["unreadable"]["value"] == 1.0


def test_a_file_of_several_benchmarks_is_scored_by_one(tmp_path):
    rows = [
        {"benchmark": b, "condition": c, "key": str(n), "prompt": "A?", "label": "yes", "answer": a}
        for b, a in (("pope", "yes"), ("chair", "A dog."))
        for c in ("plain", "vcd")
        for n in (1, 2)
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert score("pope", tmp_path / "answers.jsonl")["joined_by"] == {"plain": "key", "vcd": "key"}
    with pytest.raises(AssertionError, match=r"answers\.jsonl holds answers to chair, pope, not to mme"):
        score("mme", tmp_path / "answers.jsonl", "--data", ".")
    # In the files of others a benchmark may be called as they like.
    others = [{"benchmark": "POPE/adversarial", "prompt": "A?", "label": "yes", "response": "Yes"}]
    (tmp_path / "others.txt").write_text(json.dumps(others[0]))
    assert score("pope", tmp_path / "others.txt")["joined_by"] == {"plain": "text"}


def score(benchmark: str, path: Path, *more: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["score", benchmark, str(path), *more, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


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


@pytest.mark.parametrize("number", range(5))
def test_the_goldens_are_scored_from_the_command_line(goldens, tmp_path, number):
    folder = goldens / "benchmarks/pope"
    case, said = list(json.loads((folder / "expected.json").read_text()).items())[number]
    expected = said["official_AoiDragon_POPE"]
    arguments = ["score", "pope", str(folder / f"{case}.answers.jsonl"), "--json", "--images", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--questions", str(folder / f"{case}.questions.jsonl")])
    assert result.exit_code == 0, result.stderr
    (figures,) = json.loads(result.stdout)["plain"]["figures"].values()
    for figure in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        if figure in expected:
            assert figures["official"]["plain"][figure]["value"] == expected[figure]
