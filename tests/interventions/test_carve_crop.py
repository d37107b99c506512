"""Masks, boxes and crops of CARVE, on small arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import picture

from regaze.errors import InputError, ShapeError
from regaze.interventions.carve.crop import bounding_box, mask_image, top_share, zoom


def test_top_share():
    values = np.arange(16.0).reshape(4, 4)
    assert np.array_equal(top_share(values, 0.2), values >= 12)  # the 0.8 quantile is 12.0
    assert top_share(values, 1.0).all()
    assert top_share(np.zeros((3, 3)), 0.1).all()  # ties are kept
    where = values < 8
    assert np.array_equal(top_share(values, 0.25, where), (values >= 6) & where)


@given(st.integers(0, 10_000), st.floats(0.01, 1), st.floats(0.01, 1))
@settings(max_examples=30, deadline=None)
def test_a_larger_share_keeps_what_a_smaller_one_keeps(seed, a, b):
    values = np.random.default_rng(seed).normal(size=(9, 7))
    small, large = top_share(values, min(a, b)), top_share(values, max(a, b))
    assert (small <= large).all()


def test_mask_crop_and_zoom():
    image = picture(0, 40, 30)
    mask = np.zeros((30, 40), bool)
    mask[10:12, 5:9] = mask[20, 30] = True
    assert bounding_box(mask) == (5, 10, 31, 21)
    masked = np.asarray(mask_image(image, mask))
    assert np.array_equal(masked[mask], np.asarray(image)[mask])
    assert not masked[~mask].any()
    assert zoom(image, (5, 10, 31, 20)).size == (78, 30)  # three times larger: covers both sides
    assert zoom(image, (0, 0, 40, 1)).size == (160, 4)  # a thin box stops at the limit
    with pytest.raises(ShapeError, match="40 pixels"):
        mask_image(image, mask.T)
    with pytest.raises(InputError, match="keeps no pixel"):
        bounding_box(mask & False)
