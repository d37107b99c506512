"""Which questions are tuned on and which are tested: never two about one image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from regaze import demo
from regaze.errors import InputError
from regaze.eval import Item, Pope
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.benchmarks.common.base import BaseBenchmark
from regaze.eval.run.requests import ImageHashes
from regaze.eval.tuning.division import Division, divide


@dataclass(frozen=True)
class Questions(BaseBenchmark):
    """Items whose clusters are given by hand."""

    items: tuple[Item, ...]
    name: str = "questions"
    clusters: dict[str, str] = field(default_factory=dict)

    def cluster(self, item):
        return self.clusters.get(item.key, item.key)


def content(path: Path) -> str:
    """In place of a hash: two names of one image end in the same letter."""
    return path.name[-1]


def contents(benchmark) -> set:
    """What the questions show, and their clusters."""
    shown = {content(image) for item in benchmark.items for image in item.images}
    texts = {item.question for item in benchmark.items if not item.images}
    return shown | texts | {(benchmark.name, benchmark.cluster(item)) for item in benchmark.items}


def made(rows, name="questions") -> Questions:
    """Of rows (split, images, cluster): a question each; without an image, one about its cluster."""
    items, clusters = [], {}
    for number, (split, images, cluster) in enumerate(rows):
        first, *more = [Path(image) for image in images] or [None]
        question = f"{number}?" if images else f"{cluster}?"
        items.append(Item(f"{name}/{number}", split, first, question, "yes", more_images=tuple(more)))
        clusters[items[-1].key] = cluster
    return Questions(tuple(items), name, clusters)


def test_other_benchmarks_change_no_part_of_the_first():
    """Copies of its images tie no two of them together; their names are less than these."""
    first = made([("s", [letter], letter) for letter in "klmnopqrstuv"])
    copies = made([("s", [image], "klmnopqrstuv"[n // 2]) for n, image in enumerate("abcdefghij")], "copies")
    ties = Questions((*copies.items, *first.items), "copies", {**copies.clusters, **first.clusters})
    alone = divide([first], identify=content)
    beside = divide([first, ties], identify=content)
    assert [item.key for item in beside.tuning.items] == [item.key for item in alone.tuning.items]


rows = st.lists(
    st.tuples(
        st.sampled_from(["s", "t", "u"]),
        st.lists(st.sampled_from(["a", "b", "c", "d", "e", "x/a", "x/b", "f", "g"]), max_size=2, unique=True),
        st.sampled_from("klmnopqrstuv"),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(rows, rows, st.sampled_from(["half", "s"]), st.integers(0, 5))
def test_the_two_parts_share_nothing_and_lose_nothing(first, second, split, seed):
    benchmarks = [made(first), made(second, "others")]
    try:
        division = divide(benchmarks, split=split, seed=seed, identify=content)
    except InputError:
        reject()
    tuned, (tested, others) = division.tuning, division.tested
    assert contents(tuned).isdisjoint(contents(tested) | contents(others))
    assert tuned.items
    assert tested.items
    assert others.items
    left = len(first) + len(second) - len(tuned.items) - len(tested.items) - len(others.items)
    assert division.left_out == left
    for part, whole in [(tuned, benchmarks[0]), (tested, benchmarks[0]), (others, benchmarks[1])]:
        assert [item for item in whole.items if item in part.items] == list(part.items)  # in their order
    if split == "s":
        assert {item.split for item in tuned.items} == {"s"}
        assert "s" not in {item.split for item in tested.items}
    else:  # what is not tuned on is tested, if the two share no image
        lost = set(benchmarks[0].items) - set(tuned.items) - set(tested.items)
        assert not lost


def images(benchmark) -> set[str]:
    return {item.image.name for item in benchmark.items}


def halves(split: str, seed: int = 0, *more) -> Division:
    return divide([Pope.of_demo(), *more], split=split, seed=seed, identify=ImageHashes().digest)


@pytest.mark.skipif(not demo.IMAGE_DIR.is_dir(), reason="the demo's scenes are not in this checkout")
def test_a_split_that_shares_its_images_is_tuned_on_half_of_them():
    division = halves("popular")
    [tested] = division.tested
    assert {item.split for item in division.tuning.items} == {"popular"}
    assert {item.split for item in tested.items} == {"random", "adversarial"}
    assert len(images(division.tuning)) == len(images(tested)) == 60
    assert division.left_out == 3 * 634 - len(division.tuning.items) - len(tested.items) > 0
    assert division.note == (
        "Split popular shares 120 images with other splits. Images that are tuned on may not be tested on: "
        "60 of them were drawn to tune on, with the questions of popular; the other splits are tested on the "
        "rest."
    )
    assert tested.describe()["questions"] == len(tested.items)


@pytest.mark.skipif(not demo.IMAGE_DIR.is_dir(), reason="the demo's scenes are not in this checkout")
def test_half_of_the_images_is_the_same_half_in_every_benchmark():
    division = halves("half", 3, Chair.of_demo())
    pope, captions = division.tested
    assert images(pope) == images(captions)
    assert images(pope).isdisjoint(images(division.tuning))
    assert division.left_out == 60  # captions of the images that are tuned on
    alone = divide([Chair.of_demo()], seed=3, identify=ImageHashes().digest)
    assert images(alone.tested[0]) == images(captions)
    assert images(halves("half", 4).tuning) != images(halves("half", 3).tuning)


def test_halves_are_stratified_by_split():
    rows = [("s" if letter < "g" else "t", [letter], letter) for letter in "abcdefghi"]
    for seed in range(5):
        division = divide([made(rows)], seed=seed, identify=content)
        drawn = Counter(item.split for item in division.tuning.items)
        assert drawn["s"] == 3
        assert drawn["t"] in (1, 2)
        assert len(division.tuning.items) == 4


def test_a_split_with_images_of_its_own_is_tuned_on_as_a_whole():
    division = divide(
        [made([("s", ["a"], "k"), ("s", ["b"], "l"), ("t", ["c"], "m")])], split="s", identify=content
    )
    assert [len(division.tuning.items), len(division.tested[0].items), division.left_out] == [2, 1, 0]
    assert division.note == "Split s has 2 images of its own: they are tuned on, and the other splits tested."


def test_an_image_that_cannot_be_read_is_known_by_its_path(tmp_path):
    items = [Item(str(n), "s", tmp_path / f"{n % 2}.png", f"{n}?", "yes") for n in range(4)]
    division = divide([Questions(tuple(items))], identify=ImageHashes().digest)
    assert [len(division.tuning.items), len(division.tested[0].items)] == [2, 2]


@pytest.mark.parametrize(
    ("rows", "split", "message"),
    [
        ([("s", ["a"], "k"), ("t", ["b"], "l")], "v", "has no split 'v' to tune on; it has s, t, or 'half'"),
        ([("s", ["a"], "k"), ("s", ["b"], "l")], "s", "has no questions but those of split 's'"),
        ([("s", ["a"], "k"), ("s", ["a"], "l")], "half", "^questions: its questions are about one image"),
        ([("s", ["a"], "k"), ("s", ["b"], "k")], "half", "are scored together, so they cannot be divided"),
        (
            [("s", ["a"], "k"), ("t", ["x/a"], "l")],
            "s",
            "^split 's' of questions: its questions are about one",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(rows, split, message):
    with pytest.raises(InputError, match=message):
        divide([made(rows)], split=split, identify=content)


def test_a_benchmark_about_the_tuned_images_alone_is_refused():
    first = made([("s", ["a"], "k"), ("s", ["b"], "l")])
    [tuned] = divide([first], identify=content).tuning.items
    other = made([("s", [tuned.image.name], "k")], "others")
    with pytest.raises(
        InputError, match="others: no question is left to test, because all of its images are tuned"
    ):
        divide([first, other], identify=content)
