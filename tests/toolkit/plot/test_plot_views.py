"""Maps of images that a model sees as tiles, thumbnails or frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_checks import case_of, shown
from PIL import Image
from zoo.every import VISION, skip_if_older

from regaze.errors import BadParameterError, RecordingError
from regaze.toolkit import plot
from regaze.toolkit.analysis import SinkTokens, image_map
from regaze.toolkit.prompts.token_map import PromptTokens, Role, TokenMap, View
from regaze.toolkit.record.trace import Trace

PICTURE = Image.new("RGB", (80, 40), (120, 120, 120))


def trace_of(views: list[View], weights: list[float], image: list[int] | None = None) -> Trace:
    """One layer, one head, one row whose image tokens have these weights; the text has the rest."""
    numbers = [number for number, view in enumerate(views) for _ in range(view.grid[0] * view.grid[1])]
    cells = [cell for view in views for cell in range(view.grid[0] * view.grid[1])]
    count = len(weights)
    numbers, cells = (numbers, cells) if image is None else (image, [-1] * count)
    sample = PromptTokens(
        (int(Role.IMAGE),) * count + (int(Role.QUERY),), (*numbers, -1), (*cells, -1), tuple(views)
    )
    tokens = TokenMap.from_samples([sample], torch.ones(1, count + 1))
    slices = torch.tensor([*weights, 0.0]).view(1, 1, 1, 1, -1)
    where = {"row_position": torch.tensor([count]), "row_step": torch.tensor([0])}
    return Trace((0,), **where, row_active=torch.ones(1, 1, dtype=torch.bool), slices=slices, tokens=tokens)


def at(grid: np.ndarray, x: float, y: float) -> float:
    """The map's value at a place given in shares of the image's sides."""
    return float(grid[int(y * grid.shape[0]), int(x * grid.shape[1])])


def test_tiles_and_a_thumbnail_are_painted_onto_their_boxes():
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    views = [View((1, 2)), View((2, 1), box=left), View((2, 1), box=right)]
    grid = plot.answer_map(trace_of(views, [0.1, 0.2, 0.01, 0.02, 0.03, 0.04]))
    assert at(grid, 0.2, 0.2) == pytest.approx(0.1 + 0.01)  # thumbnail's left cell, left tile's upper cell
    assert at(grid, 0.2, 0.8) == pytest.approx(0.1 + 0.02)
    assert at(grid, 0.7, 0.2) == pytest.approx(0.2 + 0.03)
    assert at(grid, 0.99, 0.99) == pytest.approx(0.2 + 0.04)
    assert np.unique(grid.round(6)).size == 4


def test_a_box_beyond_the_image_is_clipped():
    views = [View((1, 4), box=(-0.5, 0.0, 1.5, 1.0))]
    grid = plot.answer_map(trace_of(views, [0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(np.unique(grid), [0.2, 0.3])
    assert at(grid, 0.4, 0.5) == pytest.approx(0.2)
    assert at(grid, 0.6, 0.5) == pytest.approx(0.3)


def test_views_without_a_place_are_skipped():
    views = [View((1, 1)), View((1, 1), box=None)]
    np.testing.assert_allclose(plot.answer_map(trace_of(views, [0.3, 0.5])), [[0.3]])


def test_one_whole_view_is_the_grid_itself():
    np.testing.assert_allclose(plot.answer_map(trace_of([View((1, 2))], [0.3, 0.1])), [[0.3, 0.1]])


def test_images_count_and_not_their_views():
    views = [
        View((1, 1), box=(0.0, 0.0, 0.5, 1.0)),
        View((1, 1), box=(0.5, 0.0, 1.0, 1.0)),
        View((1, 1), image=1),
    ]
    trace = trace_of(views, [0.1, 0.2, 0.4])
    np.testing.assert_allclose(plot.answer_map(trace, number=1), [[0.4]])
    assert at(plot.answer_map(trace), 0.9, 0.5) == pytest.approx(0.2)
    with pytest.raises(BadParameterError, match=r"image 2 was not recorded; the record has 0\.\.1"):
        plot.heatmap(trace, PICTURE, number=2)


def test_frames_of_a_video_are_summed():
    views = [View((1, 2), frame=0), View((1, 2), frame=1)]
    grid = plot.answer_map(trace_of(views, [0.1, 0.2, 0.03, 0.04]))
    assert at(grid, 0.1, 0.5) == pytest.approx(0.13)
    assert at(grid, 0.9, 0.5) == pytest.approx(0.24)


def test_the_picture_keeps_its_shape():
    figure = plot.heatmap(trace_of([View((2, 2))], [0.1, 0.2, 0.3, 0.4]), PICTURE)
    assert figure.axes[1].get_aspect() == pytest.approx(0.5)


def test_an_image_without_places_has_no_map():
    trace = trace_of([View((0, 0), box=None)], [0.1, 0.2], image=[0, 0])
    with pytest.raises(RecordingError, match="which part of image 0"):
        plot.heatmap(trace, PICTURE)
    with pytest.raises(RecordingError, match="no image grid"):
        plot.heatmap(trace_of([], [0.1], image=[0]), PICTURE)


TILED = pytest.mark.parametrize("name", ["llava_next", "idefics3", "internvl"])


@TILED
def test_tiles_of_a_family_are_one_picture(name):
    """At any point the map is the sum of the weights of the cells that show it, whatever their view."""
    entry = next(each for each in VISION if each.name == name)
    skip_if_older(entry)
    image, gaze = Image.new("RGB", (330, 180), (90, 90, 90)), case_of(entry).gaze
    with gaze.recording(slices="image") as record:
        gaze.ask([image], ["What is here?"], max_new_tokens=1, eos_token_id=None)
    views = record[0].tokens.views[0]
    assert len(views) > 1
    picture, overlay, bar = plot.heatmap(record, image).axes
    assert bar.get_ylabel() == f"weight per image token\nsum of {len(views)} views"
    drawn = np.asarray(overlay.images[-1].get_array())
    for x, y in ((0.23, 0.31), (0.81, 0.67), (0.52, 0.91)):
        expected = 0.0
        for place, view in enumerate(views):
            left, upper, right, lower = view.box
            across, down = (x - left) / (right - left), (y - upper) / (lower - upper)
            if 0 <= across < 1 and 0 <= down < 1:
                cells = image_map(record, image=place)
                expected += float(cells[int(down * cells.shape[0]), int(across * cells.shape[1])])
        assert at(drawn, x, y) == pytest.approx(expected, rel=1e-4)
    assert picture.images[0].get_array().shape[:2] == (180, 330)


@TILED
def test_a_bright_corner_lies_in_the_corner(name):
    """The weights are how much a bright corner changes each token that the family's own processor makes."""
    entry = next(each for each in VISION if each.name == name)
    skip_if_older(entry)
    case = case_of(entry)
    grey = Image.new("RGB", (330, 180), (90, 90, 90))
    bright = grey.copy()
    bright.paste((255, 255, 255), (231, 108, 330, 180))  # the last 0.3 and 0.4 of its sides
    before, tokens = shown(case, grey)
    changes = (shown(case, bright)[0] - before).norm(dim=-1)
    where = {"row_position": torch.tensor([tokens.length - 1]), "row_step": torch.tensor([0])}
    active = torch.ones(1, 1, dtype=torch.bool)
    trace = Trace((0,), **where, row_active=active, slices=changes.view(1, 1, 1, 1, -1), tokens=tokens)
    for views in ("sum", "mean", "tiles", "overview"):
        grid = plot.answer_map(trace, views=views)
        height, width = grid.shape
        corner = grid[int(0.65 * height) :, int(0.75 * width) :].mean()
        rest = grid[: int(0.4 * height), : int(0.5 * width)].mean()
        assert corner > 2 * rest, views
        row, column = np.unravel_index(grid.argmax(), grid.shape)
        assert row >= 0.5 * height, views
        assert column >= 0.6 * width, views
    total, tiles, overview = (plot.answer_map(trace, views=each) for each in ("sum", "tiles", "overview"))
    assert tiles.size > overview.size
    assert at(total, 0.9, 0.9) == pytest.approx(at(tiles, 0.9, 0.9) + at(overview, 0.9, 0.9), rel=1e-5)
    assert at(plot.answer_map(trace, views="mean"), 0.9, 0.9) == pytest.approx(at(total, 0.9, 0.9) / 2)
    labels = [axes.get_ylabel() for axes in plot.heatmap(trace, grey, views="apart").axes]
    assert labels == ["", "", "", "weight per image token\ntiles", "weight per image token\noverview"]


