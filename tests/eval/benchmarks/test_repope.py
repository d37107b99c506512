"""RePOPE: answers to POPE's questions, scored by both label sets."""

from __future__ import annotations

import gzip
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from regaze.cli.app import app
from regaze.errors import InputError
from regaze.eval.benchmarks.common.yes_no import read_anywhere
from regaze.eval.benchmarks.pope.benchmark import Pope
from regaze.eval.benchmarks.pope.label_sets import LABEL_SETS_SCORERS, REPOPE, Labels
from regaze.eval.benchmarks.pope.published import SPLITS
from regaze.eval.benchmarks.pope.repope import RePope
from regaze.eval.stats import estimators

OFFICIAL, OURS = LABEL_SETS_SCORERS[:2]
FIGURES = {
    "Precision": "precision",
    "Recall": "recall",
    "F1": "f1",
    "ACC": "accuracy",
    "Yes Ratio": "yes_ratio",
}


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """The published files as they lie after a download."""
    folder = tmp_path_factory.mktemp("repope")
    data = shared / "benchmarks/data"
    for version in ("head", "e3e3926", "7ef3026"):
        (folder / version).mkdir()
        for path in (data / "pope" / version).glob("coco*.gz"):
            (folder / version / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
    for path in (data / "repope").glob("*.gz"):
        (folder / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def repope(folder):
    return RePope.load(folder, folder)


@pytest.fixture(scope="module")
def cases(shared):
    """{case: (expected, {split: {question_id: answer}} or None where every answer is the same)}."""
    folder = shared / "goldens/benchmarks/repope"
    expected = json.loads((folder / "expected.json").read_text())
    assert len(expected) >= 4
    return {
        case: (
            entry,
            None
            if "every_answer" in entry
            else json.loads(gzip.open(folder / f"{case}.responses.json.gz").read()),
        )
        for case, entry in expected.items()
    }


def of_split(bench, split, entry, responses):
    """Items of a split and their answers."""
    items = [item for item in bench.items if item.split == split]
    return items, [entry["every_answer"] if responses is None else responses[split][i.id] for i in items]


def test_labels_change_as_the_publisher_counts(repope):
    """A table of the protocol: found, dropped, and labels that changed."""
    wanted = {
        "random": (2774, 226, 139, 5),
        "popular": (2727, 273, 139, 39),
        "adversarial": (2684, 316, 139, 33),
    }
    assert {split: tuple(counts.values())[:4] for split, counts in repope.label_counts().items()} == wanted
    assert all(counts["missing"] == 0 for counts in repope.label_counts().values())
    assert (
        "random 2774 with a corrected label, 226 without, 139 changed from yes to no, 5 from no"
        in repope.notes()[0]
    )
    described = repope.describe()
    assert described["notes"] == list(repope.notes())
    assert {file["version"] for file in described["files"].values()} == {"head"}
    assert {file["sha256"] for file in described["label_files"].values()} <= {
        file.sha256 for file in RePope.about.files
    }


def test_a_download_has_the_labels_and_the_two_versions_of_pope_in_use(folder):
    paths = {file.path for file in RePope.about.files}
    assert len(paths) == 9
    assert all((folder / path).is_file() for path in paths)  # as they lie in these tests


def test_the_official_scorer_gives_the_golden_figures_under_both_label_sets(repope, cases):
    for case, (entry, responses) in cases.items():
        for labels, prefix in (("POPE", "pope_"), ("RePOPE", "")):
            for split in SPLITS:
                items, answers = of_split(repope, split, entry, responses)
                references = [item.reference for item in items]
                scores = OFFICIAL.score(references, answers)
                expected = entry["official_YanNeu_RePOPE"][labels]
                if expected == "ZeroDivisionError":
                    assert all(math.isnan(scores[prefix + ours]) for ours in FIGURES.values()), case
                    continue
                for theirs, ours in FIGURES.items():
                    assert scores[prefix + ours] == pytest.approx(expected[split][theirs], rel=1e-12), case
                counts = OFFICIAL.details(OFFICIAL.count(references, answers).sum(0))[labels.lower()]
                assert counts["label_yes"]["yes"] == expected[split]["TP"]
                assert counts["label_yes"]["no"] == expected[split]["FN"]
                assert counts["label_no"]["yes"] == expected[split]["FP"]
                assert counts["label_no"]["no"] == expected[split]["TN"]


def test_unreadable_answers_and_the_share_right_of_all_questions_are_golden(repope, cases):
    for entry, responses in cases.values():
        for labels in ("POPE", "RePOPE") if "unreadable" in entry else ():
            for split in SPLITS:
                items, answers = of_split(repope, split, entry, responses)
                counts = OFFICIAL.count([item.reference for item in items], answers).sum(0)
                counts = counts[["POPE", "RePOPE"].index(labels)]
                assert counts[:, 2].sum() == entry["unreadable"][labels][split]
                right = (counts[0, 0] + counts[1, 1]) / counts.sum()
                assert right == pytest.approx(entry["share_right_of_all_questions"][labels][split], rel=1e-12)


def test_answers_to_the_2910_line_file_are_joined_by_image_and_text(folder, cases):
    """Its ids mean other questions than RePOPE's, and it writes "imange"."""
    old = RePope.load(folder, folder, version="e3e3926", splits=["random"])
    head = Pope.load(folder, folder, splits=["random"])
    ids = {(item.image.name, item.question): item.id for item in head.items}
    for entry, responses in cases.values():
        wanted = entry.get("answers_of_the_2910_line_random_file")
        if wanted is None:
            continue
        answers = [
            responses["random"][ids[item.image.name, item.question.replace("imange", "image")]]
            if (item.image.name, item.question.replace("imange", "image")) in ids
            else "?"
            for item in old.items
        ]
        assert old.label_counts()["random"]["found"] == wanted["questions_found"]
        assert old.label_counts()["random"]["missing"] == wanted["questions_missing"]
        assert f"({wanted['questions_missing']} more are not among these)" in old.notes()[0]
        counts = OFFICIAL.count([item.reference for item in old.items], answers).sum(0)[1]
        found = {"TP": counts[0, 0], "FN": counts[0, 1], "FP": counts[1, 0], "TN": counts[1, 1]}
        assert found | {"unreadable": counts[:, 2].sum()} == {k: wanted[k] for k in (*found, "unreadable")}
    same_ids = {item.id: (item.image.name, item.question) for item in head.items}
    kept = [item for item in old.items if item.reference.repope is not None]
    by_id = sum(same_ids[item.id] == (item.image.name, item.question) for item in kept)
    assert by_id < 0.02 * len(kept)  # what a join by question_id would have met


def test_labels_of_other_images_are_refused(folder):
    with pytest.raises(
        InputError, match=r"coco_repope_random\.json: only 16 of its 2774 questions are among POPE's"
    ):
        RePope.load(folder, folder, version="7ef3026")


def test_every_golden_string_is_read_as_by_the_script(shared):
    rows = json.loads((shared / "goldens/benchmarks/answer_readings/yes_no.json").read_text())["rows"]
    assert len(rows) > 50
    for row in rows:
        assert read_anywhere(row["text"]) == (row["repope"] or "other"), row["text"]


def test_a_shift_is_the_difference_of_the_figures_and_its_interval_draws_the_same_images():
    references = [Labels("yes", "no"), Labels("yes", "yes"), Labels("no", None), Labels("no", "no")] * 9
    answers = ["No", "Yes", "Yes", "No", "No", "No", "No", "Yes", "Yes", "yes", "no", "no"] * 3
    scores = OURS.score(references, answers)
    for figure in ("accuracy", "precision", "recall", "f1"):
        assert scores[f"{figure}_shift"] == pytest.approx(scores[figure] - scores[f"pope_{figure}"])
    counts = OURS.count(references, answers).reshape(9, 4, 2, 2, 3).sum(1)
    draws = OURS.compute(estimators.bootstrap_sums(counts, resamples=50, seed=3))
    for pope in (True, False):
        alone = OURS.scorer.compute(
            estimators.bootstrap_sums(counts[:, 0 if pope else 1], resamples=50, seed=3)
        )
        np.testing.assert_array_equal(alone["f1"], draws["pope_f1" if pope else "f1"])


def test_a_perfect_model_by_hand():
    """Four answers that are true: POPE calls one of them wrong, RePOPE drops another."""
    references = [Labels("yes", "no"), Labels("yes", "yes"), Labels("no", "no"), Labels("yes", None)]
    scores = OURS.score(references, ["No", "Yes", "No", "No"])
    assert (scores["accuracy"], scores["pope_accuracy"], scores["accuracy_shift"]) == (1.0, 0.5, 0.5)
    assert (scores["recall"], scores["pope_recall"]) == (1.0, pytest.approx(1 / 3))
    assert scores["yes_ratio"] == pytest.approx(1 / 3)
    assert scores["pope_yes_ratio"] == 1 / 4


def test_the_gain_of_a_method_has_its_own_shift():
    bench = RePope.of_demo(limit=60, splits=["random"])
    truth = [item.reference.repope or item.label for item in bench.items]
    shipped = [item.label for item in bench.items]
    scores = bench.score({"plain": shipped, "edited": truth}, seed=0)["random"]["regaze"]
    assert scores["plain"]["pope_accuracy"]["value"] == scores["edited"]["accuracy"]["value"] == 1.0
    gain = {
        name: scores["difference"][name]["value"] for name in ("accuracy", "pope_accuracy", "accuracy_shift")
    }
    assert gain["pope_accuracy"] < 0 < gain["accuracy"]
    assert gain["accuracy_shift"] == pytest.approx(gain["accuracy"] - gain["pope_accuracy"])
    assert scores["difference"]["accuracy_shift"]["low"] > 0
    assert "permutation_p" in scores["difference"]


def test_scorers_that_read_an_answer_differently_are_counted():
    bench = RePope.of_demo(limit=2, splits=["random"])
    found = bench.score({"plain": ["Eyes.", "No"]}, seed=0)["random"]["disagreement"]
    assert found["scorers"] == [scorer.name for scorer in LABEL_SETS_SCORERS]
    assert found["answers"] == {"plain": {"different": 1, "opposite": 0}}


def test_what_a_dropped_question_is_answered_changes_no_corrected_figure():
    """Also for the test, and where no images are known (every question for itself)."""
    references = [Labels("yes", "yes"), Labels("no", None), Labels("no", "no")]
    first = OURS.score(references, ["Yes", "Yes", "Yes"])
    second = OURS.score(references, ["Yes", "No", "Yes"])
    assert all(first[name] == second[name] for name in (*OURS.scorer.metrics,))
    assert first["pope_accuracy"] != second["pope_accuracy"]
    assert OURS.correct(OURS.count(references, ["Yes", "No", "Yes"])).tolist() == [True, False, False]
    assert OFFICIAL.correct(OFFICIAL.count(references, ["Yes", "No", "Yes"])) is None
    assert OURS.accuracy_metric is None  # a Wilson interval would take dropped questions for wrong ones


def test_the_official_rule_leaves_unreadable_answers_out():
    assert REPOPE.score(["yes", "yes", "no", "no"], ["Yes", "perhaps", "perhaps", "No"]) == pytest.approx(
        {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0, "yes_ratio": 0.5, "unreadable": 0.5}
    )
    stopped = REPOPE.score(["yes", "no"], ["No", "No"])
    assert stopped.pop("unreadable") == 0.0
    assert all(map(math.isnan, stopped.values()))


def test_the_demo_is_spoilt_in_a_known_way_and_corrected_to_the_truth():
    bench = RePope.of_demo()
    truth = {(item.image.name, item.question): item.label for item in Pope.of_demo().items}
    fates = {}
    for item in bench.items:
        key = item.image.name, item.question
        assert item.reference.repope in (None, truth[key])
        assert item.label == item.reference.pope
        assert fates.setdefault(key, item.reference) == item.reference  # the same in every split
    counts = bench.label_counts()["random"]
    assert counts == {"found": 589, "dropped": 45, "yes_to_no": 29, "no_to_yes": 6, "missing": 0}
    dropped = [key for key, labels in fates.items() if labels.repope is None]
    assert all(truth[key] == "yes" for key in dropped)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


QUESTIONS = [
    {
        "question_id": 1,
        "image": "COCO_val2014_000000000042.jpg",
        "text": "Is there a dog in the image?",
        "label": "yes",
    },
    {
        "question_id": 2,
        "image": "COCO_val2014_000000000042.jpg",
        "text": "Is there an oven in the imange?",
        "label": "no",
    },
]


@pytest.fixture
def small(tmp_path):
    """POPE and RePOPE of one split with two questions; RePOPE's ids are shifted."""
    write(tmp_path / "coco_pope_random.json", QUESTIONS)
    corrected = QUESTIONS[1] | {"question_id": 1, "text": "Is there an oven in the image?", "label": "yes"}
    write(tmp_path / "coco_repope_random.json", [corrected])
    return tmp_path


def test_typing_errors_and_shifted_ids_do_not_hinder_the_join(small):
    bench = RePope.load(small, small, splits=["random"], limit=2)
    assert [item.reference for item in bench.items] == [Labels("yes", None), Labels("no", "yes")]
    assert [bench.prompt(item) for item in bench.items] == [row["text"] for row in QUESTIONS]
    assert bench.right_answers(bench.items[1]) == ("no", "yes")
    assert bench.right_answers(bench.items[0]) == ("yes",)


def test_a_question_that_is_labelled_twice_is_named(small):
    path = small / "coco_repope_random.json"
    line = json.loads(path.read_text())
    write(path, [line, line | {"question_id": 7, "image": line["image"].removesuffix(".jpg")}])
    with pytest.raises(InputError, match=r"coco_repope_random\.json:2: a second label for 'Is there an oven"):
        RePope.load(small, small, splits=["random"])
    write(path, [line | {"label": "maybe"}])
    with pytest.raises(InputError, match=r"random\.json:1: label must be yes or no, got 'maybe'"):
        RePope.load(small, small, splits=["random"])


def test_popes_own_files_may_be_elsewhere(small, tmp_path_factory):
    alone, none = tmp_path_factory.mktemp("labels"), tmp_path_factory.mktemp("none")
    (small / "coco_repope_random.json").rename(alone / "coco_repope_random.json")
    assert len(RePope.load(alone, small, pope=small, splits=["random"]).items) == len(QUESTIONS)
    with pytest.raises(
        InputError, match=r"has no coco_pope_random\.json.*; .* elsewhere: --bench pope=FOLDER$"
    ):
        RePope.load(alone, small, splits=["random"])
    with pytest.raises(InputError, match=r"has no coco_pope_random\.json[^;]*$"):
        RePope.load(alone, small, pope=none, splits=["random"])


def scored(*arguments):
    result = CliRunner().invoke(app, ["score", "repope", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_answers_given_to_pope_are_scored_without_the_images(small):
    answers = small / "answers.jsonl"
    write(answers, [{"question_id": 2, "answer": "Yes", "label": "no"}, {"question_id": 1, "answer": "No"}])
    figures = scored(answers, "--data", small, "--split", "random")
    assert figures["joined_by"] == {"plain": "question_id"}
    plain = figures["plain"]["figures"]["random"]["regaze"]["plain"]
    assert (plain["accuracy"]["value"], plain["pope_accuracy"]["value"]) == (1.0, 0.0)
    assert figures["benchmark"]["labels"]["random"]["no_to_yes"] == 1


def test_answers_to_repopes_questions_alone_have_no_figures_of_popes(small):
    answers = small / "answers.jsonl"
    write(answers, [{"image": QUESTIONS[1]["image"], "question": QUESTIONS[1]["text"], "answer": "Yes"}])
    arguments = ["score", "repope", str(answers), "--data", str(small), "--split", "random"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "; --bench corrected_only=true leaves out the questions that RePOPE dropped" in refused.stderr
    result = scored(answers, *arguments[3:], "--bench", "corrected_only=true")
    figures = result["plain"]["figures"]["random"]["regaze"]["plain"]
    assert figures["accuracy"]["value"] == 1.0
    assert set(figures["counts"]) == {"repope"}
    assert not [name for name in figures if name.startswith("pope_") or name.endswith("_shift")]


def test_corrected_figures_are_those_of_all_questions(folder, repope):
    alone = RePope.load(folder, folder, corrected_only=True)
    assert len(alone.items) == 8185
    assert {item.key for item in alone.items} < {item.key for item in repope.items}
    for scorer, both in zip(alone.scorers(), repope.scorers(), strict=True):
        found, expected = (
            rule.compute(rule.count(*zip(*((i.reference, i.label) for i in bench.items), strict=True)).sum(0))
            for rule, bench in ((scorer, alone), (both, repope))
        )
        assert set(found) == set(scorer.metrics) < set(both.metrics)
        assert found == {name: pytest.approx(float(expected[name])) for name in found}
    assert len(RePope.of_demo(corrected_only=True, limit=3).items) == 9
    assert "dropped are left out" in alone.notes()[1]


def test_a_run_of_pope_is_scored_by_both_labels(tmp_path):
    rows = [
        {
            "benchmark": "pope",
            "key": item.key,
            "condition": "plain",
            "answer": item.label,
            "label": item.label,
        }
        for item in Pope.of_demo().items
    ]
    write(tmp_path / "answers.jsonl", rows)
    figures = scored(tmp_path / "answers.jsonl")
    plain = figures["plain"]["figures"]["all"]["repope"]["plain"]
    assert plain["accuracy"]["value"] == 1.0
    assert plain["pope_accuracy"]["value"] == pytest.approx(1 - (29 + 28 + 28 + 3 * 6) / 1902)


class Rows(list):
    """A data set of the hub."""

    def remove_columns(self, name):
        return Rows({key: value for key, value in row.items() if key != name} for row in self)


def test_the_hub_copies_of_pope_and_of_the_labels_are_joined(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    picture = Image.new("RGB", (4, 4), "red")
    sets = {
        "lmms-lab-encoder/POPE": Rows(
            {"image": picture, "image_source": row["image"].removesuffix(".jpg"), "question": row["text"]}
            | {"answer": row["label"], "category": "random"}
            for row in QUESTIONS
        ),
        "MM-Hallu/RePOPE": Rows(
            [
                {"image": picture, "image_id": "000000000042", "question": "Is there an oven in the image?"}
                | {"answer": "yes", "category": "random"}
            ]
        ),
    }
    load = SimpleNamespace(load_dataset=lambda name, split: sets[name])
    monkeypatch.setitem(sys.modules, "datasets", load)
    bench = RePope.from_hub()
    assert [item.reference for item in bench.items] == [Labels("yes", None), Labels("no", "yes")]
    assert all(item.image.is_file() for item in bench.items)
