"""POPE: the scorers of harnesses and method repositories, the published versions, the question builder."""

from __future__ import annotations

import gzip
import json
import math
import random

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.common.scoring import compare
from regaze.eval.benchmarks.common.yes_no import OFFICIAL, OPERA, REGAZE, SCORERS, VCD, VLMEVALKIT
from regaze.eval.benchmarks.pope.benchmark import Pope, PopeV2
from regaze.eval.benchmarks.pope.builder import ObjectList, PopeBuilder, enough_objects
from regaze.eval.benchmarks.pope.published import FILES, SPLITS

CASES = ["coco_random_first200", "coco_popular_first200", "all_yes_50", "all_no_50", "all_empty_50"]
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


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "goldens/benchmarks/pope"


@pytest.fixture(scope="module")
def data(shared):
    return shared / "benchmarks/data/pope"


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scorer", [OPERA, VCD, VLMEVALKIT], ids=lambda scorer: scorer.name)
def test_scorers_give_the_golden_figures(golden, case, scorer):
    labels = [row["label"] for row in rows(golden / f"{case}.questions.jsonl")]
    answers = [row["answer"] for row in rows(golden / f"{case}.answers.jsonl")]
    key, names = KEYS[scorer.name]
    expected = json.loads((golden / "expected.json").read_text())[case][key]
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


def test_every_golden_answer_is_read_as_the_scorers_read_it(golden):
    parsed = json.loads((golden / "answer_parsing.json").read_text())["rows"]
    assert len(parsed) == 121
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


def test_our_reading_never_guesses(golden):
    parsed = json.loads((golden / "answer_parsing.json").read_text())["rows"]
    readings = {row["answer"]: REGAZE.read(row["answer"]) for row in parsed}
    assert {
        readings[text] for text in ("Yes", "YES", "Yes.", "**Yes**", "\nYes", "Yes, there is nothing else.")
    } == {"yes"}
    assert {readings[text] for text in ("No!", "(No)", "No\nThere is a dog.", "no;", "'no'")} == {"no"}
    for text in (
        "",
        "Yes and no",
        "No. Yes.",
        "Maybe",
        "There is no dog",
        "Not",
        "N",
        "I cannot see a dog in the image.",
    ):
        assert readings.get(text, "other") == "other", text


