"""POPE for any images: the builder against the official builder and the published questions."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.pope.benchmark import Pope
from regaze.eval.benchmarks.pope.builder import ObjectList, PopeBuilder, enough_objects
from regaze.eval.benchmarks.pope.published import SPLITS


@pytest.fixture(scope="module")
def golden(goldens):
    return goldens / "benchmarks/pope"


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def synthetic(golden):
    return enough_objects(
        ObjectList(row["image"], tuple(dict.fromkeys(row["objects"])))
        for row in rows(golden / "build.segmentation.jsonl")
    )


@pytest.mark.parametrize("split", SPLITS)
def test_the_questions_are_those_of_the_official_builder(golden, synthetic, split):
    builder = PopeBuilder(synthetic, imange=True)
    assert builder.questions(split, random.Random(20240501)) == rows(golden / f"build.{split}.jsonl")


def test_frequencies_are_the_golden_ones(golden, synthetic):
    expected = json.loads((golden / "build.expected.json").read_text())
    assert dict(PopeBuilder(synthetic).frequency) == expected["object_frequency"]


def test_questions_are_spelt_right_by_default(synthetic):
    texts = [entry["text"] for entry in PopeBuilder(synthetic).questions("popular", random.Random(0))]
    assert any(text.startswith("Is there an ") and text.endswith(" in the image?") for text in texts)
    assert not any("imange" in text for text in texts)


def test_published_popular_negatives_follow_from_the_objects_of_coco(shared):
    """POPE rebuilt for its own images from CHAIR's ground truth, with the objects of its questions first."""
    truth = json.loads(
        gzip.decompress((shared / "benchmarks/data/chair/coco2014_trainval_objects.json.gz").read_bytes())
    )
    packed = shared / "benchmarks/data/pope/head/coco_pope_popular.json.gz"
    by_image: dict[str, list] = {}
    for line in map(json.loads, gzip.decompress(packed.read_bytes()).splitlines()):
        by_image.setdefault(line["image"], []).append(line)
    lists = []
    for image, lines in by_image.items():
        named = [
            line["text"].split(" ", 3)[3].removesuffix(" in the image?")
            for line in lines
            if line["label"] == "yes"
        ]
        there = [truth["names"][i] for i in truth["images"][str(int(image[-16:-4]))]]
        assert set(named) <= set(there)
        lists.append(ObjectList(image, (*named, *(name for name in there if name not in named))))
    built = PopeBuilder(lists).questions("popular", random.Random(0))
    published = [line for lines in by_image.values() for line in lines]
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
