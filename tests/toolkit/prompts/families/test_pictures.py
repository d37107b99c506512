"""What every family sees of pictures of any shape, and where its cells lie in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from family_checks import Case, case_of, cell_box, shown
from PIL import Image
from zoo.every import RUNNING, VISION, label, skip_if_older

from regaze.toolkit.prompts.token_map import View

SIZES = ((56, 56), (168, 56), (60, 150))
#: Families that do not say where their image tokens lie.
WITHOUT_GRID = ("aria", "idefics2", "blip-2", "instructblip", "kosmos-2", "kosmos-2.5")
#: Random models of these mix neighbouring cells: the brightest may be next to the one that was planted.
MIXING = ("aya_vision", "cohere2_vision", "gemma3n", "florence2")
families = pytest.mark.parametrize("entry", VISION, ids=label)


def stripes(width: int, height: int) -> Image.Image:
    """A third each of red, green and blue, along the longer side."""
    place = np.arange(max(width, height)) * 3 // max(width, height)
    line = np.eye(3, dtype=np.uint8)[place] * 255
    pixels = line[None] if width >= height else line[:, None]
    return Image.fromarray(np.broadcast_to(pixels, (height, width, 3)).copy())


@families
def test_seen_is_the_whole_picture(entry):
    """Red, green and blue lie where they lie in the picture, but for what a processor crops."""
    skip_if_older(entry)
    gaze = case_of(entry).gaze
    for size in SIZES:
        seen, picture = gaze.seen(stripes(*size)), gaze.reader.sight.picture(size)
        left, upper, right, lower = picture.window
        pixels, found = np.asarray(seen).astype(int), set()
        for colour in range(3):
            along = (colour + 0.5) / 3
            x, y = (along, 0.5) if size[0] >= size[1] else (0.5, along)
            if not (left + 0.02 < x < right - 0.02 and upper + 0.02 < y < lower - 0.02):
                continue
            column = int((x - left) / (right - left) * seen.width)
            row = int((y - upper) / (lower - upper) * seen.height)
            assert pixels[row, column].argmax() == colour, (size, colour, pixels[row, column])
            assert pixels[row, column].max() - np.median(pixels[row, column]) > 150
            found.add(colour)
        assert found >= ({0, 1, 2} if size == (56, 56) else {1})
        assert picture.seen in (None, seen.size)


@pytest.mark.parametrize("entry", RUNNING, ids=label)
def test_a_patch_on_a_cells_box_lights_that_cell(entry):
    skip_if_older(entry)
    case = case_of(entry)
    if entry.name in WITHOUT_GRID:
        assert not any(all(view.grid) for view in shown(case, stripes(56, 56))[1].views[0])
        return
    pictures = [(170, 60), (60, 150)]
    if entry.name == "perception_lm":  # as many tiles in all
        pictures = [(168, 56), (160, 54)]
    for sizes in [[(150, 100)], pictures[:1], pictures[1:]][: 1 if entry.images > 1 else 3]:
        assert_lit(case, sizes)
    if entry.images > 1:
        assert_lit(case, pictures)


def assert_lit(case: Case, sizes: Sequence[tuple[int, int]]) -> None:
    grey = [Image.new("RGB", size, (90, 90, 90)) for size in sizes]
    before, tokens = shown(case, *grey)
    planted = 0
    for number, view in enumerate(tokens.views[0]):
        assert view.picture.size == sizes[view.image]
        for cell in np.random.default_rng(number).permutation(view.grid[0] * view.grid[1]):
            edges = edges_of(view, int(cell))
            if edges is not None:
                break
        lit = [image.copy() for image in grey]
        lit[view.image].paste((255, 255, 255), edges)
        here = (shown(case, *lit)[0] - before).norm(dim=-1)[tokens.image_cells(0, number)]
        found = np.array(divmod(int(here.argmax()), view.grid[1]))
        off = np.abs(found - divmod(int(cell), view.grid[1])).max()
        assert off <= (case.entry.name in MIXING), (sizes, number, view, int(cell), found)
        planted += 1
    assert planted


def edges_of(view: View, cell: int) -> tuple[int, int, int, int] | None:
    """The pixels that a cell shows; None for padding, or hardly more."""
    left, top, right, bottom = cell_box(view, cell)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, 1), min(bottom, 1)
    if (x1 - x0) < 0.6 * (right - left) or (y1 - y0) < 0.6 * (bottom - top):
        return None
    width, height = view.picture.size
    edges = round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)
    return edges[0], edges[1], max(edges[2], edges[0] + 1), max(edges[3], edges[1] + 1)
