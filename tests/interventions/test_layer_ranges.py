"""Layer ranges, scaled to other depths and checked."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from regaze.errors import BadParameterError
from regaze.interventions.base import Method
from regaze.interventions.layer_ranges import LayerRange, resolve_range, scaled_range


@pytest.mark.parametrize(
    ("published", "of", "to", "expected"),
    [
        ((9, 14), 32, 32, (9, 14)),
        ((9, 14), 32, 40, (11, 18)),
        ((9, 14), 32, 6, (2, 2)),
        ((2, 31), 32, 24, (2, 23)),
        ((0, 31), 32, 5, (0, 4)),
        ((20, 20), 32, 6, (4, 4)),
        ((31, 31), 32, 1, (0, 0)),
    ],
)
def test_a_range_keeps_its_place_in_the_depth(published, of, to, expected):
    assert scaled_range(*published, of, to) == expected


def test_scaled_ranges_are_never_empty_nor_outside():
    for to in range(1, 70):
        for first in range(32):
            for last in range(first, 32):
                a, b = scaled_range(first, last, 32, to)
                assert 0 <= a <= b < to
        assert scaled_range(0, 31, 32, to) == (0, to - 1)


@dataclass(frozen=True)
class Ranged(Method):
    """A method with a range of layers."""

    layers: LayerRange | None = None


def test_given_ranges_are_checked():
    assert Ranged().layers is None
    assert Ranged([1, 3]).layers == (1, 3)
    for wrong in ((3, 1), (-1, 2), (1,), (1, 2, 3), 4, "ab", (0.5, 2)):
        with pytest.raises(BadParameterError, match="layers must be the first and the last layer"):
            Ranged(wrong)
    assert resolve_range((1, 5), (0, 0), 32, 6) == (1, 5)
    assert resolve_range(None, (16, 31), 32, 6) == (3, 5)
    with pytest.raises(BadParameterError, match=r"layers 1\.\.6 do not exist: the model has layers 0\.\.5"):
        resolve_range((1, 6), (0, 0), 32, 6)
