"""R-Bench: the released rule against the goldens, marks on pictures and in questions, malformed files."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from regaze.errors import InputError
from regaze.eval.benchmarks.r_bench.benchmark import RBench
from regaze.eval.benchmarks.r_bench.drawing import mark_text
from regaze.eval.benchmarks.r_bench.scorers import OFFICIAL, REGAZE, RBenchReference

EXACT = {"rel": 1e-12}


def golden_references(case):
    """References and answers of a golden case: the script leaves out questions without an answer."""
    answered = [q for q in case["questions"] if str(q["question_id"]) in case["answers"]]
    references = [
        RBenchReference(q["label"], tuple(subset.count(q["question_id"]) for subset in case["subsets"]))
        for q in answered
    ]
    return references, [case["answers"][str(q["question_id"])] for q in answered]


@pytest.mark.parametrize("name", ["odd_strings"])
def test_figures_are_the_golden_ones(name, shared):
    folder = shared / "goldens/benchmarks/r_bench"
    expected = json.loads((folder / "expected.json").read_text())[name]
    with gzip.open(folder / f"{name}.json.gz") as file:
        references, answers = golden_references(json.load(file))
    assert OFFICIAL.score(references, answers) == pytest.approx(
        expected["official_eval_pope_mean_of_five"], **EXACT
    )
    details = OFFICIAL.details(OFFICIAL.count(references, answers).sum(0))
    assert len(details) == 5
    for of_subset, target in zip(details.values(), expected["each"], strict=True):
        assert of_subset == pytest.approx(target, **EXACT)


def test_perfect_answers_are_just_below_1():
    references = [RBenchReference(label, (1, 0, 0, 0, 2)) for label in ("yes", "no")]
    figures = OFFICIAL.score(references, ["yes", "no"])
    assert figures["accuracy"] == 1
    # Two subsets have questions: one yes in the first, two in the last.
    assert figures["recall"] == pytest.approx((1 / 1.00001 + 2 / 2.00001) / 2, **EXACT)
    assert REGAZE.score(references, ["yes", "Who knows"])["unreadable"] == 0.5


def test_without_subsets_all_questions_are_one():
    figures = OFFICIAL.score([RBenchReference("yes"), RBenchReference("no")], ["yes", "yes"])
    assert figures["accuracy"] == 0.5
    assert figures["yes_ratio"] == 1


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("box", "Is the man in red bounding box riding the horse in green bounding box?"),
        ("mask", "Is the man in red mask riding the horse in green mask?"),
    ],
)
def test_marks_are_named(how, text):
    assert mark_text("Is the man riding the horse?", "Man", "horse", how) == text


def test_every_occurrence_is_named_as_in_the_released_code():
    assert mark_text("Is the man with the woman?", "man", "woman", "box") == (
        "Is the man in red bounding box with the woman in green bounding box in red bounding box?"
    )


IMAGE_LEVEL = {"question_id": 4, "image": "a.jpg", "text": "Is the man on the horse?", "label": "yes"}
INSTANCE = {
    **IMAGE_LEVEL,
    "label": "no",
    "subject": "Man",
    "object": "Horse",
    "sub_box": [0.1, 0.2, 0.4, 0.8],
    "obj_box": [0.5, 0.25, 0.9, 0.75],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "image-level_filterd.json").write_text(json.dumps([IMAGE_LEVEL]))
    (tmp_path / "instance-level_filterd.json").write_text(json.dumps([INSTANCE]))
    for number in range(1, 6):
        ids = [4] * (number == 2) or [5]
        (tmp_path / f"image-level_ids_{number}.json").write_text(json.dumps(ids))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (200, 100), "white").save(tmp_path / "images/a.jpg")
    (tmp_path / "instance_mask").mkdir()
    mask = np.zeros((50, 100), np.uint8)  # half as large as the picture
    mask[10:40, 10:40], mask[20:40, 60:90] = 1, 2
    Image.fromarray(mask).save(tmp_path / "instance_mask/4.png")
    return tmp_path


def test_boxes_are_drawn_on_a_copy(folder):
    whole, boxes = RBench.load(folder).items
    assert (whole.key, whole.image) == ("image/4", folder / "images/a.jpg")
    assert whole.reference.subsets == (0, 1, 0, 0, 0)
    assert boxes.reference.subsets == ()
    bench = RBench.load(folder)
    assert bench.prompt(boxes) == "Is the man in red bounding box on the horse in green bounding box?"
    assert bench.cluster(whole) == bench.cluster(boxes) == "a.jpg"
    with Image.open(boxes.image) as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    assert tuple(pixels[20, 50]) == tuple(pixels[50, 21]) == (255, 0, 0)
    assert tuple(pixels[25, 150]) == tuple(pixels[75, 120]) == (0, 128, 0)
    assert pixels[50, 50].min() > 250  # inside, and the original is as it was
    with Image.open(folder / "images/a.jpg") as original:
        assert np.asarray(original).min() > 250
    assert RBench.load(folder).items[1].image == boxes.image


def test_masks_are_laid_over_a_copy(folder):
    (item,) = RBench.load(folder, splits=["mask"]).items
    with Image.open(item.image) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    for place, colour in (((50, 50), (250, 0, 45)), ((60, 150), (100, 250, 0))):
        share = 120 / 255
        assert pixels[place] == pytest.approx([share * c + (1 - share) * 255 for c in colour], abs=2)
    assert pixels[5, 5].min() > 250


def test_a_picture_that_cannot_be_read_is_left_to_the_run(folder):
    (folder / "images/a.jpg").write_bytes(b"no picture")
    assert RBench.load(folder).items[1].image == folder / "images/a.jpg"
    (folder / "images/a.jpg").unlink()
    assert RBench.load(folder).items[1].image == folder / "images/a.jpg"


def test_a_mask_that_cannot_be_read_is_named(folder):
    (folder / "instance_mask/4.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"mask .*4\.png cannot be read"):
        RBench.load(folder, splits=["mask"])
    (folder / "instance_mask/4.png").unlink()
    with pytest.raises(InputError, match=r"4\.png cannot be read: No such file"):
        RBench.load(folder, splits=["mask"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sub_box": [0.1, 0.2, 0.4]}, "'sub_box' must be left, upper, right and lower edge as fractions"),
        ({"obj_box": [10, 20, 40, 80]}, "'obj_box' must be left, upper"),
        ({"sub_box": [0.4, 0.2, 0.1, 0.8]}, "'sub_box' must be left, upper"),
        ({"subject": ""}, "'subject' must be a non-empty string"),
        ({"text": "<image>?"}, "<image> cannot be part"),
        ({"question_id": None}, "'question_id' must be int or a non-empty string"),
    ],
)
def test_malformed_questions_are_named_by_line(folder, change, message):
    (folder / "instance-level_filterd.json").write_text(json.dumps([{**INSTANCE, **change}]))
    with pytest.raises(InputError, match=rf"instance-level_filterd.json:1: {message}"):
        RBench.load(folder)


def test_subsets_are_five_lists(folder):
    (folder / "image-level_ids_3.json").write_text('{"4": 1}')
    with pytest.raises(InputError, match=r"image-level_ids_3.json: expected a list of question ids"):
        RBench.load(folder)
    (folder / "image-level_ids_3.json").unlink()
    with pytest.raises(InputError, match=r"has no image-level_ids_3.json"):
        RBench.load(folder)
    with pytest.raises(InputError, match="R-Bench has the splits image, box, mask, got boxes"):
        RBench.load(folder, splits=["boxes"])
