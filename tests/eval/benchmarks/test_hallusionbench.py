"""HallusionBench: the official arithmetic and the harnesses' against the goldens, the judge, its files."""

from __future__ import annotations

import gzip
import json
import math

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.common.judged import JudgePrompt
from regaze.eval.benchmarks.hallusionbench.benchmark import HallusionBench, read_verdict
from regaze.eval.benchmarks.hallusionbench.scorers import (
    CORRECT,
    INCORRECT,
    LMMS_EVAL_INTERN,
    UNCLEAR,
    VLMEVALKIT,
    AnswerScorer,
    HallusionReference,
    OfficialScorer,
    Verdict,
)

NAMES = {
    "qAcc": "Acc per question pair (qAcc)",
    "fAcc": "Acc per figure (fAcc)",
    "easy": "Acc per easy question (easy aAcc)",
    "hard": "Acc per hard question (hard aAcc)",
    "aAcc": "Acc per question (aAcc)",
    "inconsistent": "Consistency Test (inconsistent)",
    "wrong": "Consistency Test (wrong)",
    "LH": "LH",
    "VI": "VI",
    "mixed": "Mixed",
}
CASES = ["strong", "weak", "all_incorrect", "all_unclear"]
VLMEVALKIT_KEY = "vlmevalkit_Hallusion_rating_no_judge(image questions only)"
INTERN_KEY = "lmms_eval_intern_rule(image questions only, substring yes)"

RECORD = {
    "category": "VS",
    "subcategory": "chart",
    "visual_input": "1",
    "set_id": "0",
    "figure_id": "1",
    "question_id": "0",
    "question": "?",
    "gt_answer": "1",
    "filename": "./VS/chart/0_1.png",
}


@pytest.fixture(scope="module")
def data(shared):
    return shared / "benchmarks/data/hallusionbench"


