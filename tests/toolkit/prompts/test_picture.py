"""Boxes on copies of a picture: the picture itself in any size, or what the model receives of it."""

from __future__ import annotations

import pytest
from PIL import Image

from regaze.errors import InputError
from regaze.toolkit.prompts.images import SEEN
from regaze.toolkit.prompts.picture import WHOLE, Picture, within
from regaze.toolkit.prompts.token_map import View, boxes_on

#: Of 336 x 112 pixels a model gets the middle third.
CROPPED = Picture((336, 112), (56, 56), (1 / 3, 0.0, 2 / 3, 1.0))


def copy(*size: int, seen: bool = False) -> Image.Image:
    image = Image.new("RGB", size)
    image.info[SEEN] = seen
    return image


@pytest.mark.parametrize("size", [(336, 112), (168, 56), (1000, 333), (31, 10)])
def test_a_copy_of_the_whole_picture(size):
    assert CROPPED.shown_by(copy(*size)) == WHOLE


@pytest.mark.parametrize("size", [(56, 56), (112, 112)])
def test_what_the_model_receives(size):
    assert CROPPED.shown_by(copy(*size)) == CROPPED.window


@pytest.mark.parametrize("size", [(112, 336), (640, 480), (200, 100), (1, 1000)])
def test_another_picture(size):
    assert CROPPED.shown_by(copy(*size)) is None
    view = View((4, 4), box=CROPPED.window, picture=CROPPED)
    message = (
        f"^the picture has {size[0]} x {size[1]} pixels, but the model was asked about one of 336 x 112, "
        r"received as 56 x 56; give that one, or gaze\.seen\(image\)$"
    )
    with pytest.raises(InputError, match=message):
        boxes_on([view], copy(*size))
    unmeasured = View((4, 4), picture=Picture((336, 112)))
    with pytest.raises(InputError, match=r"asked about one of 336 x 112; give that one, or"):
        boxes_on([unmeasured], copy(*size))


def test_a_square_picture_of_which_a_square_is_cropped():
    """Its copies have one shape: `Gaze.seen` is known by its mark, others by their size."""
    square = Picture((256, 256), (224, 224), (1 / 16, 1 / 16, 15 / 16, 15 / 16))
    assert square.shown_by(copy(256, 256)) == WHOLE
    assert square.shown_by(copy(512, 512)) == WHOLE
    assert square.shown_by(copy(224, 224)) == square.window
    assert square.shown_by(copy(224, 224, seen=True)) == square.window
    same = Picture((224, 224), (224, 224), (1 / 16, 1 / 16, 15 / 16, 15 / 16))
    assert same.shown_by(copy(224, 224)) == WHOLE
    assert same.shown_by(copy(224, 224, seen=True)) == same.window


def test_a_picture_that_is_squashed_and_was_not_measured():
    picture = Picture((336, 112))
    assert picture.shown_by(copy(336, 112)) == WHOLE
    assert picture.shown_by(copy(56, 56)) is None
    assert picture.shown_by(copy(56, 56, seen=True)) == WHOLE


def test_boxes_are_moved_onto_the_part_that_is_shown():
    views = [View((4, 4), box=CROPPED.window, picture=CROPPED)]
    assert boxes_on(views, copy(336, 112))[0] == pytest.approx(CROPPED.window)
    assert boxes_on(views, copy(56, 56)) == [WHOLE]
    assert within((0.0, 0.25, 0.5, 0.5), (0.0, 0.0, 0.5, 0.5)) == (0.0, 0.5, 1.0, 1.0)
    assert boxes_on([View((1, 1), box=None, picture=CROPPED)], copy(56, 56)) == [None]


@pytest.mark.parametrize(
    ("views", "good", "bad"),
    [
        ([View((8, 8))], [(112, 112), (100, 110)], [(336, 112), (640, 480)]),
        ([View((6, 18))], [(336, 112)], [(112, 112)]),
        ([View((18, 6))], [(112, 336)], [(112, 112), (336, 112)]),
        # 10 x 20 cells: by a cell in both directions and 2 %, 1.02 * 1.05 * 1.1 = 1.178 times as wide or high
        ([View((10, 20))], [(2350, 1000), (1700, 1000)], [(2370, 1000), (1690, 1000)]),
        (
            [View((4, 4)), View((2, 8), box=(0.0, 0.132, 1.0, 0.868))],  # a thumbnail of another shape
            [(168, 56)],
            [(112, 112)],
        ),
        # The upper right quarter of 20 x 10 cells has the most cells, and tells the shape best.
        (
            [View((4, 4)), View((5, 10), box=(0.5, 0.0, 1.0, 0.5)), View((2, 2))],
            [(2000, 1000), (2350, 1000)],
            [(1000, 1000), (2370, 1000)],
        ),
        ([View((5, 10)), View((20, 8))], [(80, 200)], [(200, 100)]),
        ([View((5, 5), box=(0.0, 0.5, 1.0, 1.0))], [(500, 1000)], [(1000, 1000), (1000, 500)]),
        ([View((0, 0)), View((4, 0)), View((3, 3), box=None)], [(1000, 10), (10, 1000)], []),  # nothing known
        ([View((3, 3), box=None), View((8, 8))], [(112, 112)], [(336, 112)]),
    ],
    ids=str,
)
def test_a_record_that_does_not_know_its_picture_knows_its_cells(views, good, bad):
    for size in good:
        assert boxes_on(views, copy(*size)) == [view.box for view in views]
    for size in bad:
        with pytest.raises(InputError, match=r"square cells, and its own size is not known; give gaze\.seen"):
            boxes_on(views, copy(*size))


def test_the_cells_are_named_where_a_picture_has_another_shape():
    with pytest.raises(
        InputError,
        match=r"^the picture has 336 x 112 pixels, but the tokens of the image are 9 x 6 square cells",
    ):
        boxes_on([View((6, 9))], copy(336, 112))


def test_frames_of_a_video_are_not_compared():
    assert boxes_on([View((4, 4), frame=0)], copy(336, 112)) == [WHOLE]
    assert boxes_on([View((4, 4)), View((2, 2), box=None, frame=1)], copy(336, 112)) == [WHOLE, None]