def test_views_of_one_kind_are_drawn_whatever_was_chosen():
    left, right = View((1, 1), box=(0.0, 0.0, 0.5, 1.0)), View((1, 1), box=(0.5, 0.0, 1.0, 1.0))
    for views in ([View((1, 2))], [left, right]):
        trace = trace_of(views, [0.3, 0.1])
        for choice in ("tiles", "overview", "mean"):
            grid = plot.answer_map(trace, views=choice)
            assert (at(grid, 0.2, 0.5), at(grid, 0.8, 0.5)) == pytest.approx((0.3, 0.1))
    assert len(plot.heatmap(trace, PICTURE, views="apart").axes) == 3
    with pytest.raises(BadParameterError, match="apart"):
        plot.answer_map(trace, views="apart")
    with pytest.raises(BadParameterError, match="views must be one of sum, mean"):
        plot.heatmap(trace, PICTURE, views="thumbnail")


def test_sinks_are_framed_in_tiles_and_overview():
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    trace = trace_of([View((1, 2)), View((2, 1), box=left), View((2, 1), box=right)], [0.0] * 6)
    values = torch.tensor([[[0.0, 9.0, 0.0, 0.0, 0.0, 9.0, 0.0]]])
    sinks = SinkTokens(tokens=trace.tokens, layers=(3,), values=values, tau=5.0)
    for views, expected in (("tiles", (0.5, 0.5, 0.5, 0.5)), ("overview", (0.5, 0.0, 0.5, 1.0))):
        axes = plot.sink_map(sinks, PICTURE, views=views).axes[0]
        (frame,) = axes.patches
        wide, high = axes.get_xlim()[1], axes.get_ylim()[0]
        left, upper = frame.get_x() / wide, frame.get_y() / high
        assert (left, upper, frame.get_width() / wide, frame.get_height() / high) == pytest.approx(expected)
