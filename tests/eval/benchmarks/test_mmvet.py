"""MM-Vet: scores as they are read, the second try, capabilities and their combinations."""

from __future__ import annotations

import json
import math

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.mmvet import (
    AGAIN,
    FILE,
    MmVet,
    ScoreScorer,
    read_official,
    read_score,
)

OFFICIAL = ScoreScorer("official", "", read_official, zero=True)
REGAZE = ScoreScorer("regaze", "", read_score, zero=False)
RECORDS = {
    "v1_0": {"question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]},
    "v1_1": {"question": "Who is it?", "answer": "Bo<OR>Beau", "capability": ["rec"]},
    "v1_2": {"question": "What does it say?", "answer": "Stop", "capability": ["math", "ocr"]},
}


class Judge:
    """Answers each prompt by the first of its answers that the prompt contains, and records the prompts."""

    name = "scripted"

    def __init__(self, **replies):
        self.replies, self.prompts = replies, []

    def judge(self, prompts):
        self.prompts += prompts
        return [next(reply for part, reply in self.replies.items() if part in each) for each in prompts]


def write(folder, **changes):
    records = {
        key: {"imagename": f"{key}.png", **record, **changes.get(key, {})} for key, record in RECORDS.items()
    }
    (folder / FILE).write_text(json.dumps(records))
    return folder


@pytest.mark.parametrize(
    ("reply", "official", "own"),
    [
        ("0.5", 0.5, 0.5),
        ("1", 1.0, 1.0),
        (" 0.5", None, 0.5),
        ("0.7 because", 0.7, 0.7),
        ("0.8\n", 0.8, 0.8),
        ("Score: 0.3", None, 0.3),
        ("0.3 or 0.4", 0.3, None),
        ("5", None, None),
        ("-0.1", None, None),
        ("", None, None),
        ("half", None, None),
    ],
)
def test_scores_are_read_in_two_ways(reply, official, own):
    assert (read_official(reply), read_score(reply)) == (official, own)


def test_a_score_that_is_no_number_passes_the_official_bounds():
    assert math.isnan(read_official("nan"))
    assert math.isnan(OFFICIAL.score([None], [("nan",)])["score"])


def test_what_cannot_be_read_twice_is_0_or_left_out():
    tries = [("1.0",), ("well", "0.5"), ("well", "well")]
    assert OFFICIAL.score([None] * 3, tries)["score"] == pytest.approx(100 * 1.5 / 3)
    assert REGAZE.score([None] * 3, tries) == {
        "score": pytest.approx(100 * 1.5 / 2),
        "unreadable": pytest.approx(1 / 3),
    }


def test_capabilities_and_their_combinations_have_their_own_figures(tmp_path):
    judge = Judge(Minus="0.5", Beau="1.0", Go="none")
    bench = MmVet.load(write(tmp_path), judge=judge)
    assert bench.groups() == {
        "all": [0, 1, 2],
        "ocr": [0, 2],
        "math": [0, 2],
        "rec": [1],
        "ocr+math": [0, 2],
        "rec alone": [1],
    }
    scores = bench.score({"plain": ["Minus one.", "Beau.", "Go."]}, seed=0)
    figures = {group: each["official"]["plain"]["score"]["value"] for group, each in scores.items()}
    assert figures == {"all": 50, "ocr": 25, "math": 25, "rec": 100, "ocr+math": 25, "rec alone": 100}
    assert scores["ocr"]["regaze"]["plain"]["score"]["value"] == 50
    assert "Right answer: -1 <AND> -5\n" in judge.prompts[0]
    assert judge.prompts[3:] == [judge.prompts[2] + AGAIN]  # only what could not be read is asked again
    assert bench.items[0].image == tmp_path / "images/v1_0.png"
    assert bench.items[0].id == "v1_0"


def test_a_prompt_of_ones_own(tmp_path):
    (tmp_path / "prompt.txt").write_text("{question} | {reference} | {answer} | ")
    judge = Judge(x="1")
    bench = MmVet.load(write(tmp_path), judge=judge, prompt=tmp_path / "prompt.txt", limit=1)
    bench.score({"plain": ["x = 3", "x"]}, seed=0)
    assert judge.prompts == ["What is x? | -1 <AND> -5 | x = 3 | ", "Who is it? | Bo <OR> Beau | x | "]
    assert "prompt.txt" in bench.describe()["scorers"]["official"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capability": ["smell"]}, r"mm-vet\.json: v1_1: 'capability' must list some of rec, ocr, .*smell"),
        ({"capability": []}, r"mm-vet\.json: v1_1: 'capability' must list some"),
        ({"imagename": 7}, r"mm-vet\.json: v1_1: 'imagename' must be a non-empty string"),
        ({"answer": ""}, r"mm-vet\.json: v1_1: 'answer' must be"),
    ],
)
def test_malformed_questions_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        MmVet.load(write(tmp_path, v1_1=change), judge=Judge())


def test_without_questions_or_a_judge_nothing_is_made(tmp_path):
    with pytest.raises(InputError, match="MM-Vet is graded by a judge, and none is configured"):
        MmVet.load(write(tmp_path))
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(InputError, match="expected an object that maps ids to questions"):
        MmVet.load(tmp_path, judge=Judge())
