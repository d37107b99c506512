"""The drawn scenes: determinism, boxes, labels; and the error when the font is missing."""

from __future__ import annotations

import numpy as np
import pytest
from glyphs import glyphs, needs_font

from regaze.demo.training import render
from regaze.demo.world import CATEGORIES, COLOURED, EMOJI

__all__ = ["glyphs"]  # a fixture


@pytest.mark.usefixtures("glyphs")
def test_a_scene_is_a_function_of_its_numbers():
    one, same = render.render_scene(4, "train", 17), render.render_scene(4, "train", 17)
    assert one.objects == same.objects
    assert one.scene_type == same.scene_type
    np.testing.assert_array_equal(one.pixels, same.pixels)
    for other in (render.render_scene(5, "train", 17), render.render_scene(4, "heldout", 17)):
        assert not np.array_equal(one.pixels, other.pixels)


@pytest.mark.usefixtures("glyphs")
def test_boxes_hold_what_was_drawn():
    """Against the same scene without its things, only pixels inside boxes differ by more than the noise."""
    for index in range(40):
        scene = render.render_scene(0, "train", index)
        boxes = np.zeros((render.SIDE, render.SIDE), dtype=int)
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= render.SIDE
            assert 0 <= y0 < y1 <= render.SIDE
            assert max(x1 - x0, y1 - y0) >= 13
            assert (thing.colour is not None) == (thing.category in COLOURED)
            boxes[y0:y1, x0:x1] += 1
        assert boxes.max() == 1, "things overlap"
        rows, columns = np.nonzero(scene.patch_category >= 0)
        for row, column in zip(rows, columns, strict=True):
            cell = boxes[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
            assert cell.any(), "a patch is labelled where nothing was drawn"
            named = CATEGORIES[scene.patch_category[row, column]]
            thing = next(thing for thing in scene.objects if thing.category == named)
            x0, y0, x1, y1 = thing.box
            assert x0 < column * 14 + 14
            assert x1 > column * 14
            assert y0 < row * 14 + 14
            assert y1 > row * 14


@pytest.mark.usefixtures("glyphs")
def test_drawn_pixels_lie_in_the_box():
    rng = np.random.default_rng
    bare = render.draw("office", [], rng(8)).pixels.astype(int)
    scene = render.draw("office", ["pizza"], rng(8))
    x0, y0, x1, y1 = scene.objects[0].box
    # The grounds agree (same generator state); the noise over all does not, so look for differences beyond
    # it.
    changed = np.abs(scene.pixels.astype(int) - bare).max(-1) > 45
    inside = changed[y0:y1, x0:x1].sum()
    assert inside > 0.3 * (x1 - x0) * (y1 - y0)
    assert changed.sum() - inside == 0


@needs_font
def test_every_emoji_has_a_glyph():
    for emojis in EMOJI.values():
        for emoji in emojis:
            assert min(render._glyph(emoji).size) > 25


def test_missing_font_names_the_package(monkeypatch):
    render.emoji_font.cache_clear()
    monkeypatch.setattr(render, "_FONT_FOLDERS", ("/nonexistent/fonts",))
    with pytest.raises(render.FontMissingError, match="fonts-noto-color-emoji"):
        render.emoji_font()
    render.emoji_font.cache_clear()


@pytest.mark.usefixtures("glyphs")
def test_a_scene_without_an_object_is_the_same_elsewhere():
    drawn = [render.render_scene(3, "train", index) for index in range(12)]
    index, whole = next((i, scene) for i, scene in enumerate(drawn) if len(scene.objects) > 2)
    for thing in whole.objects:
        bare = render.render_scene(3, "train", index, without=thing.category)
        assert bare.objects == tuple(each for each in whole.objects if each != thing)
        changed = np.abs(whole.pixels.astype(int) - bare.pixels).max(-1) > 0
        x0, y0, x1, y1 = thing.box
        assert changed[y0:y1, x0:x1].any()
        changed[y0:y1, x0:x1] = False
        assert not changed.any()