def test_unreadable_answers_are_wrong_and_counted():
    scores = REGAZE.score(["yes", "yes", "no", "no"], ["Yes", "perhaps", "perhaps", "No"])
    assert scores == pytest.approx(
        {"accuracy": 0.5, "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "yes_ratio": 0.25, "unreadable": 0.5}
    )


def test_fewer_answers_than_labels_pair_up_like_the_official_script_only_when_asked(golden):
    labels = [row["label"] for row in rows(golden / "coco_random_first200.questions.jsonl")][:120]
    answers = [row["answer"] for row in rows(golden / "coco_random_first200.answers.jsonl")][:80]
    with pytest.raises(InputError, match="80 answers for 120 references; expected one each"):
        OFFICIAL.score(labels, answers)
    assert OFFICIAL.score(labels, answers, strict=False) == OFFICIAL.score(labels[:80], answers)


def test_every_scorer_has_a_name_of_its_own_and_says_what_it_reproduces():
    assert len({scorer.name for scorer in SCORERS}) == len(SCORERS) == 6
    assert all(scorer.version for scorer in SCORERS)


def lay_out(data, folder):
    """The shared files as they lie after a download."""
    images = folder / "images"
    images.mkdir()
    for version in ("head", "e3e3926", "7ef3026"):
        for path in (data / version).glob("*.json.gz"):
            target = (
                folder / (version if path.name.startswith("coco") else "") / path.name.removesuffix(".gz")
            )
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(gzip.decompress(path.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def downloaded(data, tmp_path_factory):
    return lay_out(data, tmp_path_factory.mktemp("pope"))


@pytest.mark.parametrize(
    ("version", "counts", "imange"),
    [
        ("head", [3000, 3000, 3000], [0, 0, 0]),
        ("e3e3926", [2910, 3000, 3000], [144, 44, 58]),
        ("7ef3026", [3000, 3000, 3000], [0, 0, 0]),
    ],
)
def test_published_coco_versions(downloaded, version, counts, imange):
    pope = Pope.load(downloaded, version=version)
    assert [sum(item.split == split for item in pope.items) for split in SPLITS] == counts
    typos = [sum("imange" in item.question for item in pope.items if item.split == split) for split in SPLITS]
    assert typos == imange
    assert {file["version"] for file in pope.describe()["files"].values()} == {version}


@pytest.mark.parametrize("dataset", ["aokvqa", "gqa"])
def test_seem_versions(downloaded, dataset):
    pope = Pope.load(downloaded, dataset=dataset, limit=7)
    assert len(pope.items) == 21
    assert FILES[dataset].format(split="random") == pope.describe()["files"]["random"]["file"]


def test_what_is_not_published_is_refused(downloaded):
    for wrong in ({"dataset": "flickr"}, {"version": "1"}, {"splits": ["hard"]}):
        with pytest.raises(InputError, match="POPE has the data sets coco, aokvqa, gqa, versions head"):
            Pope.load(downloaded, **wrong)
    with pytest.raises(InputError, match=r"has no coco_pope_random\.json"):
        Pope.load(downloaded / "images", downloaded / "images")


def test_popev2_pairs_an_image_with_its_edited_copy(data, tmp_path):
    (tmp_path / "annotations.json").write_bytes(
        gzip.decompress((data / "head/popev2_annotations.json.gz").read_bytes())
    )
    bench = PopeV2.load(tmp_path)
    assert len(bench.items) == 1000
    edited, original = bench.items[:2]
    assert (edited.label, original.label) == ("no", "yes")
    assert edited.image != original.image
    assert bench.cluster(edited) == bench.cluster(original)
    assert original.image == tmp_path / "coco/train2017/000000046207.jpg"
    assert len(PopeV2.load(tmp_path, limit=3).items) == 4
    scores = bench.score({"plain": ["yes"] * 1000}, seed=0)["popev2"]
    assert scores["official"]["plain"]["recall"]["value"] == 1.0


def test_intervals_are_over_images_and_the_shipped_scenes_are_loaded():
    pope = Pope.of_demo(limit=6)
    assert {item.split for item in pope.items} == set(SPLITS)
    labels = {"plain": [item.label for item in pope.items]}
    scores = pope.score(labels, seed=0)
    assert list(scores) == [*SPLITS, "all"]
    assert scores["all"]["regaze"]["plain"]["accuracy"]["value"] == 1.0
    references, images = [item.label for item in pope.items], [str(item.image) for item in pope.items]
    expected = compare(OFFICIAL, references, labels, clusters=images, seed=0)
    assert scores["all"]["official"] == expected


# The builder -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def synthetic(golden):
    return enough_objects(
        ObjectList(row["image"], tuple(dict.fromkeys(row["objects"])))
        for row in rows(golden / "build.segmentation.jsonl")
    )


@pytest.mark.parametrize("split", SPLITS)
def test_the_builder_asks_what_the_official_one_asks(golden, synthetic, split):
    builder = PopeBuilder(synthetic, imange=True)
    assert builder.questions(split, random.Random(20240501)) == rows(golden / f"build.{split}.jsonl")


def test_frequencies_are_the_golden_ones(golden, synthetic):
    expected = json.loads((golden / "build.expected.json").read_text())
    assert dict(PopeBuilder(synthetic).frequency) == expected["object_frequency"]


def test_questions_are_spelt_right_unless_asked_otherwise(synthetic):
    texts = [entry["text"] for entry in PopeBuilder(synthetic).questions("popular", random.Random(0))]
    assert "Is there an airplane in the image?" in texts
    assert not any("imange" in text for text in texts)


def test_published_popular_negatives_follow_from_the_objects_of_coco(shared, downloaded):
    """POPE rebuilt for its own images from CHAIR's ground truth, the objects it asked about first."""
    truth = json.loads(
        gzip.decompress((shared / "benchmarks/data/chair/coco2014_trainval_objects.json.gz").read_bytes())
    )
    asked: dict[str, list] = {}
    for line in rows(downloaded / "head/coco_pope_popular.json"):
        asked.setdefault(line["image"], []).append(line)
    lists = []
    for image, lines in asked.items():
        named = [
            line["text"].split(" ", 3)[3].removesuffix(" in the image?")
            for line in lines
            if line["label"] == "yes"
        ]
        there = [truth["names"][i] for i in truth["images"][str(int(image[-16:-4]))]]
        assert set(named) <= set(there)
        lists.append(ObjectList(image, (*named, *(name for name in there if name not in named))))
    built = PopeBuilder(lists).questions("popular", random.Random(0))
    published = [line for lines in asked.values() for line in lines]
    assert [entry["text"] for entry in built] == [line["text"] for line in published]


def test_what_cannot_be_built_is_refused(synthetic):
    with pytest.raises(InputError, match=r"x\.jpg: 2 objects, expected at least 3"):
        PopeBuilder([ObjectList("x.jpg", ("a", "b"))])
    with pytest.raises(InputError, match=r"x\.jpg: no object of the set is absent"):
        PopeBuilder([ObjectList("x.jpg", ("a", "b", "c"))]).questions("random", random.Random(0))
    with pytest.raises(InputError, match="POPE has the splits random, popular, adversarial, not 'hard'"):
        PopeBuilder(synthetic).questions("hard", random.Random(0))


def test_built_questions_are_read_back(synthetic, tmp_path):
    entries = PopeBuilder(synthetic).questions("adversarial", random.Random(0))
    (tmp_path / "q.json").write_text("\n".join(map(json.dumps, entries)))
    pope = Pope.from_files({"adversarial": tmp_path / "q.json"}, tmp_path)
    assert [item.question for item in pope.items] == [entry["text"] for entry in entries]
