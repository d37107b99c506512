"""MME: the three scorers in use against the goldens, what its files may hold, the demo's questions."""

from __future__ import annotations

import json
import math

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.mme.benchmark import Mme
from regaze.eval.benchmarks.mme.scorer import HALLUCINATION, TASKS, read_lmms_eval, read_official

EXACT = {"rel": 1e-12}


@pytest.fixture(scope="module")
def golden(goldens):
    return goldens / "benchmarks/mme"


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


@pytest.fixture(scope="module")
def answered(golden):
    """(benchmark, references, answers) of the golden folder, whose lines have the answer at the end."""
    folder = golden / "results_dir"
    answers = [
        line.split("\t")[3]
        for task in TASKS
        for line in (folder / f"{task}.txt").read_text().rstrip("\n").split("\n")
    ]
    mme = Mme.load(folder)
    return mme, [item.reference for item in mme.items], answers


def scores(answered, name, answers=None):
    mme, references, given = answered
    scorer = next(scorer for scorer in mme.scorers() if scorer.name == name)
    return scorer.score(references, given if answers is None else answers)


def test_official_figures_are_the_golden_ones(answered, expected):
    figures = scores(answered, "official")
    assert figures["perception"] == pytest.approx(expected["perception_total"], **EXACT)
    assert figures["cognition"] == pytest.approx(expected["cognition_total"], **EXACT)
    subset = expected["hallucination_subset_total(existence+count+position+color)"]
    assert figures["hallucination"] == pytest.approx(subset, **EXACT)
    mme, references, answers = answered
    scorer = mme.scorers()[0]
    details = scorer.details(scorer.count(references, answers).sum(0))
    for task, target in expected["per_task"].items():
        assert figures[task] == pytest.approx(target["score"], **EXACT)
        for name in ("TP", "FN", "TN", "FP"):
            assert details[task][name] == target[name]
        assert details[task]["other"] == target["other_num"]
        for name in ("precision", "recall", "acc", "acc_plus"):
            assert details[task][name] == pytest.approx(target[name], **EXACT)


@pytest.mark.parametrize(
    ("name", "key"),
    [("lmms-eval", "lmms_eval_category_scores"), ("vlmevalkit", "vlmevalkit_MME_rating_no_judge")],
)
def test_harness_figures_are_the_golden_ones(answered, expected, name, key):
    figures = scores(answered, name)
    target = expected[key]
    for task in TASKS:
        assert figures[task] == pytest.approx(target[task], **EXACT)
    totals = {"perception": target.get("perception", expected["lmms_eval_perception"])}
    totals["cognition"] = target.get("reasoning", expected["lmms_eval_cognition"])
    for total, value in totals.items():
        assert figures[total] == pytest.approx(value, **EXACT)


@pytest.mark.parametrize(("answer", "each"), [("all_yes", 50.0), ("all_correct", 200.0)])
def test_constant_and_perfect_answers(answered, answer, each):
    labels = [reference.label.capitalize() for reference in answered[1]]
    figures = scores(answered, "official", ["Yes"] * len(labels) if answer == "all_yes" else labels)
    assert {figures[task] for task in TASKS} == {each}
    assert (figures["perception"], figures["cognition"]) == (10 * each, 4 * each)


def test_a_task_without_a_readable_answer_is_undefined_as_the_script_stops(answered):
    answers = ["Maybe" if ref.task == "existence" else "Yes" for ref in answered[1]]
    figures = scores(answered, "official", answers)
    assert math.isnan(figures["existence"])
    assert math.isnan(figures["perception"])
    assert figures["cognition"] == 200.0
    assert scores(answered, "lmms-eval", answers)["existence"] == 0.0
    assert scores(answered, "regaze", answers)["unreadable"] == pytest.approx(
        answers.count("Maybe") / len(answers)
    )


def test_every_golden_answer_is_read_as_the_scorers_read_it(goldens):
    rows = json.loads((goldens / "benchmarks/pope/answer_parsing.json").read_text())["rows"]
    for row in rows:
        assert read_official(row["answer"]) == row["mme_official"], row["answer"]
        assert read_lmms_eval(row["answer"]) == row["lmms_eval_mme"], row["answer"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png\tq?\tYes"], r"existence\.txt:1: existence must have two questions in a row about a\.png"),
        (["a.png\tq?\tYes", "b.png\tq?\tNo"], r"existence\.txt:1: .* about a\.png"),
        (
            ["a.png\tq?\tYes ", "a.png\tq?\tNo"],
            r"existence\.txt:1: the right answer must be Yes or No, got 'Yes '",
        ),
        (
            ["a.png\tq?\tYes\tno\tno", "a.png\tq?\tNo"],
            r"existence\.txt:1: 5 fields between tabs, expected 3 or 4",
        ),
        (["a.png\tq?\tYes\tyes", "and no"], r"existence\.txt:2: 1 fields between tabs"),
    ],
)
def test_what_stops_the_official_script_is_named_with_its_line(tmp_path, lines, message):
    (tmp_path / "existence.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=message):
        Mme.load(tmp_path, tasks=["existence"])


def test_missing_and_unknown_tasks(tmp_path):
    with pytest.raises(InputError, match=r"has neither OCR\.txt nor a folder OCR"):
        Mme.load(tmp_path, tasks=["OCR"])
    with pytest.raises(InputError, match="got reading"):
        Mme.load(tmp_path, tasks=["reading"])


def test_prompts_limit_and_the_releases_layout(tmp_path):
    for task, sub in (("existence", ""), ("posters", "x")):
        images = tmp_path / task / ("images" if sub else "")
        texts = tmp_path / task / ("questions_answers_YN" if sub else "")
        for folder in (images, texts):
            folder.mkdir(parents=True, exist_ok=True)
        for name in "ab":
            (images / f"{name}.jpg").write_bytes(b"")
            (texts / f"{name}.txt").write_text(
                "Is it?  Please answer yes or no.\tYes\nIs it not? Please answer yes or no.\tNo\n"
            )
    mme = Mme.load(tmp_path, tasks=["existence", "posters"], limit=1)
    assert [item.key for item in mme.items] == ["existence/0", "existence/1", "posters/0", "posters/1"]
    assert mme.items[2].image == tmp_path / "posters/images/a.jpg"
    assert mme.prompt(mme.items[0]) == "Is it?  Please answer yes or no."
    llava = Mme.load(tmp_path, tasks=["existence"], llava=True)
    assert llava.prompt(llava.items[0]) == "Is it?\nAnswer the question using a single word or phrase."
    figures = mme.score({"plain": ["yes", "no", "yes", "yes"], "edited": ["yes", "no", "yes", "no"]}, seed=0)[
        "all"
    ]
    assert "perception" not in figures["official"]["plain"]
    assert figures["official"]["plain"]["posters"]["value"] == 50.0
    assert figures["official"]["edited"]["posters"]["value"] == 200.0
    assert figures["official"]["difference"]["only_edited_correct"] == 1
    assert figures["images"] == 2


def test_demo_questions_come_in_pairs_and_are_true():
    mme = Mme.of_demo(tasks=HALLUCINATION, llava=False)
    assert {item.split for item in mme.items} == set(HALLUCINATION)
    labels = [item.label for item in mme.items]
    assert labels == ["yes", "no"] * (len(labels) // 2)
    figures = mme.score({"plain": labels}, seed=0)["all"]["official"]["plain"]
    assert figures["hallucination"]["value"] == 800.0
    assert {item.split for item in Mme.of_demo().items} == {"existence", "count", "color"}
    assert mme.prompt(mme.items[0]).endswith("in the image? Please answer yes or no.")
