"""Divide questions into those that parameters are chosen on, and those that figures are reported of.

The two parts share no image, not even under another name or in another benchmark, no text that is asked
without an image, and no cluster of a benchmark. What hangs together by any of these is a *unit*, which goes
into one part as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark, Item, cluster_of, with_items

#: The name of the division that takes half of the images, whatever split their questions are of.
HALF = "half"
#: From the path of an image to a hash of it.
Identify = Callable[[Path], str]


@dataclass(frozen=True)
class Division:
    """The two parts.

    Attributes:
        tuning: the benchmark that is tuned on, with its questions for that.
        tested: every benchmark with the questions that are left to be tested, in the order given.
        left_out: number of questions that are in neither part. note: what was done, in words.
    """

    tuning: Benchmark
    tested: tuple[Benchmark, ...]
    left_out: int
    note: str


def divide(
    benchmarks: Sequence[Benchmark], *, split: str = HALF, seed: int = 0, identify: Identify
) -> Division:
    """Divide the questions of benchmarks; parameters are tuned on the first.

    With `split` "half", every second unit of a random order is tuned on, stratified by the splits that its
    questions are of. With the name of a split, questions of that split are tuned on and those of the others
    tested: on all of its images where no other split has questions about them, else on a random half of these
    images, and the other splits on the other half. Other benchmarks are tested on the images that are left.

    Args:
        identify: hash of an image's bytes; for an image where it raises InputError, the path counts.

    Raises:
        InputError: no such split, or nothing to tune on or to test.
    """
    first, parts = benchmarks[0], _units(benchmarks, identify)
    splits_of: dict[str, set[str]] = {}
    for item, unit in zip(first.items, parts[0], strict=True):
        splits_of.setdefault(unit, set()).add(item.split)
    named = _check_split(first, split)
    own = {unit for unit, splits in splits_of.items() if splits == {named}}
    shared = {unit for unit, splits in splits_of.items() if named is None or named in splits} - own
    # By the images of the first benchmark: which others there are, and so what else a unit holds, changes no
    # place, so that an audit or a comparison of fewer benchmarks is divided in the same way.
    called = _first_names(first, parts[0], identify)
    halved = sorted(shared, key=lambda unit: (sorted(splits_of[unit]), _place(seed, called[unit])))
    tuned = own | set(halved[1::2])

    def rest(benchmark: Benchmark, units: Sequence[str]) -> list[Item]:
        return [
            item
            for item, unit in zip(benchmark.items, units, strict=True)
            if unit not in tuned and (named is None or benchmark is not first or item.split != named)
        ]

    pairs = zip(first.items, parts[0], strict=True)
    chosen = [item for item, unit in pairs if unit in tuned and named in (None, item.split)]
    left = [rest(benchmark, units) for benchmark, units in zip(benchmarks, parts, strict=True)]
    _check_parts(benchmarks, chosen, left, named)
    tested = tuple(with_items(benchmark, items) for benchmark, items in zip(benchmarks, left, strict=True))
    division = Division(
        with_items(first, chosen),
        tested,
        sum(len(each.items) for each in benchmarks) - len(chosen) - sum(map(len, left)),
        _note(named, len(own), len(halved), len(tuned)),
    )
    _require_apart(division, identify)
    return division


def _check_split(benchmark: Benchmark, split: str) -> str | None:
    """The split to tune on; None for half of the images."""
    splits = list(dict.fromkeys(item.split for item in benchmark.items))
    if split in splits and len(splits) > 1:
        return split
    if split == HALF:
        return None
    if split in splits:
        raise InputError(
            f"{benchmark.name} has no questions but those of split {split!r}, so nothing is left to test; "
            f"tune on half of the images: {HALF!r}"
        )
    raise InputError(
        f"{benchmark.name} has no split {split!r} to tune on; it has {', '.join(splits)}, or {HALF!r} for "
        "half of the images"
    )


def _check_parts(
    benchmarks: Sequence[Benchmark], chosen: Sequence[Item], left: Sequence[Sequence[Item]], named: str | None
) -> None:
    where = f"split {named!r} of " if named else ""
    if not chosen:
        raise InputError(
            f"{where}{benchmarks[0].name}: its questions are about one image or are scored together, so they "
            "cannot be divided into a part to tune on and one to test"
        )
    for benchmark, items in zip(benchmarks, left, strict=True):
        if not items:
            raise InputError(
                f"{benchmark.name}: no question is left to test, because all of its images are tuned on; "
                "images that are tuned on may not be tested on"
            )


def _units(benchmarks: Sequence[Benchmark], identify: Identify) -> list[list[str]]:
    """Per benchmark the unit of each item, called by the least of the names that are tied in it."""
    ties: dict[Hashable, int] = {}
    contents = [_contents(benchmark, item, identify) for benchmark in benchmarks for item in benchmark.items]
    clusters = [
        (benchmark.name, cluster_of(benchmark, item)) for benchmark in benchmarks for item in benchmark.items
    ]
    edges = [
        (number, ties.setdefault(tie, len(ties)))
        for number, (names, cluster) in enumerate(zip(contents, clusters, strict=True))
        for tie in (*names, cluster)
    ]
    items, tied = np.array(edges).T
    size = len(contents) + len(ties)
    graph = coo_array((np.ones(len(edges), np.int8), (items, tied + len(contents))), shape=(size, size))
    numbers = connected_components(graph, directed=False)[1][: len(contents)].tolist()
    least: dict[int, str] = {}
    for number, names in zip(numbers, contents, strict=True):
        least[number] = min(*names, least.get(number, names[0]))
    units = iter([least[number] for number in numbers])
    return [[next(units) for _ in benchmark.items] for benchmark in benchmarks]


def _first_names(benchmark: Benchmark, units: Sequence[str], identify: Identify) -> dict[str, str]:
    """{unit: the least name of what a benchmark shows in it}."""
    least: dict[str, str] = {}
    for item, unit in zip(benchmark.items, units, strict=True):
        least[unit] = min([*_contents(benchmark, item, identify), *([least[unit]] if unit in least else [])])
    return least


def _contents(benchmark: Benchmark, item: Item, identify: Identify) -> list[str]:
    """Names of what the model is shown: the images, or the prompt where there is none."""
    return [_name(image, identify) for image in item.images] or [_place("text", benchmark.prompt(item))]


def _name(image: Path, identify: Identify) -> str:
    try:
        return identify(image)
    except InputError:  # its questions will fail; what is known of it is where it should be
        return str(image)


def _place(*parts: object) -> str:
    """A random place in an order, that depends on the parts alone."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _require_apart(division: Division, identify: Identify) -> None:
    """Whatever became of the code above: nothing that is tuned on is tested."""

    def names(benchmark: Benchmark) -> set[Hashable]:
        clusters = {(benchmark.name, cluster_of(benchmark, item)) for item in benchmark.items}
        return clusters | {name for item in benchmark.items for name in _contents(benchmark, item, identify)}

    tuned = names(division.tuning)
    assert all(tuned.isdisjoint(names(benchmark)) for benchmark in division.tested)


def _note(named: str | None, own: int, shared: int, tuned: int) -> str:
    """How the images were divided. A unit is mostly an image, and is called so."""
    if named is None:
        return f"{tuned} of {own + shared} images were drawn to tune on; the others are tested."
    if not shared:
        return f"Split {named} has {own} images of its own: they are tuned on, and the other splits tested."
    also = f" ({own} more are its own, and tuned on)" if own else ""
    return (
        f"Split {named} shares {shared} images with other splits{also}. Images that are tuned on may not be "
        f"tested on: {tuned - own} of them were drawn to tune on, with the questions of {named}; the other "
        "splits are tested on the rest."
    )
