"""The judged benchmarks: prompts, how verdicts are read, scores, and that nothing runs without a judge."""

from __future__ import annotations

import csv
import json
import math

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.gavie import Gavie, GavieScorer, read_scores
from regaze.eval.benchmarks.llava_bench import (
    LlavaBench,
    official_prompts,
    read_lmms_eval,
    read_official,
    read_two_scores,
)
from regaze.eval.benchmarks.mmhal import TYPES, MmHal, RatingScorer, read_rating
from regaze.eval.benchmarks.mmvp import LMMS_EVAL, OFFICIAL, REGAZE, Mmvp, MmvpReference


class Judge:
    """Gives the verdicts it was made with, in turn, and records the prompts."""

    name = "scripted"

    def __init__(self, *verdicts):
        self.verdicts, self.prompts = list(verdicts), []

    def judge(self, prompts):
        self.prompts += prompts
        return [self.verdicts[i % len(self.verdicts)] for i in range(len(prompts))]


# MMHal-Bench -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "rating"),
    [
        ("Rating: 4, very informative", 4),
        ("**RATING: 0**", 0),
        ("rating: 2 or rating: 3", None),
        ("Rating: 6. I repeat, rating: 6", 6),
        ("Rating:5", None),
        ("", None),
    ],
)
def test_mmhal_ratings_are_read_as_the_official_script_reads_them(verdict, rating):
    assert read_rating(verdict) == rating


def test_mmhal_by_hand():
    references = ["attribute", "attribute", "other", "other"]
    verdicts = ["Rating: 6", "Rating: 2", "none", "Rating: 3"]
    official = RatingScorer("official", "", 0).score(references, verdicts)
    assert official["rating"] == pytest.approx((6 + 2 + 0 + 3) / 4)
    assert official["hallucination_rate"] == 0.5
    assert official["unreadable"] == 0.25
    own = RatingScorer("regaze", "", None).score(references, verdicts)
    assert own["rating"] == pytest.approx((6 + 2 + 3) / 3)
    assert own["other"] == 3.0
    assert own["unreadable"] == 0.25
    assert math.isnan(own["counting"])


def write_mmhal(folder, rounds=1):
    """A file in the layout of the official one: the types of question in turn."""
    records = [
        {
            "question_type": kind,
            "question_topic": "outdoor",
            "image_id": f"{number}",
            "image_src": f"https://host/{number}_o.jpg",
            "image_content": ["Fire hydrant"],
            "question": f"What color is cap {number}?",
            "gt_answer": f"The color of cap {number} is yellow.",
            "model_answer": "",
        }
        for number, kind in enumerate(list(TYPES) * rounds)
    ]
    (folder / "mmhal-bench_answer_template.json").write_text(json.dumps(records))
    return folder


def test_mmhal_from_a_file_of_the_official_layout(tmp_path):
    judge = Judge("fine. Rating: 5")
    bench = MmHal.load(write_mmhal(tmp_path, 12), judge=judge)
    assert len(bench.items) == 96
    assert [item.reference["question_type"] for item in bench.items] == list(TYPES) * 12
    scores = bench.score({"plain": ["It is yellow."] * 96}, seed=0)["all"]
    assert scores["official"]["plain"]["rating"]["value"] == 5.0
    assert {scores["regaze"]["plain"][kind]["value"] for kind in TYPES} == {5.0}
    first = bench.items[0]
    for part in (first.question, first.label, "It is yellow.", "Fire hydrant"):
        assert part in judge.prompts[0]
    assert bench.describe()["judge"] == "scripted"


# LLaVA-Bench -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "official", "lmms_eval", "own"),
    [
        ("8 7\nbecause", (8, 7), (8, 7), (8, 7)),
        ("8.5,7", (8.5, 7), (8.5, 7), (8.5, 7)),
        ("8, 7", None, (8, 7), (8, 7)),
        ("8  7", None, (8, 7), (8, 7)),
        ("Scores: 8 7", None, (8, 7), None),
        ("Assistant 1: 8, assistant 2: 7", None, (1, 8), None),
        ("8 11", (8, 11), (8, 11), None),
        ("\n8 7", None, (8, 7), (8, 7)),
        ("", None, None, None),
    ],
)
def test_scores_of_two_answers_are_read_in_three_ways(verdict, official, lmms_eval, own):
    assert (read_official(verdict), read_lmms_eval(verdict), read_two_scores(verdict)) == (
        official,
        lmms_eval,
        own,
    )


