"""Labels that are none and ids that occur twice are errors that name the file and the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.amber.benchmark import Amber
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.benchmarks.common.base import Item, limit_items
from regaze.eval.benchmarks.hallusionbench.benchmark import HallusionBench
from regaze.eval.benchmarks.llava_bench import LlavaBench
from regaze.eval.benchmarks.mme.benchmark import Mme
from regaze.eval.benchmarks.mmvp import Mmvp
from regaze.eval.benchmarks.pope.benchmark import read_questions
from regaze.eval.benchmarks.ruler import Ruler
from regaze.eval.benchmarks.textvqa import TextVqa
from regaze.eval.benchmarks.vstar import VStar, VStarLikelihood

VSTAR = {
    "image": "a.jpg",
    "text": "Which?\n(A) red\n(B) blue",
    "label": "B",
    "question_id": 7,
    "category": "c",
}
HALLUSION = {
    "category": "VS",
    "subcategory": "chart",
    "set_id": "0",
    "figure_id": "1",
    "question_id": "0",
    "visual_input": "1",
    "filename": "a.png",
    "gt_answer": "1",
    "question": "Is it?",
}
TEXTVQA = {"image_id": "a", "question_id": 1, "question": "What?", "answers": ["x"] * 10}
LLAVA = {"question_id": 1, "image": "001.jpg", "category": "conv", "text": "What?"}


def write_lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))
    return path.parent


@pytest.mark.parametrize("label", ["", " ", "AB", "C", "a,b", "(A)"])
def test_labels_of_vstar(tmp_path, label):
    folder = write_lines(
        tmp_path / "test_questions.jsonl", VSTAR, {**VSTAR, "question_id": 8, "label": label}
    )
    with pytest.raises(InputError, match=r"test_questions\.jsonl:2: "):
        VStar.load(folder)


@pytest.mark.parametrize("letter", ["", "()", "(ab)", "(c)"])
def test_labels_of_mmvp(tmp_path, letter):
    lines = [
        "Index,Question,Options,Correct Answer",
        "1,Which?,(a) x (b) y,(a)",
        f"2,Which?,(a) x (b) y,{letter}",
    ]
    (tmp_path / "Questions.csv").write_text("\n".join(lines))
    with pytest.raises(
        InputError, match=r"Questions\.csv:3: expected a number from 1, a question, and the letter"
    ):
        Mmvp.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "Which?\n(A) (B) blue"}, r"expected 2 to 10 different options, got \['', 'blue'\]"),
        ({"text": "Which?\n(A) red\n(B) red"}, r"expected 2 to 10 different options"),
        ({"text": "Which?\n(B) red\n(A) blue"}, r"expected options \(A\), \(B\) and so on in this order"),
        ({"text": "(A) red (B) blue"}, r"expected a question with options"),
        ({"category": None}, r"'category' must be a non-empty string, got None"),
        ({"question_id": [1]}, r"'question_id' must be int or a non-empty string, got \[1\]"),
        ({"question_id": "07"}, r"a second question with id '7', after .*jsonl:1"),
    ],
)
def test_questions_of_vstar(tmp_path, change, message):
    folder = write_lines(tmp_path / "test_questions.jsonl", VSTAR, {**VSTAR, "question_id": 8, **change})
    with pytest.raises(InputError, match=rf"test_questions\.jsonl:2: {message}"):
        VStar.load(folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1,Which?,(a) x (b) y,a", "3,Which?,(a) x (b) y,b"], r"csv:2: question 1 lacks its partner 2"),
        (["0,Which?,(a) x (b) y,a", "1,Which?,(a) x (b) y,b"], r"csv:2: expected a number from 1"),
        (["1,,(a) x (b) y,a", "2,Which?,(a) x (b) y,b"], r"csv:2: expected a number from 1, a question"),
        (["1,Which?,(a) (b) y,a", "2,Which?,(a) x (b) y,b"], r"csv:2: expected 2 to 10 different options"),
        (["1,Which?,(b) x (a) y,a", "2,Which?,(a) x (b) y,b"], r"csv:2: expected options \(A\), \(B\)"),
    ],
)
def test_questions_of_mmvp(tmp_path, rows, message):
    (tmp_path / "Questions.csv").write_text("\n".join(["Index,Question,Options,Correct Answer", *rows]))
    with pytest.raises(InputError, match=message):
        Mmvp.load(tmp_path)


@pytest.mark.parametrize("options", [["red", ""], ["red", " red"], ["red", 1]])
def test_options_of_vstar_in_folders(tmp_path, options):
    folder = tmp_path / "direct_attributes"
    write_lines(folder / "sa_1.json", {"question": "What?", "options": options})
    (folder / "sa_1.jpg").touch()
    with pytest.raises(InputError, match=r"sa_1\.json: .*got \['red'"):
        VStarLikelihood.load(tmp_path)


@pytest.mark.parametrize("answers", [["x"], ["x"] * 9, [" "] * 10])
def test_answers_of_textvqa(tmp_path, answers):
    folder = write_lines(tmp_path / "TextVQA_0.5.1_val.json", {"data": [{**TEXTVQA, "answers": answers}]})
    with pytest.raises(InputError, match=r"data\[0\]: 'answers' must be a list of texts of 10 people"):
        TextVqa.load(folder, tmp_path)


def test_questions_of_mme(tmp_path):
    for line, message in (
        ("a.png\tIs it?\tYes", r"existence\.txt:2: the same question about a\.png"),
        ("a.png\t\tNo", r"existence\.txt:2: expected an image and a question, got 'a\.png' and ''"),
    ):
        (tmp_path / "existence.txt").write_text(f"a.png\tIs it?\tYes\n{line}\n")
        with pytest.raises(InputError, match=message):
            Mme.load(tmp_path, tasks=["existence"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["cat", 5]}, "'names' must be a list of texts"),
        ({"images": {"9": [True]}}, "'images' must map ids to indices of 'names', got '9'"),
        ({"images": {"09": [0]}}, "'images' must map ids to indices of 'names', got '09'"),
        ({"names": ["gizmo", "dog"]}, "image 9 has 'gizmo', which begins no line of synonyms"),
    ],
)
def test_objects_of_chair(tmp_path, change, message):
    truth = {"names": ["cat", "dog"], "images": {"9": [0]}, **change}
    write_lines(tmp_path / "coco2014_trainval_objects.json", truth)
    (tmp_path / "synonyms.txt").write_text("cat, kitten\ndog, puppy\n")
    with pytest.raises(InputError, match=message):
        Chair.load(tmp_path, tmp_path, ids=[9])


@pytest.mark.parametrize(
    "change",
    [
        {"gt_answer": ""},
        {"set_id": " "},
        {"gt_answer_details": ["It is."]},
        {"gt_answer": "01"},
        {"visual_input": "7"},
    ],
)
def test_labels_of_hallusionbench(tmp_path, change):
    folder = write_lines(
        tmp_path / "HallusionBench.json", HALLUSION, {**HALLUSION, "figure_id": "2", **change}
    )
    with pytest.raises(InputError, match=r"HallusionBench\.json:2: "):
        HallusionBench.load(folder)


def test_ids_that_occur_twice(tmp_path):
    folder = write_lines(tmp_path / "v/test_questions.jsonl", VSTAR, {**VSTAR, "image": "b.jpg"})
    with pytest.raises(InputError, match=r"jsonl:2: a second question 'c/7', after .*jsonl:1"):
        VStar.load(folder)
    folder = write_lines(tmp_path / "h/HallusionBench.json", HALLUSION, {**HALLUSION, "gt_answer": "0"})
    with pytest.raises(
        InputError, match=r"json:2: a second question with id 'VS/chart/0/1/0/1', after .*json:1"
    ):
        HallusionBench.load(folder)
    (tmp_path / "Questions.csv").write_text(
        "Index,Question,Options,Correct Answer\n" + "1,?,(a) x (b) y,(a)\n" * 2
    )
    with pytest.raises(InputError, match=r"Questions\.csv:3: a second question '1', after .*csv:2"):
        Mmvp.load(tmp_path)
    folder = write_lines(tmp_path / "t/TextVQA_0.5.1_val.json", {"data": [TEXTVQA, TEXTVQA]})
    with pytest.raises(InputError, match=r"data\[1\]: a second question '1', after .*data\[0\]"):
        TextVqa.load(folder, tmp_path)


def test_ids_that_occur_twice_in_one_line(tmp_path):
    """An array on one line gives all its elements the same place."""
    twice = [HALLUSION, {**HALLUSION, "set_id": 0, "gt_answer": "0"}]
    folder = write_lines(tmp_path / "HallusionBench.json", twice)
    with pytest.raises(InputError, match=r"json:1: a second question with id 'VS/chart/0/1/0/1'"):
        HallusionBench.load(folder)


def test_ids_that_occur_twice_in_pope_and_ruler(tmp_path):
    """However they are spelt."""
    asked = {"image": "a.png", "text": "Is there a dog?", "label": "yes"}
    lines = [{**asked, "question_id": 7}, {**asked, "text": "Is there a cat?", "question_id": "07"}]
    write_lines(tmp_path / "pope.json", *lines)
    with pytest.raises(InputError, match=r"pope\.json:2: a second question with id '7', after .*json:1"):
        limit_items(read_questions(tmp_path / "pope.json", tmp_path, "random"), None)
    needle = {"index": 3, "input": "Find it.", "outputs": ["17"]}
    write_lines(tmp_path / "niah_single_1/validation.jsonl", needle, {**needle, "input": "Find this."})
    with pytest.raises(InputError, match=r"jsonl:2: a second question with id '3', after .*jsonl:1"):
        Ruler.load(tmp_path)
    write_lines(tmp_path / "niah_single_1/validation.jsonl", {**needle, "outputs": ["17", " "]})
    with pytest.raises(InputError, match=r"jsonl:1: 'outputs' must be a list of texts"):
        Ruler.load(tmp_path)


def test_ids_that_occur_twice_in_the_files_of_llava_bench(tmp_path):
    context, answer = {"image": "001.jpg", "caption": "A pier."}, {"question_id": 1, "text": "A pier."}
    write_lines(tmp_path / "context.jsonl", context)
    write_lines(tmp_path / "answers_gpt4.jsonl", answer, answer)
    folder = write_lines(tmp_path / "questions.jsonl", LLAVA, LLAVA)

    class Judge:
        name = "none"

    with pytest.raises(InputError, match=r"answers_gpt4\.jsonl:2: a second line with question_id '1'"):
        LlavaBench.load(folder, judge=Judge())
    write_lines(tmp_path / "answers_gpt4.jsonl", answer)
    with pytest.raises(InputError, match=r"questions\.jsonl:2: a second question '1', after .*:1"):
        LlavaBench.load(folder, judge=Judge())


def test_ids_that_occur_twice_in_amber_and_any_other_benchmark(tmp_path):
    question = {"id": 1, "image": "AMBER_1.jpg", "query": "Is it?"}
    annotation = {"id": 1, "type": "discriminative-relation", "truth": "yes"}
    write_lines(tmp_path / "annotations.json", annotation)
    folder = write_lines(tmp_path / "query_all.json", question, question)
    with pytest.raises(InputError, match=r"query_all\.json:2: a second question '1', after .*:1"):
        Amber.load(folder, task="d")
    twice = [Item("7", "captions", None, "?", ""), Item("7", "captions", None, "?", "")]
    with pytest.raises(InputError, match="a second question '7'"):
        limit_items(twice, None)
    assert len(limit_items(Chair.of_demo(2).items, None)) == 2
