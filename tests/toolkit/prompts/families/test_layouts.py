"""Families whose ids tell the grid, whose images have no place, or that look at them by cross-attention."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from family_checks import noise
from models import logits_of
from packaging.version import Version
from zoo import cross_attention, documents, others

import regaze
from regaze import Role
from regaze.errors import InputError, UnsupportedModelError
from regaze.interventions import M3ID, VCD
from regaze.interventions.vcd import add_noise
from regaze.toolkit.prompts.families import MediaInputs, family_of
from regaze.toolkit.prompts.families.idefics import Idefics3
from regaze.toolkit.prompts.families.ovis2 import Ovis2
from regaze.toolkit.prompts.picture import WHOLE

ENTRIES = {e.name: e for part in (others, documents, cross_attention) for e in part.ENTRIES}
QUESTION = "What is this?"


@lru_cache(maxsize=4)
def wrapped(name: str, split: bool = True) -> Any:
    try:
        model, processor = ENTRIES[name].build()
    except ImportError:
        if Version(transformers.__version__) >= Version("5.23"):
            raise
        pytest.skip("this transformers lacks the family, or its processor without torchvision")
    if not split:
        processor.image_processor.do_image_splitting = False
    return regaze.wrap(model, processor)


# Tiles from the ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_tiles_of_pictures_of_three_shapes_side_by_side(name):
    gaze = wrapped(name)
    pictures = [noise(0, 300, 60), noise(1, 60, 300), noise(2, 100, 100)]
    views = gaze.tokens(gaze.inputs([pictures], [QUESTION])).views[0]
    wide = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), WHOLE]
    high = [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0), WHOLE]
    four = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0), WHOLE]
    assert [view.box for view in views] == [*wide, *high, *four]
    assert [view.image for view in views] == [0] * 3 + [1] * 3 + [2] * 5


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_pictures_that_are_not_cut_into_tiles(name):
    gaze = wrapped(name, split=False)
    views = gaze.tokens(gaze.inputs([[noise(0, 300, 60), noise(1, 60, 60)]], [QUESTION])).views[0]
    assert [(view.image, view.box) for view in views] == [(0, WHOLE), (1, WHOLE)]


def idefics3_ids(tiles: str, size: int = 4) -> list[int]:
    """Ids of a prompt; "t" is a tile, "g" the whole picture, "/" a line break."""
    fake, image, name, line_break = 9, 8, 7, 6
    ids = [1]
    for letter in tiles:
        ids += [line_break] if letter == "/" else [fake, name, *[image] * size]
    return [*ids, fake, 2]


def idefics3(side: int = 2) -> Idefics3:
    vision = SimpleNamespace(image_size=8 * side, patch_size=4)
    return Idefics3(SimpleNamespace(image_token_id=8, vision_config=vision, scale_factor=2))


def test_idefics3_refuses_what_is_no_picture():
    assert len(idefics3().read_layout(idefics3_ids("tt/tt/g"), MediaInputs({})).views) == 5
    with pytest.raises(InputError, match="4 tiles in 3 rows"):
        idefics3().read_layout(idefics3_ids("tt/t/t/g"), MediaInputs({}))
    with pytest.raises(InputError, match="3 x 3 tokens, not 4"):
        idefics3(3).read_layout(idefics3_ids("g"), MediaInputs({}))


def test_ovis2_reads_rows_and_columns_from_its_marks():
    start, grid, column, row, end, atom = 11, 12, 13, 14, 15, 10
    family = Ovis2(
        SimpleNamespace(image_token_id=atom, visual_indicator_token_ids=[start, grid, column, row, end])
    )
    tile = [atom] * 4
    two_by_one = [*tile, row, *tile]
    layout = family.read_layout(
        [1, start, *tile, grid, *two_by_one, end, start, *tile, grid, end, 2], MediaInputs({})
    )
    assert [view.box for view in layout.views] == [WHOLE, (0, 0, 1, 0.5), (0, 0.5, 1, 1), WHOLE]
    assert [view.image for view in layout.views] == [0, 0, 0, 1]
    with pytest.raises(InputError, match="3 tiles in 2 rows"):
        family.read_layout([start, *tile, grid, *tile, column, *tile, row, *tile, end], MediaInputs({}))
    with pytest.raises(InputError, match="no square tile"):
        family.read_layout([start, *tile, atom, grid, end], MediaInputs({}))


# Tokens without a place ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kosmos-2", "kosmos-2.5"])
def test_kosmos_finds_queries_among_ids_of_other_words(name):
    gaze = wrapped(name)
    inputs = gaze.inputs([noise(0, 60, 60)], [QUESTION])
    tokens = gaze.tokens(inputs)
    marked = inputs["image_embeds_position_mask"] == 1
    assert torch.equal(tokens.mask(Role.IMAGE), marked)
    words = gaze.reader.tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    assert not any(gaze.family.image_mask(words))


def test_kosmos_2_5_marks_the_images_of_a_padded_batch():
    gaze = wrapped("kosmos-2.5")
    pictures = [noise(0, 60, 60), noise(1, 60, 60)]
    inputs = gaze.inputs(pictures, [QUESTION, "Is there a dog in the picture?"])
    assert inputs["attention_mask"][0, 0] == 0
    alone = gaze.inputs(pictures[:1], [QUESTION])
    first, other = (logits_of(gaze.model, batch, tokens=1)[0, 0] for batch in (inputs, alone))
    torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["blip-2", "instructblip", "kosmos-2", "kosmos-2.5"])
@pytest.mark.parametrize("images", [0, 2])
def test_families_of_one_image_say_so(name, images):
    gaze = wrapped(name)
    with pytest.raises(InputError, match="is one image"):
        gaze.inputs([[noise(i, 40, 40) for i in range(images)]], [QUESTION])


def test_an_embedded_prompt_of_blip_is_read_again_for_beams():
    gaze = wrapped("blip-2")
    inputs = gaze.inputs([noise(0, 40, 40), noise(1, 40, 40)], [QUESTION, "Is there a dog?"])
    expected = gaze.model.generate(**inputs, num_beams=3, max_new_tokens=3)
    with gaze.recording() as record:
        got = gaze.model.generate(**inputs, num_beams=3, max_new_tokens=3)
    assert torch.equal(got, expected)
    assert record[0].tokens.mask(Role.IMAGE).sum() == 6 * 8  # of each beam


# Grids from the processor --------------------------------------------------------------------------------


def test_phi4_knows_what_of_its_canvas_is_the_picture():
    gaze = wrapped("phi4_multimodal")
    large, small = gaze.tokens(gaze.inputs([noise(0, 600, 200)], [QUESTION])).views[0]
    # two crops of 448 side by side; 600 x 200 becomes 896 x 298, so that 22 of 32 rows of patches are left
    assert large.grid == (11, 32)
    assert small.grid == (16, 16)
    assert small.box == pytest.approx((0, 0, 1, 448 / 298), abs=1e-3)
    assert large.box == pytest.approx((0, 0, 1, 22 * 14 / 298), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("emu3", {"image_sizes": torch.tensor([[40, 40]])}, "5 x 5 cells has 30 tokens"),
        ("kimi_k25", {"image_grid_thw": torch.tensor([[1, 2, 2]])}, "1 x 1 tokens"),
        ("molmo2", {"image_grids": torch.tensor([[3, 3, 9, 9]])}, "grid of 9 x 9"),
    ],
)
def test_grids_that_do_not_fit_the_prompt_are_refused(name, changes, message):
    gaze = wrapped(name)
    inputs = gaze.inputs([noise(0, 56, 56)], [QUESTION])
    with pytest.raises(InputError, match=message):
        gaze.tokens({**inputs, **changes})


# Cross-attention ----------------------------------------------------------------------------------------


def cross_map(gaze: Any, inputs: Any) -> Any:
    with gaze.recording() as record:
        gaze.model.generate(**inputs, max_new_tokens=1)
    return record[0].cross.tokens


def test_mllama_keys_are_tiles_and_those_an_image_lacks_are_padding():
    gaze = wrapped("mllama")
    inputs = gaze.inputs([[noise(0, 112, 56), noise(1, 56, 56)], noise(2, 56, 112)], [QUESTION, "And this?"])
    tokens = cross_map(gaze, inputs)
    assert tokens.length == 2 * 4 * 17  # images, tiles, a class token and 4 x 4 patches
    first, second = tokens.views
    assert [(v.image, v.box) for v in first] == [
        (0, (0, 0, 0.5, 1)), (0, (0.5, 0, 1, 1)), (1, WHOLE),
    ]  # fmt: skip
    assert [(v.image, v.box) for v in second] == [(0, (0, 0, 1, 0.5)), (0, (0, 0.5, 1, 1))]
    per_tile = tokens.roles.view(2, 8, 17)
    shown = [[True, True, False, False, True, False, False, False], [True, True] + [False] * 6]
    assert torch.equal(per_tile[..., 0] == Role.IMAGE, torch.tensor(shown))
    masked = inputs["cross_attention_mask"].amax(1).flatten(1) == 0
    assert torch.equal(per_tile[..., 0] == Role.PAD, masked)


def test_mllama_without_aspect_ratios_says_what_is_missing():
    family = wrapped("mllama").family
    with pytest.raises(InputError, match="aspect_ratio_ids"):
        family.cross_tokens({}, 1, 68)
    with pytest.raises(InputError, match="2 images have more tiles than the 68 keys"):
        family.cross_tokens({"aspect_ratio_ids": torch.tensor([[1, 1]])}, 1, 68)


def test_florence2_keys_are_what_its_encoder_reads():
    gaze = wrapped("florence2")
    inputs = gaze.inputs([noise(0, 40, 40), noise(1, 40, 40)], [QUESTION, "Is there a dog in the picture?"])
    tokens = cross_map(gaze, inputs)
    assert torch.equal(tokens.roles, gaze.tokens(inputs).roles)
    assert torch.equal(tokens.mask(Role.PAD), inputs["attention_mask"] == 0)
    assert tokens.views[0][0].grid == (4, 4)
    image = tokens.columns(Role.IMAGE)
    assert tokens.cell[0, image].tolist() == [-1, *range(16)]  # a mean first


def test_florence2_forward_without_generate_knows_its_encoder_too():
    gaze = wrapped("florence2")
    inputs = gaze.inputs([noise(0, 40, 40)], [QUESTION])
    start = torch.full((1, 1), gaze.model.config.text_config.decoder_start_token_id)
    with gaze.recording() as record, torch.no_grad():
        gaze.model(**inputs, decoder_input_ids=start)
    assert record[0].cross.tokens.mask(Role.IMAGE).sum() == 17


@pytest.mark.parametrize("name", ENTRIES)
def test_configurations_find_their_family(name):
    gaze = wrapped(name)
    assert name in family_of(gaze.model.config).model_types
    assert not gaze.family.is_guess


# Second contexts ----------------------------------------------------------------------------------------


def noised(inputs: Any) -> Any:
    context = SimpleNamespace(inputs=inputs)
    return {**inputs, "pixel_values": VCD(noise_step=900).negative(context).inputs["pixel_values"]}


@pytest.mark.parametrize(
    "name", ["idefics2", "idefics3", "chameleon", "emu3", "ovis2", "kimi_k25", "molmo2", "granite4_vision"]
)
def test_a_noised_image_beside_the_real_one_equals_two_forwards(name):
    """Of two images, so that what counts patches over the batch (Molmo 2) has to move along."""
    gaze = wrapped(name)
    inputs = dict(gaze.inputs([noise(1, 60, 60), noise(2, 60, 60)], [QUESTION, "Is there a dog?"]))
    with gaze.using(VCD(alpha=0.7, beta=0.0, noise_step=900)):
        got = logits_of(gaze.model, inputs, tokens=1)[0]
    main, other = (logits_of(gaze.model, given, tokens=1)[0] for given in (inputs, noised(inputs)))
    assert not torch.allclose(main, other, atol=1e-3)
    shown = main > torch.finfo(main.dtype).min  # Chameleon never says words of images
    torch.testing.assert_close(got[shown], (1.7 * main - 0.7 * other)[shown], rtol=0, atol=3e-4)


@pytest.mark.parametrize("name", ["idefics2", "idefics3", "emu3", "ovis2", "kimi_k25"])
@pytest.mark.parametrize("method", [VCD(alpha=0.7, noise_step=900), M3ID()], ids=["vcd", "m3id"])
def test_beams_beside_a_prompt_without_image_keep_their_images(name, method):
    gaze = wrapped(name)
    images, questions = [None, noise(1, 60, 60)], [QUESTION, "Is there a dog in the picture?"]
    options = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2, "eos_token_id": None}
    with gaze.using(method):
        inputs = gaze.inputs(images, questions)
        together = gaze.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        for row in range(2):
            alone = gaze.inputs(images[row : row + 1], questions[row : row + 1])
            answers = gaze.model.generate(**alone, **options)[:, alone["input_ids"].shape[1] :]
            assert torch.equal(answers, together[2 * row : 2 * row + 2])


def test_what_cannot_be_repeated_or_stacked_is_refused():
    molmo, kosmos = wrapped("molmo2"), wrapped("kosmos-2")
    inputs = molmo.inputs([noise(0, 60, 60)], [QUESTION])
    with molmo.using(VCD()), pytest.raises(UnsupportedModelError, match="belongs to which prompt"):
        molmo.model.generate(**inputs, num_beams=2, max_new_tokens=2)
    inputs = kosmos.inputs([noise(0, 60, 60)], [QUESTION])
    with kosmos.using(M3ID()), pytest.raises(UnsupportedModelError, match="KOSMOS"):
        kosmos.model.generate(**inputs, max_new_tokens=2)


def test_noise_leaves_the_zeros_that_pad_a_batch():
    pixels = torch.randn(2, 3, 3, 4, 4)
    pixels[1, 1:] = 0
    got = add_noise(pixels, 900)
    assert not got[1, 1:].any()
    assert torch.equal(got[1, 0], add_noise(pixels[1:, :1], 900)[0, 0])