def write_llava(folder, **changes):
    content = {
        "questions.jsonl": [
            {"question_id": 0, "image": "001.jpg", "text": "Where is it?", "category": "conv"},
            {"question_id": 1, "image": "001.jpg", "text": "Tell more.", "category": "complex"},
        ],
        "context.jsonl": [{"id": "001", "image": "001.jpg", "caption": "A pier in {fog}."}],
        "answers_gpt4.jsonl": [{"question_id": i, "text": f"GPT says {i}."} for i in (0, 1)],
        **changes,
    }
    for name, rows in content.items():
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_llava_bench_relative_score(tmp_path):
    judge = Judge("8 6\nwell", "no idea")
    bench = LlavaBench.load(write_llava(tmp_path), judge=judge)
    scores = bench.score({"plain": ["At sea.", "Nothing."]}, seed=0)
    assert scores["conv"]["official"]["plain"]["relative"]["value"] == 75.0
    everything = scores["all"]
    assert everything["official"]["plain"]["relative"]["value"] == pytest.approx(100 * (6 - 1) / (8 - 1))
    assert everything["regaze"]["plain"]["relative"]["value"] == 75.0
    assert everything["regaze"]["plain"]["unreadable"]["value"] == 0.5
    for part in ("A pier in {fog}.", "Where is it?", "GPT says 0.", "At sea."):
        assert part in judge.prompts[0]
    assert judge.prompts[0].index("GPT says 0.") < judge.prompts[0].index("At sea.")


def test_llava_bench_takes_the_official_rules(tmp_path):
    rules = {
        f"llava_bench_{kind}": {"role": "Assistant", "prompt": f"Rule of {kind}."}
        for kind in ("conv", "detail")
    }
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    with pytest.raises(InputError, match=r"rule\.json: 'llava_bench_complex' must be dict"):
        official_prompts(tmp_path / "rule.json")
    rules["llava_bench_complex"] = {"role": "Helper", "prompt": "Rule."}
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    judge = Judge("8 6")
    bench = LlavaBench.load(write_llava(tmp_path), judge=judge, rules=tmp_path / "rule.json")
    bench.score({"plain": ["a", "b"]}, seed=0)
    assert judge.prompts[0] == (
        "[Context]\nA pier in {fog}.\n\n[Question]\nWhere is it?\n\n[Assistant 1]\nGPT says 0.\n\n"
        "[End of Assistant 1]\n\n[Assistant 2]\na\n\n[End of Assistant 2]\n\n[System]\nRule of conv.\n\n"
    )
    assert "[Helper 2]" in judge.prompts[1]
    assert "rule.json" in bench.describe()["scorers"]["official"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"answers_gpt4.jsonl": [{"question_id": 0, "text": "x"}]},
            r"questions\.jsonl:2: .* no reference of 1",
        ),
        (
            {"context.jsonl": [{"image": "2.jpg", "caption": "x"}]},
            r"questions\.jsonl:1: .* no context of 001\.jpg",
        ),
        ({"context.jsonl": [{"image": "001.jpg"}]}, r"context\.jsonl:1: 'caption' must be"),
    ],
)
def test_malformed_llava_files_are_named_with_their_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        LlavaBench.load(write_llava(tmp_path, **changes), judge=Judge(""))


# GAVIE -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "scores"),
    [
        ("Relevancy: 8\nAccuracy: 6.5\nbecause", (8, 6.5)),
        ("RELEVANCY:\nscore: 10\nreason: it follows\nAccuracy:\nscore: 3", (10, 3)),
        ("Relevancy: 8", None),
        ("Relevancy: 80\nAccuracy: 6", None),
    ],
)
def test_gavie_verdicts(verdict, scores):
    assert read_scores(verdict) == scores


def test_gavie_tells_the_judge_what_is_where(tmp_path):
    records = [{"image_id": f"{n}", "question": f"What stands on table {n}?"} for n in range(1000)]
    (tmp_path / "evaluation_set.json").write_text(json.dumps(records))
    regions = {record["image_id"]: [{"caption": "a table", "bbox": [1, 2, 30, 40]}] for record in records}
    (tmp_path / "vg_annotation.json").write_text(json.dumps(regions))
    judge = Judge("Relevancy: 8\nAccuracy: 6")
    bench = Gavie.load(tmp_path, judge=judge)
    assert len(bench.items) == 1000
    scores = bench.score({"plain": ["A lamp."] * 1000}, seed=0)["gavie"]["judge"]["plain"]
    assert (scores["accuracy"]["value"], scores["relevancy"]["value"]) == (6.0, 8.0)
    assert "a table X:1 Y:2 Width:30 Height:40" in judge.prompts[0]
    published = Gavie.load(tmp_path, judge=judge, as_published=True, limit=1)
    assert published.items[0].reference == "a table X:1 Y:2 Width:30 Height:30"
    regions[records[0]["image_id"]] = [{"caption": "a table", "bbox": [1, 2]}]
    (tmp_path / "vg_annotation.json").write_text(json.dumps(regions))
    with pytest.raises(InputError, match=r"vg_annotation\.json: .*'bbox' must be \[x, y, width, height\]"):
        Gavie.load(tmp_path, judge=judge)


