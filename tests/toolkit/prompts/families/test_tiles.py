"""Image tokens of LLaVA and its descendants: tiles, thumbnails, newlines and the frames of videos."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import unpad_image
from zoo.llava_like import ENTRIES, SIDE

import regaze
from regaze import Role
from regaze.errors import InputError
from regaze.toolkit.prompts.families import MediaInputs, family_of
from regaze.toolkit.prompts.families.base import tile_boxes
from regaze.toolkit.prompts.families.llava_next import unpadded
from regaze.toolkit.prompts.families.tiles import arrangement
from regaze.toolkit.prompts.token_map import View

QUESTION = "Is there a dog in the picture?"
BUILT: dict[str, regaze.toolkit.wrap.Gaze] = {}


@pytest.fixture
def build():
    """A handle on a model, by name; each is built once."""

    def built(name):
        if name not in BUILT:
            entry = next(entry for entry in ENTRIES if entry.name == name)
            try:
                model, processor = entry.build()
            except ImportError as error:  # transformers 5.17 takes no tower but timm's for PerceptionLM
                pytest.skip(str(error))
            BUILT[name] = regaze.wrap(model, processor)
        return BUILT[name]

    return built


def picture(width, height, box=None):
    """A slope of brightness along each side, so that no tile is like another, and a bright box."""
    pixels = np.full((height, width, 3), 110, np.uint8)
    pixels[..., 0] = np.linspace(60, 160, width)
    pixels[..., 1] = np.linspace(60, 160, height)[:, None]
    if box is not None:
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = 255, 255, 0
    return Image.fromarray(pixels)


def features(model, inputs):
    """What the language model is given, [B, L, D]."""
    given_to_text = {}

    def keep(module, args, kwargs):
        given_to_text["embeddings"] = kwargs["inputs_embeds"]

    hook = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return given_to_text["embeddings"]


def cell_box(view, cell):
    """The part of the image that a cell shows, as shares."""
    row, column = divmod(cell, view.grid[1])
    left, top, right, bottom = view.box
    width, height = (right - left) / view.grid[1], (bottom - top) / view.grid[0]
    return left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height


#: Families whose processors crop the longer side.
CROPPED = ("llava", "vipllava", "video_llava", "fast_vlm")


@pytest.mark.parametrize("size", [(112, 112), (120, 60), (60, 130), (300, 100)])
@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES])
def test_a_bright_patch_lights_the_cell_that_shows_it(build, name, size):
    gaze = build(name)
    side = max(4, min(size) // 10)
    for place in ((0.1, 0.15), (0.85, 0.12), (0.5, 0.55), (0.3, 0.75), (0.9, 0.9)):
        x, y = (int(share * sides) for share, sides in zip(place, size, strict=True))
        box = (x - side // 2, y - side // 2, x - side // 2 + side, y - side // 2 + side)
        grey, bright = (gaze.inputs([picture(*size, b)], [QUESTION]) for b in (None, box))
        tokens = gaze.tokens(bright)
        assert tokens.views == gaze.tokens(grey).views
        change = (features(gaze.model, bright) - features(gaze.model, grey)).norm(dim=-1)[0]
        centre = np.array([(box[i] + box[i + 2]) / 2 / size[i] for i in (0, 1)])
        reach = side / np.array(size) / 2
        margin = (1 - min(size) / np.array(size)) / 2 if name in CROPPED else np.zeros(2)
        if ((centre < margin + reach) | (centre > 1 - margin - reach)).any():  # cropped away
            continue
        best = int(change.argmax())
        view = tokens.views[0][int(tokens.view[0, best])]
        left, top, right, bottom = cell_box(view, int(tokens.cell[0, best]))
        assert left - reach[0] <= centre[0] <= right + reach[0], (place, view)
        assert top - reach[1] <= centre[1] <= bottom + reach[1], (place, view)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_image_tokens_are_those_of_the_model_and_the_question_is_the_question(build, entry):
    gaze = build(entry.name)
    questions = [QUESTION, "What is it, and why?"]
    images = [[picture(112, 112), picture(100, 110)][: entry.images], picture(112, 104)]
    inputs = gaze.inputs(images, questions)
    tokens = gaze.tokens(inputs)
    assert torch.equal(tokens.mask(Role.IMAGE), inputs["input_ids"] == gaze.model.config.image_token_id)
    assert [1 + max(view.image for view in views) for views in tokens.views] == [entry.images, 1]
    for row, question in enumerate(questions):
        query = inputs["input_ids"][row][tokens.mask(Role.QUERY)[row]]
        assert gaze.processor.tokenizer.decode(query).strip() == question
    for views, number, cell in zip(tokens.views, tokens.view, tokens.cell, strict=True):
        for at, view in enumerate(views):
            cells = cell[(number == at) & (cell >= 0)].tolist()
            assert cells == list(range(view.grid[0] * view.grid[1]))
    again = regaze.wrap(gaze.model, gaze.processor).tokens(dict(inputs))  # has built no prompt
    assert again.views == tokens.views
    assert torch.equal(again.roles, tokens.roles)


# Tiles joined to one grid -------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(20, 900), st.integers(20, 900)),
    st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (3, 2)]),
    st.integers(3, 9),
)
def test_the_large_grid_is_the_one_that_the_model_cuts_out(size, tiles, side):
    tile = 14 * side
    grid, (left, top, right, bottom) = unpadded(size, [count * tile for count in tiles], tile, side)
    rows, columns = (torch.arange(count * side) for count in tiles)
    numbered = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    remaining = unpad_image(numbered, size)
    assume(remaining.numel())  # nothing remains of very long images
    assert tuple(remaining.shape[1:]) == grid
    # The shares of the image that the outermost tokens reach, from the pixels of the padded canvas.
    high, wide = (count * tile for count in tiles)
    scale = min(wide / size[1], high / size[0])
    fitted = [min(-(-(size[axis] * scale) // 1), (high, wide)[axis]) for axis in (0, 1)]
    first, last = remaining[:, 0, 0], remaining[:, -1, -1]
    expected = [
        (edge * 14 - ((high, wide)[axis] - fitted[axis]) // 2) / fitted[axis]
        for axis in (0, 1)
        for edge in (int(first[axis]), int(last[axis]) + 1)
    ]
    one_pixel = 1.01 / min(fitted)  # scaling rounds the fitted side by less than a pixel
    assert [top, bottom, left, right] == pytest.approx(expected, abs=one_pixel)


def test_onevision_shows_several_images_small_and_one_in_tiles(build):
    gaze = build("llava_onevision")
    images = [[picture(112, 112), picture(60, 130)], None, picture(112, 112)]
    tokens = gaze.tokens(gaze.inputs(images, [QUESTION, "Why?", "What is it?"]))
    padded = (-35 / 60, 0.0, 95 / 60, 1.0)  # to a square
    assert tokens.views[0] == (View((4, 4), 0), View((4, 4), 1, padded))
    assert tokens.views[1] == ()
    assert tokens.views[2] == (View((4, 4), 0), View((5, 5), 0))  # 8 x 8, shrunk to about two tiles' tokens
    newlines = tokens.mask(Role.IMAGE) & (tokens.cell < 0)
    assert newlines.sum(1).tolist() == [2, 0, 5]


def test_onevision_tiles_every_image_of_a_flat_list(build):
    """The processor then takes each image for the only one of a prompt, and so does the model."""
    gaze = build("llava_onevision")
    text = gaze.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    flat = gaze.processor(text=text, images=[picture(112, 112), picture(60, 130)], return_tensors="pt")
    tokens = gaze.tokens(flat)
    assert [view.grid for view in tokens.views[0]] == [(4, 4), (5, 5), (4, 4), (8, 4)]
    with torch.no_grad():
        gaze.model(**flat)


def test_sizes_that_do_not_fit_the_tokens_are_refused(build):
    gaze = build("llava_next")
    inputs = gaze.inputs([picture(60, 130)], [QUESTION])  # (height, width) in the processor's words: 130, 60
    with pytest.raises(InputError, match="56 tokens where its images"):
        gaze.tokens({**inputs, "image_sizes": torch.tensor([[112, 112]])})
    with pytest.raises(InputError, match="of 1 images, but the prompts show more"):
        gaze.tokens({**inputs, "image_sizes": torch.tensor([[60, 300]])})
    with pytest.raises(InputError, match="'image_sizes', which its processor gives"):
        regaze.wrap(gaze.model, gaze.processor).tokens({"input_ids": inputs["input_ids"]})


# Tiles one after the other ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (1, 6), (2, 3), (3, 2), (6, 1), (3, 4), (1, 11)])
def test_the_thumbnail_tells_how_tiles_are_arranged(shape):
    generator = torch.Generator().manual_seed(0)
    rows, columns = shape
    coarse = torch.rand(1, 3, 5, 7, generator=generator)
    canvas = torch.nn.functional.interpolate(coarse, (rows * 56, columns * 56), mode="bicubic")
    tiles = canvas.view(3, rows, 56, columns, 56).permute(1, 3, 0, 2, 4).reshape(-1, 3, 56, 56)
    thumbnail = torch.nn.functional.interpolate(canvas, (56, 56), mode="bilinear", antialias=True)[0]
    assert arrangement(tiles, thumbnail) == shape
    assert arrangement(tiles.bfloat16(), thumbnail.bfloat16()) == shape


def test_an_arrangement_that_nothing_tells_is_none():
    assert arrangement(torch.full((4, 3, 28, 28), 0.5), torch.full((3, 28, 28), 0.5)) is None
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(7, 3, 28, 28, generator=generator)
    assert arrangement(noise[:6], noise[6]) is None  # tiles of another picture


def test_tiles_of_one_colour_have_no_box_but_a_grid(build):
    gaze = build("internvl")
    inputs = gaze.inputs([Image.new("RGB", (112, 112), (90, 90, 90))], [QUESTION])
    views = gaze.tokens({**inputs, "pixel_values": inputs["pixel_values"].clone()}).views[0]
    assert [view.box for view in views] == [None] * 4 + [(0, 0, 1, 1)]
    assert [view.box for view in gaze.tokens(inputs).views[0]] == [*tile_boxes(2, 2), (0, 0, 1, 1)]
    assert {view.grid for view in views} == {(4, 4)}
    assert {view.image for view in views} == {0}


def test_half_a_tile_is_refused(build):
    gaze = build("aya_vision")
    family = gaze.family
    with pytest.raises(InputError, match=r"24 neighbouring.* 16 tokens .tiles of 4 x 4"):
        family.read_layout([gaze.model.config.image_token_id] * 24, MediaInputs({}))


def test_got_ocr_reads_one_image_in_its_own_words(build):
    gaze = build("got_ocr2")
    own = gaze.processor(images=picture(128, 128), return_tensors="pt")
    ours = gaze.inputs([picture(128, 128)], ["OCR:"])
    assert torch.equal(own["pixel_values"], ours["pixel_values"])
    decoded = [gaze.processor.tokenizer.decode(each["input_ids"][0]) for each in (own, ours)]
    assert decoded[0].replace(" OCR: ", "OCR:") == decoded[1]
    with pytest.raises(InputError, match="one image per prompt, got 2"):
        gaze.reader.render("OCR", 2)
    tiled = gaze.processor(images=picture(256, 128), crop_to_patches=True, return_tensors="pt")
    views = gaze.tokens(tiled).views[0]
    assert [view.box for view in views] == [(0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 1)]


# One grid -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tower", "strategy", "cells"),
    [
        ("clip_vision_model", "default", [0, 1, 2, 3]),
        ("clip_vision_model", "full", [-1, 0, 1, 2, 3]),
        ("siglip_vision_model", "full", [0, 1, 2, 3]),
        ("siglip_vision_model", "default", [1, 2, 3]),  # "default" drops the first feature, class or not
    ],
)
def test_towers_without_a_class_token_begin_with_the_first_cell(tower, strategy, cells):
    vision = SimpleNamespace(model_type=tower, image_size=28, patch_size=14)
    config = SimpleNamespace(
        model_type="llava", image_token_id=7, vision_config=vision, vision_feature_select_strategy=strategy
    )
    layout = family_of(config).read_layout([1, *[7] * 2 * len(cells)], MediaInputs({}))
    assert layout.cell == [-1, *cells, *cells]
    assert [view.image for view in layout.views] == [0, 1]


@pytest.mark.parametrize(("configured", "count", "grids"), [(16, 32, [(4, 4)] * 2), (576, 256, [(16, 16)])])
def test_fastvlm_trusts_the_number_of_tokens_that_divides_a_run(configured, count, grids):
    config = SimpleNamespace(model_type="fast_vlm", image_token_id=7, image_seq_length=configured)
    family = family_of(config)
    assert [view.grid for view in family.read_layout([7] * count, MediaInputs({})).views] == grids
    with pytest.raises(InputError, match="no square grid"):
        family.read_layout([7] * 24, MediaInputs({}))


# Videos -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "grid", "starts", "ends"),
    [
        ("video_llava", 4, 1, 0),
        ("llava_next_video", 2, 0, 0),
        ("llava_onevision", 2, 0, 1),
        ("perception_lm", 4, 0, 0),
    ],
)
def test_frames_of_a_video_are_views(build, name, grid, starts, ends):
    """Video processors need torchvision; the pixels are made by hand, as those give them to the model."""
    gaze = build(name)
    frames = 3
    count = frames * (starts + grid * grid) + ends
    ids = torch.tensor([[200, *[gaze.model.config.video_token_id] * count, 201, 202]])
    pixels = torch.zeros(1, frames, 3, SIDE, SIDE)
    inputs = {"input_ids": ids, "pixel_values_videos": pixels}
    tokens = gaze.tokens(inputs)
    assert tokens.views[0] == tuple(View((grid, grid), 0, frame=frame) for frame in range(frames))
    assert int(tokens.mask(Role.IMAGE).sum()) == count
    before = features(gaze.model, inputs)
    pixels = pixels.clone()
    cell = SIDE // grid
    pixels[0, 1, :, cell + 2 : 2 * cell - 2, 2 : cell - 2] = 2.0
    change = (features(gaze.model, {**inputs, "pixel_values_videos": pixels}) - before).norm(dim=-1)[0]
    best = int(change.argmax())
    assert (int(tokens.view[0, best]), int(tokens.cell[0, best])) == (1, grid)
    with pytest.raises(InputError, match="where its images"):
        gaze.tokens({**inputs, "input_ids": ids[:, :-4]})
