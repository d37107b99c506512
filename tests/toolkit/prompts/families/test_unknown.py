"""Families that regaze does not know: a grid that is right, or none and a warning that says why."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from family_checks import QUESTIONS, case_of, noise
from zoo.base import Entry
from zoo.every import VISION, label, skip_if_older

import regaze
from regaze import Role
from regaze.errors import GuessWarning
from regaze.toolkit.prompts.families import GuessedFamily, MediaInputs, family_of
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.prompts.token_map import View

IMAGE = 7


def layout_of(counts: list[int], inputs: dict[str, Any], images: int | None = None, **config: Any) -> Any:
    """A prompt with runs of image tokens, read with a processor's other outputs; and the warnings."""
    family = family_of(SimpleNamespace(model_type="somethingnew", image_token_id=IMAGE, **config))
    assert family.is_guess
    ids = [token for count in counts for token in (1, *[IMAGE] * count)] + [2]
    media = MediaInputs({"input_ids": torch.tensor([ids]), **inputs}, images)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        layout = family.read_layout(ids, media)
    return layout.views, [str(each.message) for each in given]


def pixels(*shape: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.zeros(shape)}


@pytest.mark.parametrize(
    ("counts", "inputs", "grids"),
    [
        ([16], {"image_grid_thw": torch.tensor([[1, 2, 8]])}, [(2, 8)]),
        ([16], {"image_grid_thw": torch.tensor([[1, 4, 16]])}, [(2, 8)]),  # merged 2 x 2
        ([6, 9], {"image_grid_hws": torch.tensor([[4, 6], [6, 6]])}, [(2, 3), (3, 3)]),
        ([6], {"spatial_shapes": torch.tensor([[2, 3]])}, [(2, 3)]),
        ([16], pixels(1, 3, 28, 112), [(2, 8)]),
        ([16], pixels(1, 3, 56, 56), [(4, 4)]),
        ([16], {"pixel_values": [torch.zeros(3, 28, 112)]}, [(2, 8)]),
        (
            [4, 2],
            {**pixels(2, 3, 56, 56), "image_sizes": torch.tensor([[56, 56], [56, 28]])},
            [(2, 2), (2, 1)],
        ),
        ([16], {**pixels(1, 3, 56, 56), "image_sizes": torch.tensor([[480, 640]])}, [(4, 4)]),  # of the file
        ([16], {}, [(4, 4)]),  # nothing says anything
        ([6], {}, [(0, 0)]),
        ([1], pixels(1, 3, 56, 56), [(0, 0)]),
    ],
)
def test_the_shape_of_an_image_is_read_from_the_inputs(counts, inputs, grids):
    views, said = layout_of(counts, inputs)
    assert [(view.grid, view.image) for view in views] == [(grid, i) for i, grid in enumerate(grids)]
    assert len(said) == 1
    assert "'somethingnew'" in said[0]


@pytest.mark.parametrize(
    ("counts", "inputs", "reason"),
    [
        ([16], {"image_grid_thw": torch.tensor([[1, 2, 9]])}, "16 image tokens are no grid.*2 x 9 patches"),
        ([18], {"image_grid_thw": torch.tensor([[1, 2, 8]])}, "18 image tokens are no grid"),  # row ends
        ([32], {"image_grid_thw": torch.tensor([[2, 4, 4]])}, "2 frames"),
        ([4, 4], {"image_grid_thw": torch.tensor([[1, 2, 4]])}, "2 runs.*image_grid_thw is of 1 images"),
        ([16], pixels(5, 3, 28, 28), "1 runs.*pixel_values is of 5 images"),  # tiles joined
        ([4, 4, 4, 4], pixels(1, 3, 56, 56), "4 runs.*pixel_values is of 1 images"),  # rows
        ([16], pixels(1, 4, 3, 28, 28), "several tiles"),
        ([16], pixels(64, 588), "does not say the shape"),  # patches without a grid
        ([15], pixels(1, 3, 56, 56), "15 image tokens are no grid in the shape of 56 x 56 pixels"),
        ([16], pixels(1, 3, 56, 112), "16 image tokens are no grid in the shape of 56 x 112 pixels"),
    ],
)
def test_a_contradiction_leads_to_no_grid_and_says_so(counts, inputs, reason):
    views, said = layout_of(counts, inputs)
    assert all(view.grid == (0, 0) for view in views)
    assert len(said) == 2
    assert "get no grid" in said[1]
    assert re.search(reason, said[1])


def test_cells_are_whole_patches():
    """64 latents of 70 x 70 patches are no 8 x 8 grid of them, however square."""
    vision = SimpleNamespace(patch_size=14)
    for count, grid in ((64, (0, 0)), (49, (7, 7))):
        views, _ = layout_of([count], pixels(1, 3, 980, 980), vision_config=vision)
        assert views[0].grid == grid


@pytest.mark.parametrize("setting", ["perceiver_config", "qformer_config", "num_query_tokens"])
def test_latents_have_no_places(setting):
    views, said = layout_of([16], pixels(1, 3, 56, 56), **{setting: 32})
    assert views == [View((0, 0), 0)]
    assert f"`{setting}`" in said[1]


def test_several_runs_of_one_image_are_one_image():
    views, said = layout_of([4, 4], {}, images=1)
    assert [(view.grid, view.image) for view in views] == [((0, 0), 0)] * 2
    assert not said  # regaze built the prompt itself


def test_warnings_come_once():
    family = family_of(SimpleNamespace(model_type="somethingnew", image_token_id=IMAGE))
    ids = [IMAGE] * 16
    media = {"input_ids": torch.tensor([ids]), **pixels(5, 3, 28, 28)}
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for _ in range(3):
            assert family.read_layout(ids, MediaInputs(media)).views[0].grid == (0, 0)
    assert [each.category for each in given] == [GuessWarning] * 2


SHAPES = [[(112, 28)], [(28, 112)], [(56, 56)], [(200, 120)], [(112, 28), (28, 112)]]
#: The configurations of the others name no image token.
_NAMELESS = {"kosmos-2", "kosmos-2.5", "phi4_multimodal"}
#: The prompts of these are written by their class in regaze, for want of a chat template.
_WRITTEN = {"got_ocr2", "paligemma", "blip-2", "instructblip", "chameleon", "florence2"}
GUESSABLE = [e for e in VISION if e.name not in _NAMELESS | _WRITTEN]


@pytest.mark.parametrize("entry", GUESSABLE, ids=label)
@pytest.mark.filterwarnings("ignore::regaze.errors.GuessWarning")
def test_known_families_as_if_unknown_get_the_right_grid_or_none(entry: Entry):
    skip_if_older(entry)
    case = case_of(entry)
    unknown = regaze.wrap(case.model, case.processor)
    unknown.family = GuessedFamily(case.model.config)
    unknown.reader = PromptReader(case.processor, unknown.family)
    known = regaze.wrap(case.model, case.processor)
    for sizes in SHAPES:
        if len(sizes) > entry.images:
            continue
        images = [noise(i, *size) for i, size in enumerate(sizes)]
        inputs = case.gaze.inputs([images], [QUESTIONS[0]])
        guess, right = unknown.tokens(inputs), known.tokens(inputs)
        placed = (guess.cell[0] >= 0).nonzero().flatten().tolist()
        for column in placed:
            mine, true = (tokens.views[0][int(tokens.view[0, column])] for tokens in (guess, right))
            assert right.roles[0, column] == Role.IMAGE
            assert (mine.grid, mine.image) == (true.grid, true.image)
            assert mine.box is None or mine.box == pytest.approx(true.box, abs=1e-3)
            assert guess.cell[0, column] == right.cell[0, column]
