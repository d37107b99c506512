"""TextVQA: both normalisers and the agreement with people's answers."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from regaze.cli import app
from regaze.errors import InputError
from regaze.eval.benchmarks.common.normalise import normalise_pythia, normalise_vlmevalkit, strip_punctuation
from regaze.eval.benchmarks.textvqa import PYTHIA, VLMEVALKIT, TextVqa


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "goldens/benchmarks/textvqa/expected.json").read_text())


def test_llava_normaliser_gives_the_golden_texts(golden):
    assert {text: normalise_pythia(text) for text in golden["normalised"]} == golden["normalised"]


def test_llava_accuracy_is_the_golden_one(golden):
    people = [item["gt_answers"] for item in golden["items"]]
    answers = [item["pred_answer"] for item in golden["items"]]
    each = [PYTHIA.agreement(*pair) for pair in zip(people, answers, strict=True)]
    assert each == pytest.approx(golden["per_item"], rel=1e-15)
    assert PYTHIA.score(people, answers)["accuracy"] == pytest.approx(golden["accuracy"], rel=1e-15)


@pytest.mark.parametrize(
    ("text", "pythia", "vlmevalkit"),
    [
        ("3.", "3", "3."),
        ("it's", "it 's", "it's"),
        ("Nine, TEN", "9 10", "9 10"),
        ("a/b, 1,000", "b 1000", "ab 1000"),
        ("a/b 1,000", "b 1000", "ab 1000"),
        ("cant", "can't", "can't"),
        ("y'all'dve", "y'all'd've", "y'all'd've"),
        ("The the an", "", ""),
    ],
)
def test_the_normalisers_differ_where_they_are_known_to(text, pythia, vlmevalkit):
    assert (normalise_pythia(text), normalise_vlmevalkit(text)) == (pythia, vlmevalkit)


def test_only_32_full_stops_are_removed():
    assert strip_punctuation("." * 40, keep_decimal_point=False) == "." * 8


def test_agreement_by_hand():
    people = ["yes"] * 3 + ["no"] * 7
    # Of those who said yes two others agree, of the seven others three: (3 * 2/3 + 7 * 1) / 10.
    assert PYTHIA.agreement(people, "Yes.") == pytest.approx(0.9)
    assert VLMEVALKIT.agreement(people, "maybe") == 0.0


def write(folder, records, ocr=None):
    (folder / "train_images").mkdir(exist_ok=True)
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": records}))
    if ocr:
        (folder / "ocr.json").write_text(json.dumps({"data": ocr}))


RECORD = {
    "question_id": 7,
    "image_id": "ab",
    "question": "what brand?",
    "answers": ["dakota"] * 6 + ["x"] * 4,
}


def test_official_files_are_read_with_and_without_ocr_tokens(tmp_path):
    write(tmp_path, [RECORD], ocr=[{"image_id": "ab", "ocr_tokens": ["DAKOTA", "12"]}])
    plain = TextVqa.load(tmp_path)
    item = plain.items[0]
    assert (item.key, item.label, item.image) == ("7", "dakota", tmp_path / "train_images/ab.jpg")
    assert plain.prompt(item) == "what brand?\nAnswer the question using a single word or phrase."
    with_ocr = TextVqa.load(tmp_path, ocr=tmp_path / "ocr.json")
    assert with_ocr.prompt(with_ocr.items[0]).startswith(
        "what brand?\nReference OCR token: DAKOTA, 12\nAnswer"
    )
    scores = plain.score({"plain": ["Dakota."], "edited": ["nothing"]}, seed=0)["validation"]
    assert scores["pythia"]["plain"]["accuracy"]["value"] == 1.0
    assert scores["vlmevalkit"]["difference"]["accuracy"]["value"] == -1.0


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"data": 3}, r"'data' must be list"),
        ({"data": [{**RECORD, "answers": []}]}, r"data\[0\]: 'answers' must be a list of texts"),
        ({"data": [RECORD, {**RECORD, "question": ""}]}, r"data\[1\]: 'question' must be a non-empty string"),
        ({"data": [{**RECORD, "image_id": None}]}, r"data\[0\]: 'image_id' must be a non-empty string"),
    ],
)
def test_malformed_files_are_named(tmp_path, records, message):
    write(tmp_path, [])
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match=message):
        TextVqa.load(tmp_path)


def test_answers_are_scored_where_the_images_are_not_at_hand(tmp_path):
    record = {"question_id": 3, "image_id": "a", "question": "what word?", "answers": ["stop"] * 10}
    write(tmp_path, [record])
    (tmp_path / "train_images").rmdir()
    (tmp_path / "answers.jsonl").write_text('{"question_id": 3, "text": "Stop"}')
    result = CliRunner().invoke(
        app, ["score", "textvqa", str(tmp_path / "answers.jsonl"), "--data", str(tmp_path), "--json"]
    )
    assert result.exit_code == 0, result.output
    (figures,) = json.loads(result.stdout)["plain"]["figures"].values()
    assert figures[PYTHIA.name]["plain"]["accuracy"]["value"] == 1
