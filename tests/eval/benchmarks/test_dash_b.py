"""DASH-B: its lists, its scorer, and the demo's misleading scenes."""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner

from regaze.cli.app import app
from regaze.demo import scenes
from regaze.errors import InputError
from regaze.eval.benchmarks.common.yes_no import read_anywhere
from regaze.eval.benchmarks.dash_b import METRICS, OFFICIAL, OURS, DashB

FIGURES = {"ACC": "accuracy", "TNR": "tnr", "TPR": "tpr", "Harmonic Mean": "harmonic_mean"}


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "benchmarks/data/dash_b"


def test_the_lists_are_balanced_and_their_keys_unique(folder):
    bench = DashB.load(folder, folder)
    assert len(bench.items) == 2682
    assert len({item.key for item in bench.items}) == 2682
    names = [(item.key.split("/")[0], item.label) for item in bench.items]
    per_object = Counter(names)
    assert len(per_object) == 140
    assert all(per_object[thing, "no"] == per_object[thing, "yes"] for thing, _ in per_object)
    assert 3 <= min(per_object.values()) <= max(per_object.values()) == 50
    first, last = bench.items[0], bench.items[-1]
    assert bench.prompt(first) == "Can you see a backpack in this image? Please answer only with yes or no."
    assert first.image == folder / "neg/coco/backpack/2327067188.png"
    assert (first.label, last.label, last.image.parts[-4]) == ("no", "yes", "pos")