@pytest.fixture(scope="module")
def references(data):
    return [item.reference for item in HallusionBench.load(data).items]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a file of our own in the official layout: charts, without and with two figures."""
    records = [
        {**RECORD, "set_id": set_, "figure_id": figure, "visual_input": figure, "question_id": question}
        | {"gt_answer": str((int(figure) + int(question)) % 2), "question": f"Is {question} the largest?"}
        | {"filename": f"./VS/chart/{set_}_{figure}.png" if figure != "0" else None}
        for set_ in "0123"
        for figure in "012"
        for question in "01"
    ]
    folder = tmp_path_factory.mktemp("hallusionbench")
    (folder / "HallusionBench.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "goldens/benchmarks/hallusionbench"
    expected = json.loads((folder / "expected.json").read_text())
    read = {
        case: json.loads(gzip.decompress((folder / f"{case}.verdicts.json.gz").read_bytes()))
        for case in CASES
    }
    return expected, read


@pytest.mark.parametrize("case", CASES)
def test_official_figures_are_the_golden_ones(references, golden, case):
    expected, read = golden
    verdicts = [Verdict(int(each["judge"]), each["same"] == "1") for each in read[case]]
    official = OfficialScorer()
    scores, target = official.score(references, verdicts), expected[case]["official"]
    for name, key in NAMES.items():
        assert round(scores[name], 4) == target[key], name
    assert scores["yes_difference"] == pytest.approx(target["Yes/No Bias (Pct Diff)"], abs=1e-15)
    assert scores["false_positive_ratio"] == pytest.approx(target["Yes/No Bias (FP Ratio)"], rel=1e-15)
    details = official.details(official.count(references, verdicts).sum(0))
    assert (details["items"], details["figures"]) == (1129, 346)
    assert (details["questions"], details["easy"], details["hard"]) == (455, 455, 430)


@pytest.mark.parametrize("case", ["strong", "weak"])
def test_harness_figures_are_the_golden_ones(references, golden, case):
    expected, read = golden
    answers = [each["model_prediction"] for each in read[case]]
    target = expected[case][VLMEVALKIT_KEY]
    details = VLMEVALKIT.details(VLMEVALKIT.count(references, answers).sum(0))
    scores = {**details, "Overall": VLMEVALKIT.score(references, answers)}
    for part, figures in target.items():
        for name, value in figures.items():
            assert scores[part][name] == pytest.approx(value, rel=1e-12), (part, name)
    intern = LMMS_EVAL_INTERN.score(references, answers)
    for name, value in expected[case][INTERN_KEY].items():
        assert intern[name] / 100 == pytest.approx(value, rel=1e-12)


def test_the_published_items_with_and_without_image(data, references):
    assert len(references) == 1129
    assert len(HallusionBench.load(data, images_only=True).items) == 951


def test_the_harness_way_leaves_out_what_has_no_image(own):
    references = [item.reference for item in HallusionBench.load(own).items]
    shown = HallusionBench.load(own, images_only=True)
    assert (len(references), len(shown.items)) == (24, 16)
    assert all(item.image is not None for item in shown.items)
    answers = ["Yes" if reference.positive else "No" for reference in references]
    only_shown = [
        answer for reference, answer in zip(references, answers, strict=True) if not reference.without_image
    ]
    inside = VLMEVALKIT.score([item.reference for item in shown.items], only_shown)
    assert VLMEVALKIT.score(references, answers) == inside == dict.fromkeys(VLMEVALKIT.metrics, 100.0)


def reference(figure="1", question="0", category="VD", visual="2", positive=True):
    return HallusionReference(category, "ocr", "0", figure, question, visual, positive)


def test_cannot_tell_is_right_where_there_is_no_figure():
    without = reference("0", category="VS", visual="0")
    verdicts = [Verdict(UNCLEAR), Verdict(UNCLEAR)]
    scores = OfficialScorer(causes=False).score([without, reference(category="VS")], verdicts)
    assert scores["aAcc"] == 50.0
    assert scores["qAcc"] == 0.0
    assert scores["easy"] == 100.0
    assert scores["hard"] == 0.0
    assert scores["fAcc"] == 0.0


def test_a_perfect_run_has_no_causes_where_the_official_script_stops(own):
    references = [item.reference for item in HallusionBench.load(own).items]
    scores = OfficialScorer().score(references, [Verdict(CORRECT)] * len(references))
    assert scores["aAcc"] == scores["qAcc"] == scores["fAcc"] == 100.0
    assert math.isnan(scores["LH"])


def test_own_rule_reads_the_first_word_and_never_guesses():
    references = [reference(question="0"), reference(question="1", positive=False), reference(question="2")]
    own = AnswerScorer().score(references, ["Yes, it is.", "Yes.", "It seems so."])
    assert own["aAcc"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("text", "code"),
    [("Correct.", CORRECT), ("this is incorrect", INCORRECT), ("unclear", UNCLEAR), ("", UNCLEAR)],
)
def test_verdicts_are_read_as_the_official_script_reads_them(text, code):
    assert read_verdict(text) == code


class ScriptedJudge:
    """Right when the answer begins with "ok"; the same when both answers are equal."""

    name = "scripted"

    def judge(self, prompts):
        return [self.one(prompt) for prompt in prompts]

    def one(self, prompt):
        if prompt.startswith("S|"):
            _, first, second = prompt.split("|")
            return "same" if first == second else "different"
        return "Correct" if "|ok" in prompt else "incorrect"


TEMPLATES = {
    "correctness": JudgePrompt("C|{question}|{reference}|{answer}", "test"),
    "sameness": JudgePrompt("S|{first}|{second}", "test"),
}


def test_judged_answers_are_scored_from_the_judges_words(own):
    bench = HallusionBench.load(own, limit=9, judged=True, judge=ScriptedJudge(), **TEMPLATES)
    sets = {item.reference.set for item in bench.items}
    assert all(sum(other.reference.set == one for other in bench.items) > 1 for one in sets)
    answers = ["ok"] * len(bench.items)
    scores = bench.score({"plain": ["no"] * len(answers), "edited": answers}, seed=0)["all"]["official"]
    assert scores["plain"]["aAcc"]["value"] == 0.0
    assert scores["edited"]["qAcc"]["value"] == 100.0
    assert scores["difference"]["only_edited_correct"] == len(answers)
    described = bench.describe()
    assert described["judge"] == "scripted"
    assert "prompts test and test, judge scripted" in described["scorers"]["official"]


def test_without_a_judge_the_official_score_is_refused_before_anything_is_asked(own):
    with pytest.raises(InputError, match="HallusionBench is graded by a judge, and none is configured"):
        HallusionBench.load(own, judged=True)
    assert [scorer.name for scorer in HallusionBench.load(own, limit=1).scorers()] == [
        *("vlmevalkit", "lmms-eval-intern", "regaze"),
    ]


def test_a_template_needs_its_places_and_leaves_other_braces_alone(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Compare {first} in {curly} with {second}.")
    template = JudgePrompt.from_file(path, ["first", "second"])
    assert template.fill(first="{second}", second="b") == "Compare {second} in {curly} with b."
    assert template.name.startswith("prompt.txt ")
    with pytest.raises(InputError, match=r"prompt\.txt lacks \{third\}"):
        JudgePrompt.from_file(path, ["first", "third"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category": "XX"}, r"HallusionBench\.json:1: unknown category or gt_answer"),
        ({"gt_answer": "2"}, r"HallusionBench\.json:1: unknown category or gt_answer"),
        ({"filename": None}, r"HallusionBench\.json:1: visual_input 1 does not fit filename None"),
        ({"question": ""}, r"HallusionBench\.json:1: 'question' must be a non-empty string"),
        ({"set_id": None}, r"HallusionBench\.json:1: 'set_id' must be a non-empty string or int"),
    ],
)
def test_malformed_items_are_named_with_their_line(tmp_path, changes, message):
    (tmp_path / "HallusionBench.json").write_text(json.dumps([{**RECORD, **changes}]))
    with pytest.raises(InputError, match=message):
        HallusionBench.load(tmp_path)
