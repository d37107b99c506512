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
from regaze.eval.benchmarks.mmvp import Mmvp
from regaze.eval.benchmarks.textvqa import TextVqa
from regaze.eval.benchmarks.vstar import VStar

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
    with pytest.raises(InputError, match=r"Questions\.csv:3: expected a number, options like"):
        Mmvp.load(tmp_path)


@pytest.mark.parametrize("change", [{"gt_answer": ""}, {"gt_answer": "01"}, {"visual_input": "7"}])
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
    with pytest.raises(InputError, match=r"json:2: the same ids and visual_input as .*json:1"):
        HallusionBench.load(folder)
    (tmp_path / "Questions.csv").write_text(
        "Index,Question,Options,Correct Answer\n" + "1,?,(a) x (b) y,(a)\n" * 2
    )
    with pytest.raises(InputError, match=r"Questions\.csv:3: a second question '1', after .*csv:2"):
        Mmvp.load(tmp_path)
    folder = write_lines(tmp_path / "t/TextVQA_0.5.1_val.json", {"data": [TEXTVQA, TEXTVQA]})
    with pytest.raises(InputError, match=r"data\[1\]: a second question '1', after .*data\[0\]"):
        TextVqa.load(folder, tmp_path)


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