def read_gzipped(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def cases(folder, items):
    """(case, labels, answers, expected) of every golden."""
    expected = json.loads((folder / "expected.json").read_text())
    assert len(expected) >= 5
    for case, entry in expected.items():
        labels = [item.label for item in items]
        if "columns" in entry:
            rows = read_gzipped(folder / f"{case}.answers.json.gz")
            at = {name: entry["columns"].index(name) for name in ("gt", "response")}
            labels, answers = ([row[at[name]] for row in rows] for name in ("gt", "response"))
        elif "every_answer" in entry:
            answers = [entry["every_answer"]] * len(labels)
        else:
            answers = read_gzipped(folder / f"{case}.responses.json.gz")
        yield case, labels, answers, entry


def test_the_official_scorer_gives_the_golden_figures(folder, shared):
    items = DashB.load(folder, folder).items
    for case, labels, answers, entry in cases(shared / "goldens/benchmarks/dash_b", items):
        scores, expected = OFFICIAL.score(labels, answers), entry["official_YanNeu_DASH-B"]
        for theirs, ours in FIGURES.items():
            if expected == "ZeroDivisionError":
                assert math.isnan(scores[ours]), case
            else:
                assert scores[ours] == pytest.approx(expected[theirs], rel=1e-12), case
        counts = OFFICIAL.details(OFFICIAL.count(labels, answers).sum(0))
        if "confusion" in entry:
            yes, no = counts["label_yes"], counts["label_no"]
            found = {"TP": yes["yes"], "FN": yes["no"], "FP": no["yes"], "TN": no["no"]}
            assert found == entry["confusion"], case
        if "unreadable" in entry:
            assert scores["unreadable"] * len(labels) == pytest.approx(entry["unreadable"]), case


def test_every_golden_string_is_read_as_by_the_script(shared):
    rows = json.loads((shared / "goldens/benchmarks/answer_readings/yes_no.json").read_text())["rows"]
    for row in rows:
        assert read_anywhere(row["text"]) == (row["dash_b"] or "other"), row["text"]


def test_unreadable_answers_are_wrong_and_counted():
    labels, answers = ["yes", "yes", "no", "no", "no"], ["Yes", "perhaps", "No", "perhaps", "Yes"]
    expected = {"accuracy": 2 / 5, "tnr": 1 / 3, "tpr": 1 / 2, "harmonic_mean": 2 / 5}
    for scorer in (OFFICIAL, OURS):
        assert scorer.metrics == METRICS
        assert scorer.score(labels, answers) == pytest.approx(
            expected | {"yes_ratio": 2 / 5, "unreadable": 2 / 5}
        )


def test_where_the_script_stops_its_figures_are_undefined_and_ours_are_not():
    labels, answers = ["yes", "no"], ["perhaps", "perhaps"]
    official, ours = OFFICIAL.score(labels, answers), OURS.score(labels, answers)
    assert all(math.isnan(official[figure]) for figure in FIGURES.values())
    assert all(ours[figure] == 0.0 for figure in FIGURES.values())
    assert official["unreadable"] == ours["unreadable"] == 1.0


def test_answers_that_the_script_reads_otherwise_than_we_do_are_counted(tmp_path):
    bench = DashB.load(lists(tmp_path, *GOOD))
    found = bench.score({"plain": ["No", "not sure", "Eyes.", "Yes"]}, seed=0)["dash-b"]["disagreement"]
    assert found == {"scorers": ["official", "regaze"], "answers": {"plain": {"different": 2, "opposite": 0}}}


def lists(tmp_path, negatives, positives):
    (tmp_path / "dash_benchmark_neg.json").write_text(json.dumps(negatives))
    (tmp_path / "dash_benchmark_pos.json").write_text(json.dumps(positives))
    return tmp_path


GOOD = {"coco": {"dog": ["1.png", "2.png"]}}, {"coco": {"dog": ["1.jpg", "2.jpg"]}}


def test_a_limit_takes_pairs(tmp_path):
    bench = DashB.load(lists(tmp_path, *GOOD), limit=1)
    assert [item.key for item in bench.items] == ["dog/1.png/no", "dog/1.jpg/yes"]
    assert bench.items[0].image == tmp_path / "neg/coco/dog/1.png"
    with pytest.raises(InputError, match="limit 0"):
        DashB.load(tmp_path, limit=0)


@pytest.mark.parametrize(
    ("negatives", "message"),
    [
        ([], r"neg\.json: expected an object with names, got list"),
        ({}, r"neg\.json lists no images"),
        ({"coco": ["1.png"]}, r"neg\.json: 'coco': expected an object with names, got list"),
        ({"coco": {"dog": "1.png"}}, r"neg\.json: 'coco': 'dog' must be list or tuple, got '1\.png'"),
        ({"coco": {"dog": [1]}}, r"neg\.json: 'coco': 'dog' must be a list of texts"),
        ({"coco": {"dog": ["../1.png"]}}, r"'dog', '\.\./1\.png' are no plain names"),
        ({"coco": {"..": ["1.png"]}}, r"'\.\.', '1\.png' are no plain names"),
        ({"coco": {"dog": ["1.png", "1.png"]}}, r"neg\.json: a second question 'dog/1\.png/no'"),
    ],
    ids=["list", "empty", "no-objects", "text", "number", "path", "parent", "twice"],
)
def test_malformed_lists_are_named(tmp_path, negatives, message):
    with pytest.raises(InputError, match=message):
        DashB.load(lists(tmp_path, negatives, GOOD[1]))


@pytest.mark.parametrize(("said", "unreadable"), [("There is a cat", 0.25), ("Yes, a cat.", 0.0)])
def test_an_official_answer_file_is_joined_by_object_name_and_truth(tmp_path, said, unreadable):
    """One positive is called like a negative of the same object; `answer` is what the script read."""
    lists(
        tmp_path,
        {"coco": {"dog": ["1.png"], "cat": ["1.png"]}},
        {"coco": {"dog": ["1.png"], "cat": ["9.jpg"]}},
    )
    rows = [
        ("cat", "9.jpg", "yes", "Yes."),
        ("dog", "1.png", "yes", "No"),
        ("dog", "1.png", "no", "no"),
        ("cat", "1.png", "no", said),
    ]
    read = {"yes": "yes", "no": "no", "other": None}
    records = [
        {"img_id": name, "object_name": thing, "gt": truth, "response": text}
        | {"answer": read[read_anywhere(text)]}
        for thing, name, truth, text in rows
    ]
    (tmp_path / "answers.json").write_text(json.dumps(records))
    result = CliRunner().invoke(
        app, ["score", "dash-b", str(tmp_path / "answers.json"), "--data", str(tmp_path), "--json"]
    )
    assert result.exit_code == 0, result.output
    scored = json.loads(result.stdout)
    assert scored["joined_by"] == {"plain": "object_name, img_id, gt"}
    plain = scored["plain"]["figures"]["dash-b"]["official"]["plain"]
    assert [plain[figure]["value"] for figure in ("tnr", "tpr", "unreadable")] == [0.5, 0.5, unreadable]


def test_the_hub_copy_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    row = {
        "object": "dog",
        "img_id": "1.png",
        "answer": "No",
        "question": "Can you see a dog?",
        "question_id": 4,
    }
    rows = [{"image": Image.new("RGB", (4, 4)), **row}]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *a, **k: rows))
    (item,) = DashB.from_hub().items
    assert (item.key, item.label, item.question) == ("dog/1.png/no", "no", "Can you see a dog?")
    assert item.image.is_file()
    rows[0] |= {"image": Image.new("RGB", (4, 4)), "answer": "maybe"}
    with pytest.raises(InputError, match=r"test\[0\]: the answer must be yes or no, got 'maybe'"):
        DashB.from_hub()


def test_the_demo_is_balanced_true_and_misleading():
    bench = DashB.of_demo()
    things = {scene.name: {thing.category for thing in scene.objects} for scene in scenes()}
    per_object = Counter()
    for item in bench.items:
        thing, name, truth = item.key.split("/")
        assert (thing in things[name]) == (truth == "yes") == (item.label == "yes")
        per_object[thing, truth] += 1
    assert all(per_object[thing, "no"] == per_object[thing, "yes"] >= 3 for thing, _ in per_object)
    assert len(bench.items) == 396
