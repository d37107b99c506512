"""Rules for yes/no answers: those in use against the goldens, and how answers are read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.common.yes_no import (
    HARNESS,
    METRICS,
    OFFICIAL,
    OPERA,
    REGAZE,
    SCORERS,
    VCD,
    VLMEVALKIT,
)

KEYS = {
    "opera": (
        "opera_pope_eval",
        {name: name for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")},
    ),
    "vcd": (
        "vcd_eval_pope",
        {
            "accuracy": "Accuracy",
            "precision": "Precision",
            "recall": "Recall",
            "f1": "F1",
            "yes_ratio": "yes",
        },
    ),
    "vlmevalkit": (
        "vlmevalkit_POPE_rating_no_judge",
        {"accuracy": "acc", "precision": "precision", "recall": "recall", "f1": "Overall"},
    ),
}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "benchmarks/pope"


def golden_cases(folder: Path, scorer: str) -> Iterator[tuple[list[str], list[str], dict]]:
    """Labels, answers and what a script says of them, of each case."""
    cases = json.loads((folder / "expected.json").read_text())
    assert len(cases) >= 5
    for case, expected in cases.items():
        labels = [row["label"] for row in rows(folder / f"{case}.questions.jsonl")]
        answers = [row["answer"] for row in rows(folder / f"{case}.answers.jsonl")]
        yield labels, answers, expected[scorer]


def test_official_scorer_gives_the_golden_figures(folder):
    for labels, answers, expected in golden_cases(folder, "official_AoiDragon_POPE"):
        check_official(labels, answers, expected)


def check_official(labels, answers, expected):
    scores = OFFICIAL.score(labels, answers)
    for figure in METRICS:
        if figure in expected:
            assert scores[figure] == expected[figure]
    if "error" in expected:  # the script stopped at a division by zero
        assert math.isnan(scores["precision"])
        assert math.isnan(scores["f1"])
        assert scores["recall"] == 0.0

    counts = OFFICIAL.details(OFFICIAL.count(labels, answers).sum(0))
    assert counts == {
        "label_yes": {"yes": expected["TP"], "no": expected["FN"], "other": 0},
        "label_no": {"yes": expected["FP"], "no": expected["TN"], "other": 0},
    }


def test_harness_scorer_gives_the_golden_figures(folder):
    for labels, answers, expected in golden_cases(folder, "lmms_eval_pope"):
        scores = HARNESS.score(labels, answers)
        assert scores["f1"] == pytest.approx(expected["f1_score"], rel=1e-15)
        for figure in ("accuracy", "precision", "recall", "yes_ratio"):
            assert scores[figure] == expected[figure]


@pytest.mark.parametrize("scorer", [OPERA, VCD, VLMEVALKIT], ids=lambda scorer: scorer.name)
def test_scorers_give_the_golden_figures(folder, scorer):
    key, names = KEYS[scorer.name]
    for labels, answers, expected in golden_cases(folder, key):
        check_scorer(scorer, names, labels, answers, expected)


def check_scorer(scorer, names, labels, answers, expected):
    scores = scorer.score(labels, answers)
    percent = 100 if scorer is VLMEVALKIT else 1
    for name, theirs in names.items():
        if theirs in expected:
            assert percent * scores[name] == pytest.approx(expected[theirs], rel=1e-12), name
    if "error" in expected:  # the script stopped at a division by zero
        assert math.isnan(scores["f1"])
    if "TP" in expected:
        counts = scorer.details(scorer.count(labels, answers).sum(0))
        assert (counts["label_yes"]["yes"], counts["label_yes"]["no"]) == (expected["TP"], expected["FN"])
        assert (counts["label_no"]["yes"], counts["label_no"]["no"]) == (expected["FP"], expected["TN"])


def test_every_golden_answer_is_read_as_by_pope_and_lmms_eval(folder):
    parsed = json.loads((folder / "answer_parsing.json").read_text())["rows"]
    assert len(parsed) > 100
    for row in parsed:
        answer = row["answer"]
        assert OFFICIAL.read(answer) == row["pope_official"], answer
        read = HARNESS.read(answer)
        assert (read == "yes", read == "no") == (
            row["lmms_eval_correct_if_yes"],
            row["lmms_eval_correct_if_no"],
        )
        assert read in (row["lmms_eval_pope_prediction"], "other")


def test_every_golden_answer_is_read_as_by_opera_vcd_and_vlmevalkit(folder):
    parsed = json.loads((folder / "answer_parsing.json").read_text())["rows"]
    assert len(parsed) > 100
    for row in parsed:
        answer = row["answer"]
        assert OPERA.read(answer) == row["opera"], answer
        assert VLMEVALKIT.read(answer) == {"Yes": "yes", "No": "no", "Unknown": "other"}[row["vlmevalkit"]], (
            answer
        )
        for label in ("yes", "no"):
            counts = VCD.count([label], [answer])[0]
            assert counts[["yes", "no"].index(label)].tolist() == [
                int(row[f"vcd_when_label_{label}"] == reading) for reading in ("yes", "no", "other")
            ], answer


@pytest.mark.parametrize(
    ("answer", "official", "harness"),
    [
        ("Yes", "yes", "yes"),
        (" no ", "no", "no"),
        ("Yes.", "yes", "other"),
        ("No, there is not.", "no", "other"),
        ("no,", "no", "other"),
        ("Yes. No.", "yes", "other"),
        (".No", "yes", "other"),
        ("NO", "yes", "no"),
        ("No\nthere", "yes", "other"),
        ("I am not sure", "no", "other"),
        ("There isn't a dog", "yes", "other"),
        ("", "yes", "other"),
    ],
)
def test_reading_by_hand(answer, official, harness):
    assert (OFFICIAL.read(answer), HARNESS.read(answer)) == (official, harness)


def test_our_reading_never_guesses():
    for text in ("Yes", "YES", "Yes.", "**Yes**", "\nYes", "Yes, there is nothing else."):
        assert REGAZE.read(text) == "yes", text
    for text in ("No!", "(No)", "No\nThere is a dog.", "no;", "'no'", "There is no dog", "N"):
        assert REGAZE.read(text) == "no", text
    for text in ("", "Yes and no", "No. Yes.", "Maybe", "Not", "I cannot see the image."):
        assert REGAZE.read(text) == "other", text


def test_figures_by_hand():
    labels = ["yes", "yes", "yes", "no", "no"]
    answers = ["Yes", "yes", "No", "Yes.", "no"]
    assert OFFICIAL.score(labels, answers) == pytest.approx(
        {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 3 / 5}
    )
    # "Yes." is not an exact match: wrong, and no false positive either.
    assert HARNESS.score(labels, answers) == pytest.approx(
        {"accuracy": 3 / 5, "precision": 1.0, "recall": 2 / 3, "f1": 4 / 5, "yes_ratio": 3 / 5}
    )


def test_unreadable_answers_are_wrong_and_counted():
    scores = REGAZE.score(["yes", "yes", "no", "no"], ["Yes", "perhaps", "perhaps", "No"])
    assert scores == pytest.approx(
        {"accuracy": 0.5, "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "yes_ratio": 0.25, "unreadable": 0.5}
    )


@pytest.mark.parametrize(
    ("labels", "answers"), [([], []), (["yes", "no"], ["yes"]), (["yes"], ["yes", "no"])]
)
def test_answers_and_labels_must_pair_up(labels, answers):
    with pytest.raises(InputError, match="expected one each"):
        OFFICIAL.score(labels, answers)


def test_fewer_answers_than_labels_pair_up_like_the_official_script_only_if_not_strict(folder):
    labels, answers, _ = next(golden_cases(folder, "lmms_eval_pope"))
    labels, answers = labels[:50], answers[:40]
    with pytest.raises(InputError, match="40 answers for 50 references; expected one each"):
        OFFICIAL.score(labels, answers)
    assert OFFICIAL.score(labels, answers, strict=False) == OFFICIAL.score(labels[:40], answers)


def test_every_scorer_has_a_name_of_its_own_and_says_what_it_reproduces():
    assert len({scorer.name for scorer in SCORERS}) == len(SCORERS) == 6
    assert all(scorer.version for scorer in SCORERS)
