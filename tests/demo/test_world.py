"""The demo's small world: categories, scene types and co-occurrence."""

from __future__ import annotations

import numpy as np

from regaze.demo.world import (
    CATEGORIES,
    COLOURED,
    COMPANIONS,
    SCENE_TYPES,
    co_occurrence,
    sample_categories,
)


def test_world_is_closed():
    listed = {name for kind in SCENE_TYPES.values() for name in kind.weights}
    assert listed <= set(CATEGORIES)
    assert set(COMPANIONS) | set(COMPANIONS.values()) | COLOURED <= set(CATEGORIES)
    assert len(CATEGORIES) == len(set(CATEGORIES)) >= 65
    assert set(CATEGORIES) == listed, "a category no scene type shows would only ever be a stray"


def test_categories_are_distinct_and_between_one_and_five():
    rng = np.random.default_rng(3)
    sizes = set()
    for _ in range(500):
        kind, chosen = sample_categories(rng)
        assert kind in SCENE_TYPES
        assert len(chosen) == len(set(chosen))
        sizes.add(len(chosen))
    assert sizes == {1, 2, 3, 4, 5}


def test_companions_are_expected_and_the_present_is_not():
    expectation = co_occurrence().expectation(["knife", "clock"])
    assert expectation[CATEGORIES.index("knife")] == 0 == expectation[CATEGORIES.index("clock")]
    assert expectation[CATEGORIES.index("fork")] > 0.5 > expectation[CATEGORIES.index("zebra")]