def test_gavie_leaves_out_what_cannot_be_read():
    scores = GavieScorer().score([None] * 2, ["Relevancy: 8\nAccuracy: 6", "good"])
    assert scores == {"accuracy": 6.0, "relevancy": 8.0, "unreadable": 0.5}


# MMVP ------------------------------------------------------------------------------------------------------


def write_mmvp(folder, rows):
    with (folder / "Questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Index", "Question", "Options", "Correct Answer"])
        writer.writerows(rows)
    return folder


ROWS = [
    (1, "Is it open?", "(a) Open (b) Closed", "(a)"),
    (2, "Is it open?", "(a) Open (b) Closed", "(b)"),
]


def test_mmvp_counts_pairs(tmp_path):
    bench = Mmvp.load(write_mmvp(tmp_path, ROWS))
    assert bench.prompt(bench.items[0]) == "Is it open? (a) Open (b) Closed"
    lettered = Mmvp.load(tmp_path, lettered=True)
    assert lettered.prompt(lettered.items[0]).startswith("Is it open?\nA. Open\nB. Closed\nAnswer with")
    scores = bench.score({"plain": ["(a)", "(a)"], "edited": ["Open.", "B"]}, seed=0)["mmvp"]["regaze"]
    assert scores["plain"]["pair_accuracy"]["value"] == 0.0
    assert scores["plain"]["accuracy"]["value"] == 50.0
    assert scores["edited"]["pair_accuracy"]["value"] == 100.0
    assert len(Mmvp.load(tmp_path, limit=1).items) == 2


def test_mmvp_judged(tmp_path):
    judge = Judge("Yes", "no.", "Yes, it does")
    bench = Mmvp.load(write_mmvp(tmp_path, ROWS), judged=True, judge=judge)
    scores = bench.score({"plain": ["(a)", "(a)"]}, seed=0)["mmvp"]["official"]["plain"]
    assert (scores["accuracy"]["value"], scores["pair_accuracy"]["value"]) == (50.0, 0.0)
    assert "Right answer: (a)" in judge.prompts[0]
    references = [MmvpReference(1, ("x", "y"), "A"), MmvpReference(2, ("x", "y"), "B")]
    assert OFFICIAL.score(references, ["yes", "YES"])["pair_accuracy"] == 100.0
    assert OFFICIAL.score(references, ["yes", "Yes, it does"])["unreadable"] == 0.5


def test_mmvp_labels_that_lmms_eval_has_corrected():
    references = [MmvpReference(99, ("short", "long"), "A"), MmvpReference(100, ("short", "long"), "B")]
    assert REGAZE.score(references, ["A", "B"])["pair_accuracy"] == 100.0
    assert LMMS_EVAL.score(references, ["B", "A"])["pair_accuracy"] == 100.0


@pytest.mark.parametrize(
    ("answer", "lmms_eval", "own"),
    [
        ("A", True, True),
        ("(a)", True, True),
        ("a. Open", True, True),
        ("Open", False, True),
        ("The answer is (A)", True, True),
        ("A door is open", True, True),
        ("The door cannot be seen", False, False),
        ("B", False, False),
        ("", False, False),
    ],
)
def test_letters(answer, lmms_eval, own):
    reference = [MmvpReference(1, ("Open", "Closed"), "A")]
    assert (LMMS_EVAL.score(reference, [answer])["accuracy"] == 100.0) == lmms_eval
    assert (REGAZE.score(reference, [answer])["accuracy"] == 100.0) == own


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("one", "q", "(a) x (b) y", "(a)"), r"Questions\.csv:2: expected a number"),
        ((1, "q", "x or y", "(a)"), r"Questions\.csv:2: expected 2 to 10 different options, got \[\]"),
        ((1, "q", "(a) x (b) y", "(c)"), r"Questions\.csv:2: expected .* one of the options as the"),
        ((1, "q", "(a) x (b) y"), r"Questions\.csv:2: 3 fields, expected 4"),
    ],
)
def test_malformed_mmvp_rows_are_named_with_their_line(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        Mmvp.load(write_mmvp(tmp_path, [row]))


# All -------------------------------------------------------------------------------------------------------


def test_without_a_judge_nothing_is_made(tmp_path):
    write_mmhal(tmp_path)
    write_llava(tmp_path)
    write_mmvp(tmp_path, ROWS)
    (tmp_path / "evaluation_set.json").write_text("[]")
    (tmp_path / "vg_annotation.json").write_text("{}")
    makers = [
        lambda: MmHal.load(tmp_path),
        lambda: LlavaBench.load(tmp_path),
        lambda: Gavie.load(tmp_path),
        lambda: Mmvp.load(tmp_path, judged=True),
    ]
    for make in makers:
        with pytest.raises(InputError, match="is graded by a judge, and none is configured"):
            make()
