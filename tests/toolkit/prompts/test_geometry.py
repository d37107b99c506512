"""The geometry of processors, from patches planted in images, and pixel values read back as images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import picture
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)
from zoo.every import VISION

from regaze.errors import ShapeError, UnsupportedModelError
from regaze.toolkit.prompts.geometry import Geometry, geometry_of
from regaze.toolkit.prompts.pixels import (
    Tiles,
    guess_layout,
    padded_sizes,
    read_pieces,
    seen_images,
    to_pixels,
)

# Geometry -----------------------------------------------------------------------------------------------


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


#: Processors of model families, and the pixels that one token of theirs shows.
PROCESSORS = {
    "clip": (CLIPImageProcessorPil(), 14),
    "crop-smaller": (CLIPImageProcessorPil(size={"shortest_edge": 130}, crop_size=square(112)), 14),
    "crop-larger": (CLIPImageProcessorPil(size={"shortest_edge": 100}, crop_size=square(112)), 14),
    "pad-at-the-edge": (SiglipImageProcessorPil(size=square(98), do_pad=True, pad_size=square(112)), 14),
    "llava-pad": (LlavaImageProcessorPil(do_pad=True), 14),
    "llava-crop": (LlavaImageProcessorPil(), 14),
    "siglip": (SiglipImageProcessorPil(size=square(384)), 14),  # 27 cells cover 378 pixels
    "gemma3": (Gemma3ImageProcessorPil(), 28),
    "qwen2-vl": (Qwen2VLImageProcessorPil(max_pixels=256 * 28 * 28), 28),
}


def grid_of(geometry: Geometry, side: int) -> tuple[int, int]:
    return geometry.seen[1] // side, geometry.seen[0] // side


def seen_cells(processor, image: Image.Image, side: int) -> torch.Tensor:
    """Mean brightness in each cell of what the model receives, [rows, columns]."""
    features = processor(images=[image], return_tensors="pt")
    (pixels,) = read_pieces(guess_layout(features), processor, features)
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    whole = pixels[:, : rows * side, : columns * side].mean(0)
    return whole.view(rows, side, columns, side).mean((1, 3))


@pytest.mark.parametrize("size", [(640, 480), (301, 770), (112, 112), (53, 40)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_patch_planted_in_a_cells_box_lights_that_cell(name, size):
    processor, side = PROCESSORS[name]
    geometry = geometry_of(processor, size)
    rows, columns = grid = grid_of(geometry, side)
    boxes = {(r, c): geometry.cell_box(r, c, grid) for r in range(rows) for c in range(columns)}
    image = np.zeros((size[1], size[0], 3), np.uint8)
    dark = seen_cells(processor, Image.fromarray(image), side)
    whole_cell = side * side / geometry.scale[0] / geometry.scale[1]
    planted = 0
    for cell in np.random.default_rng(0).permutation(sorted(boxes))[:20]:
        row, column = int(cell[0]), int(cell[1])
        if (box := boxes[row, column]) is None:  # padding
            continue
        left, top, right, bottom = box
        if (right - left) * (bottom - top) < 0.3 * whole_cell:  # hardly more than padding
            continue
        lit = image.copy()
        lit[
            round(top) : max(round(bottom), round(top) + 1), round(left) : max(round(right), round(left) + 1)
        ] = 255
        light = seen_cells(processor, Image.fromarray(lit), side) - dark
        assert divmod(int(light.argmax()), columns) == (row, column)
        planted += 1
    assert planted >= 5


@pytest.mark.parametrize("name", PROCESSORS)
def test_cells_and_visible_pixels_tile_the_window(name):
    processor, side = PROCESSORS[name]
    geometry = geometry_of(processor, (301, 470))
    grid = grid_of(geometry, side)
    left, top, right, bottom = geometry.window(grid)
    assert 0 <= left < right <= 301
    assert 0 <= top < bottom <= 470
    boxes = [geometry.cell_box(r, c, grid) for r in range(grid[0]) for c in range(grid[1])]
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in boxes if b is not None)
    assert area == pytest.approx((right - left) * (bottom - top))
    visible = geometry.visible(grid)
    assert visible.shape == (470, 301)
    assert abs(int(visible.sum()) - area) <= 301 + 470  # whole pixels against exact edges
    on_map = geometry.to_pixels(torch.ones(grid))
    assert torch.equal(on_map > 0, visible)
    torch.testing.assert_close(on_map[visible], torch.ones(int(visible.sum()), dtype=torch.float64))


def test_known_geometries():
    """LLaVA-1.5 crops the sides of a wide photo, its padded form adds bars, Qwen squashes."""
    crop = geometry_of(CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=square(336)), (640, 480))
    assert crop == Geometry((640, 480), (336, 336), (0.7, 0.7), (-56.0, 0.0))
    assert crop.window((24, 24)) == (80.0, 0.0, 560.0, 480.0)
    assert crop.cell_box(0, 0, (24, 24)) == pytest.approx((80, 0, 100, 20))
    pad = geometry_of(LlavaImageProcessorPil(do_pad=True), (640, 320))
    assert pad == Geometry((640, 320), (224, 224), (0.35, 0.35), (0.0, 56.0))
    assert pad.cell_box(3, 0, (16, 16)) is None
    assert pad.cell_box(4, 0, (16, 16)) == pytest.approx((0, 0, 40, 40))
    qwen = geometry_of(Qwen2VLImageProcessorPil(max_pixels=1280 * 28 * 28), (640, 480))
    assert qwen == Geometry.squash((640, 480), (644, 476))


@given(
    original=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    grid=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
@settings(max_examples=60, deadline=None)
def test_a_squashed_map_is_resized_as_pillow_resizes(original, grid):
    values = torch.rand(grid, generator=torch.Generator().manual_seed(sum(grid)))
    got = Geometry.squash(original, (grid[1] * 14, grid[0] * 14)).to_pixels(values)
    expected = Image.fromarray(values.numpy()).resize(original, Image.Resampling.BILINEAR)
    torch.testing.assert_close(got.float(), torch.tensor(np.asarray(expected)), rtol=1e-5, atol=1e-6)


def test_a_hot_cell_of_a_long_grid_lights_its_own_pixels():
    """256 tokens in 8 rows of 32, which the released CARVE reads as 16 x 16."""
    geometry = Geometry.squash((640, 160), (32 * 28, 8 * 28))
    cells = torch.zeros(8, 32)
    cells[5, 20] = 1.0
    lit = geometry.to_pixels(cells)
    left, top, right, bottom = (round(edge) for edge in geometry.cell_box(5, 20, (8, 32)))
    assert (left, top, right, bottom) == (400, 100, 420, 120)
    peak = (lit == lit.max()).nonzero()
    assert peak.min(0).values.tolist() >= [top, left]
    assert (peak[:, 0] < bottom).all()
    assert (peak[:, 1] < right).all()


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_mask_on_pixels_becomes_shares_of_cells(name):
    processor, side = PROCESSORS[name]
    size = (301, 470)
    geometry = geometry_of(processor, size)
    grid = grid_of(geometry, side)
    everything = geometry.to_cells(torch.ones(470, 301), grid)
    assert float(everything.max()) <= 1 + 1e-9
    padding = torch.tensor(
        [[geometry.cell_box(r, c, grid) is None for c in range(grid[1])] for r in range(grid[0])]
    )
    assert torch.equal(everything < 1e-12, padding)
    mask = torch.zeros(470, 301)
    mask[200:260, 150:170] = 1.0
    total = geometry.to_cells(mask, grid).sum() * side * side / geometry.scale[0] / geometry.scale[1]
    assert float(total) == pytest.approx(60 * 20)  # no area is lost
    with pytest.raises(ShapeError, match="470 rows"):
        geometry.to_cells(mask.T, grid)


def test_batches_of_maps():
    geometry = geometry_of(CLIPImageProcessorPil(), (320, 240))
    cells = torch.rand(2, 3, 16, 16)
    pixels = geometry.to_pixels(cells)
    assert pixels.shape == (2, 3, 240, 320)
    torch.testing.assert_close(pixels[1, 2], geometry.to_pixels(cells[1, 2]))


class Flipped(CLIPImageProcessorPil):
    """A processor whose attributes do not tell all that it does."""

    def resize(self, image, *args, **kwargs):
        return super().resize(image[:, :, ::-1], *args, **kwargs)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (LlavaNextImageProcessorPil(), "tiles|one picture per image"),
        (Flipped(), "which part"),
        (None, "NoneType"),
    ],
)
def test_what_is_not_understood_is_refused(processor, message):
    with pytest.raises(UnsupportedModelError, match=message):
        geometry_of(processor, (640, 480))


def test_a_grid_finer_than_the_pixels_is_refused():
    with pytest.raises(ShapeError, match="does not fit"):
        Geometry.squash((10, 10), (28, 28)).to_pixels(torch.ones(29, 2))


# Reading pixel values back ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "siglip", "qwen2-vl", "gemma3"])
def test_pixel_values_are_read_back(name):
    processor, _ = PROCESSORS[name]
    image = picture(0, 8, 6).resize((336, 224), Image.Resampling.BICUBIC)
    images = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    features = processor(images=images, return_tensors="pt")
    seen = seen_images(guess_layout(features), processor, features)
    raw = processor(images=images, return_tensors="pt", do_normalize=False, do_rescale=False)
    assert len(seen) == 2
    for number, got in enumerate(seen):
        if name == "qwen2-vl":
            expected = np.asarray(images[number])  # a multiple of 28 on both sides: not resized
        else:
            expected = raw["pixel_values"][number].permute(1, 2, 0).numpy()
        assert np.abs(np.asarray(got).astype(int) - expected.astype(int)).max() <= 1


def test_processors_that_do_not_rescale():
    processor = CLIPImageProcessorPil(do_normalize=False, do_rescale=False)
    (seen,) = seen_images(Tiles(), processor, processor(images=[picture(0, 224, 224)], return_tensors="pt"))
    assert np.array_equal(np.asarray(seen), np.asarray(picture(0, 224, 224)))
    with pytest.raises(UnsupportedModelError, match=r"\[1, 10, 3"):
        seen_images(Tiles(), processor, {"pixel_values": torch.zeros(1, 10, 3, 8, 8)})


def test_images_that_a_batch_pads_are_seen_and_put_back_without_the_padding():
    entry = next(each for each in VISION if each.name == "mistral3")
    _, processor = entry.build()
    processor = processor.image_processor
    images = [picture(0, 56, 56), picture(1, 84, 56)]
    together = processor(images=images, return_tensors="pt")
    assert padded_sizes(together) == [(56, 56), (56, 84)]
    seen = seen_images(Tiles(), processor, together)
    for image, own in zip(images, seen, strict=True):
        alone = processor(images=[image], return_tensors="pt")
        assert padded_sizes(alone) is None
        assert own.tobytes() == seen_images(Tiles(), processor, alone)[0].tobytes()
        assert own.size == image.size
    back = to_pixels(processor, seen, together)
    torch.testing.assert_close(back, together["pixel_values"], rtol=0, atol=0.02)
    assert torch.equal(back[0, :, :, 56:], together["pixel_values"][0, :, :, 56:])


def test_sizes_of_padded_tiles_are_read_from_their_mask():
    pixels, shown = torch.zeros(1, 2, 3, 4, 6), torch.zeros(1, 2, 4, 6, dtype=torch.int64)
    shown[0, 0, :3, :5] = 1
    assert padded_sizes({"pixel_values": pixels, "pixel_attention_mask": shown}) == [(3, 5), (0, 0)]
    assert padded_sizes({"pixel_values": pixels}) is None
    of_something_else = {"pixel_values": pixels[0], "image_sizes": torch.tensor([[40, 60], [4, 6]])}
    assert padded_sizes(of_something_else) is None
