"""PhD: the index under three readings against the goldens, contexts, where images are, malformed files."""

from __future__ import annotations

import gzip
import json
import math

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.phd.benchmark import INSTRUCTION, Phd
from regaze.eval.benchmarks.phd.scorers import MODES, SCORERS, TASKS, PhdReference

EXACT = {"rel": 1e-12, "abs": 1e-12}
READINGS = {"first-word": "first_word", "word": "yes_no_word", "substring": "substring"}
BY_NAME = {scorer.name: scorer for scorer in SCORERS}


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "goldens/benchmarks/phd"


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


@pytest.fixture(scope="module", params=["clean", "odd_strings"])
def case(request, golden, tmp_path_factory):
    """(name, benchmark, answer of each item)."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "data.json.gz").write_bytes((golden / f"{request.param}.data.json.gz").read_bytes())
    bench = Phd.load(folder)
    with gzip.open(golden / f"{request.param}.answers.json.gz") as file:
        by_mode = json.load(file)
    # In the order of items: per mode its entries, of each the question with yes, then the one with no.
    return request.param, bench, [text for mode in MODES for pair in by_mode[mode] for text in pair]


@pytest.mark.parametrize("name", READINGS)
def test_figures_are_the_golden_ones(case, expected, name):
    which, bench, answers = case
    scorer = BY_NAME[name]
    counts = scorer.count([item.reference for item in bench.items], answers)
    target = expected[which][READINGS[name]]
    assert list(target) == list(MODES)
    details = scorer.details(counts.sum(0))
    for mode, tasks in target.items():
        for task, figures in tasks.items():
            assert details[mode][task] == pytest.approx(figures, **EXACT)
        rows = [i for i, item in enumerate(bench.items) if item.split == mode]
        pooled = scorer.compute(counts[rows].sum(0))
        for figure, value in tasks["all"].items():
            assert pooled[figure] == pytest.approx(value, **EXACT)
        of_tasks = [figures["index"] for task, figures in tasks.items() if task != "all"]
        assert pooled["mean_index"] == pytest.approx(sum(of_tasks) / len(of_tasks), **EXACT)


def test_splits_are_the_modes_and_all(case):
    _, bench, answers = case
    results = bench.score({"plain": answers}, seed=0)
    assert list(results) == [*MODES, "all"]
    means = [results[mode]["regaze"]["plain"]["mean_index"]["value"] for mode in MODES]
    everything = results["all"]["regaze"]["plain"]
    assert everything["mean_index"]["value"] == pytest.approx(sum(means) / 4, **EXACT)
    assert everything["counts"].keys() == set(MODES)


@pytest.mark.parametrize("answer", ["yes", "no", "who knows"])
def test_the_same_answer_to_everything_has_index_0(answer):
    references = [PhdReference("base", "object", label) for label in ("yes", "no")]
    for scorer in SCORERS:
        figures = scorer.score(references, [answer] * 2)
        assert figures["index"] == figures["mean_index"] == 0
        assert figures["unreadable"] == (answer == "who knows" and scorer.name != "substring")


def test_half_a_pair_has_no_index():
    figures = SCORERS[0].score([PhdReference("ccs", "object", "yes")], ["yes"])
    assert math.isnan(figures["index"])
    assert figures["yes_recall"] == figures["accuracy"] == 1


COCO = {
    "image_id": "9",
    "task": "object",
    "yes_question": "Is there a dog?",
    "no_question": "Is there a cat?",
    "context": {"iac": "It rains.", "icc": "A cat sits here."},
}
MADE = {
    "image_id": "3",
    "task": "counting",
    "yes_question": "One?",
    "no_question": "Two?",
    "ccs_description": "odd",
}


def write(folder, *records, name="data.json"):
    (folder / name).write_text("[" + ",\n".join(map(json.dumps, records)) + "]")


def test_contexts_stand_before_the_question(tmp_path):
    write(tmp_path, COCO, MADE)
    bench = Phd.load(tmp_path)
    prompts = {item.key: bench.prompt(item) for item in bench.items}
    assert prompts["base/0/yes"] == "Is there a dog?"
    assert prompts["iac/0/no"] == f"It rains.{INSTRUCTION}Is there a cat?"
    assert prompts["icc/0/yes"].startswith("A cat sits here. In case there is an inconsistency")
    assert prompts["icc/0/yes"].endswith("you should follow the image. Is there a dog?")
    assert prompts["ccs/1/no"] == "Two?"
    assert [item.label for item in bench.items] == ["yes", "no"] * 4


def test_sec_is_another_name_of_iac(tmp_path):
    write(tmp_path, {**COCO, "context": {"sec": "It rains.", "icc": "No."}, "task": "position"})
    (yes, no) = Phd.load(tmp_path, modes=["sec"]).items
    assert yes.split == no.split == "iac"
    assert yes.question.startswith("It rains. In case")
    assert yes.reference == PhdReference("iac", "positional", "yes")


def test_images_are_looked_for_in_train2014_first(tmp_path):
    write(tmp_path, COCO, {**COCO, "image_id": 10}, {**COCO, "image_id": "000000000011"}, MADE)
    for half, number in (("train2014", 9), ("val2014", 9), ("val2014", 10)):
        path = tmp_path / f"images/{half}/COCO_{half}_{number:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    items = Phd.load(tmp_path, modes=["base", "ccs"]).items
    names = [item.image.relative_to(tmp_path / "images").as_posix() for item in items[::2]]
    assert names == [
        "train2014/COCO_train2014_000000000009.jpg",
        "val2014/COCO_val2014_000000000010.jpg",
        "val2014/COCO_val2014_000000000011.jpg",
        "CCS_images/3.png",
    ]


def test_the_older_file_of_made_images_has_no_tasks(shared):
    bench = Phd.load(shared / "benchmarks/data/phd", modes=["ccs"])
    assert len(bench.items) == 2 * 753
    assert len({item.image for item in bench.items}) == 750
    assert {item.reference.task for item in bench.items} == {TASKS[-1]}
    assert bench.items[0].image.parts[-2:] == ("CCS_images", "0.png")
    with pytest.raises(InputError, match="has no questions of base"):
        Phd.load(shared / "benchmarks/data/phd", modes=["base"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "smell"}, "data.json:1: unknown task 'smell'"),
        ({"image_id": "../9"}, "data.json:1: 'image_id' must be the number"),
        ({"context": {"icc": "x"}}, "data.json:1: context: 'iac' must be a non-empty string"),
        ({"context": "It rains."}, "data.json:1: 'context' must be dict"),
        ({"no_question": ""}, "data.json:1: 'no_question' must be a non-empty string"),
        ({"yes_question": "<image> dog?"}, "data.json:1: <image> cannot be part"),
    ],
)
def test_malformed_entries_are_named_by_line(tmp_path, change, message):
    write(tmp_path, {**COCO, **change})
    with pytest.raises(InputError, match=message):
        Phd.load(tmp_path)


def test_unknown_modes_are_refused(tmp_path):
    with pytest.raises(InputError, match="PhD has the modes base, iac, icc, ccs, got ics"):
        Phd.load(tmp_path, modes=["ics"])
