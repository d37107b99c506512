"""Roles of every token: by the template's characters, from ids alone, padded on either side."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import llava_processor, picture, tiny_llama
from transformers import LlavaConfig

import regaze
from regaze import Role, TokenMap
from regaze.errors import GuessWarning, InputError, UnsupportedModelError
from regaze.toolkit.prompts.families import MediaInputs, family_of
from regaze.toolkit.prompts.token_map import PromptTokens, View


def text_of(gaze, inputs, role, sample):
    ids = inputs["input_ids"][sample][gaze.tokens(inputs).columns(role, sample)]
    return llava_processor().tokenizer.decode(ids)


QUESTIONS = ["Is there a dog in the image?", "zebra\nxylophone 42 <3 ASSISTANT: USER:?", "é?"]


@pytest.mark.parametrize("system", [None, "You see well."])
def test_question_image_and_tail(gaze, system):
    inputs = gaze.inputs([picture(0), None, [picture(1), picture(2)]], QUESTIONS, system)
    tokens = gaze.tokens(inputs)
    image_id = gaze.model.config.image_token_id
    assert torch.equal(tokens.mask(Role.IMAGE), inputs["input_ids"] == image_id)
    assert torch.equal(tokens.mask(Role.PAD), inputs["attention_mask"] == 0)
    for sample, question in enumerate(QUESTIONS):
        assert text_of(gaze, inputs, Role.QUERY, sample).strip() == question
        assert text_of(gaze, inputs, Role.TAIL, sample).strip() == "ASSISTANT:"
        assert (system or "USER") in text_of(gaze, inputs, Role.SYSTEM, sample)
    assert [len(grid) for grid in tokens.grids] == [1, 0, 2]
    assert not tokens.mask(Role.OUTPUT).any()


def test_cells_are_row_major_and_per_image(gaze):
    inputs = gaze.inputs([[picture(1), picture(2)]], ["Which?"])
    tokens = gaze.tokens(inputs)
    first, second = tokens.image_cells(0, 0), tokens.image_cells(0, 1)
    assert torch.equal(first, torch.arange(int(first[0]), int(first[0]) + 64))
    assert int(second[0]) > int(first[-1])
    with pytest.raises(InputError, match="2 views"):
        tokens.image_cells(0, 2)


def test_a_bright_patch_lights_its_cell(gaze):
    """Cell (r, c) of the map is the patch at (r, c) of the image that the model receives."""
    image = picture(0).point(lambda _: 0)
    image.paste((255, 255, 255), (5 * 14, 2 * 14, 6 * 14, 3 * 14))
    seen = torch.tensor(list(gaze.seen(image).convert("L").tobytes())).view(8, 14, 8, 14).float().mean((1, 3))
    assert seen.argmax() == 2 * 8 + 5
    pixels = gaze.inputs([image], ["?"])["pixel_values"]
    tower = gaze.model.model.vision_tower.embeddings.patch_embedding(pixels).flatten(2)[0]
    assert (tower - tower[:, :1]).abs().sum(0).argmax() == 2 * 8 + 5


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text("abc d?.1\n", min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=3),
    st.booleans(),
)
def test_reading_ids_agrees_with_rendering(gaze, questions, with_image):
    inputs = gaze.inputs([picture(0) if with_image else None] * len(questions), questions)
    by_template = gaze.tokens(inputs)
    stranger = regaze.wrap(gaze.model, gaze.processor)  # never saw these prompts being rendered
    by_ids = stranger.tokens(inputs)
    same = by_template.roles == by_ids.roles
    # A question may begin with characters that join the template's last token: those alone may differ.
    assert (~same).sum(1).max() <= 1


def test_answers_after_the_header_are_output(gaze):
    inputs = gaze.inputs([picture(0)], ["Is there a dog in the image?"])
    answer = gaze.processor.tokenizer(" Yes there is", add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]
    longer = torch.cat([inputs["input_ids"], answer], 1)
    tokens = gaze.tokens({"input_ids": longer})
    assert torch.equal(
        tokens.columns(Role.OUTPUT), torch.arange(inputs["input_ids"].shape[1], longer.shape[1])
    )
    assert torch.equal(tokens.roles[:, : inputs["input_ids"].shape[1]], gaze.tokens(inputs).roles)


def test_padding_side_does_not_matter(gaze):
    inputs = gaze.inputs([picture(0), picture(1)], ["Is there a dog in the image?", "What?"])
    left = gaze.tokens(inputs)
    right_ids, right_mask = inputs["input_ids"].clone(), inputs["attention_mask"].clone()
    shift = int((inputs["attention_mask"][1] == 0).sum())
    right_ids[1], right_mask[1] = right_ids[1].roll(-shift), right_mask[1].roll(-shift)
    right = gaze.tokens({"input_ids": right_ids, "attention_mask": right_mask})
    for name in ("roles", "view", "cell"):
        assert torch.equal(getattr(right, name)[1], getattr(left, name)[1].roll(-shift))


def test_text_model_with_a_tokenizer():
    tokenizer = llava_processor().tokenizer
    gaze = regaze.wrap(tiny_llama(), tokenizer)
    inputs = gaze.inputs([None, None], ["How are you?", "What?"])
    for sample, question in enumerate(["How are you?", "What?"]):
        assert text_of(gaze, inputs, Role.QUERY, sample).strip() == question
        assert "ASSISTANT" in text_of(gaze, inputs, Role.TAIL, sample)
    ids = torch.tensor([[1, 30, 31, 32]])
    plain = regaze.wrap(tiny_llama())  # nothing known: everything is the query
    assert plain.tokens({"input_ids": ids}).roles.unique().tolist() == [Role.QUERY]


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([1, 2], r"^roles must be \[B, L\], got \[2\]$"),
        ([[[1]]], r"^roles must be \[B, L\], got \[1, 1, 1\]$"),
        ([[1, 2], [1]], r"^roles must be \[B, L\] with rows of one length: expected sequence of length 2"),
        ([[Role.OUTPUT, Role.TAIL, 7]], r"^roles are numbers of `Role`, 0 to 6; got 7$"),
        ([[-1, 2]], "^roles are numbers of `Role`, 0 to 6; got -1$"),
    ],
)
def test_roles_of_another_shape_or_number_are_refused(roles, message):
    with pytest.raises(InputError, match=message):
        TokenMap.from_roles(roles)


def test_a_map_of_given_roles():
    """Image tokens belong to view 0, of which no grid is known."""
    tokens = TokenMap.from_roles(torch.tensor([[1, 3, 0], [6, 5, 3]]))
    assert (tokens.batch, tokens.length, tokens.grids) == (2, 3, ((), ()))
    assert (tokens.roles.tolist(), tokens.roles.dtype) == ([[1, 3, 0], [6, 5, 3]], torch.uint8)
    assert (tokens.view.tolist(), tokens.view.dtype) == ([[-1, 0, -1], [-1, -1, 0]], torch.int32)
    assert (tokens.cell.tolist(), tokens.cell.dtype) == ([[-1] * 3] * 2, torch.int32)
    assert TokenMap.from_roles([[int(role) for role in Role]]).roles[0].tolist() == list(range(7))
    assert TokenMap.from_roles(torch.empty(0, 4)).length == 4
    with pytest.raises(InputError, match=r"^sample 1 has 0 views of images with a known grid, not view 0$"):
        tokens.image_cells(1)


#: Two images in five tokens: of two cells, in the wrong order, and of one.
PROMPT = PromptTokens(
    roles=(Role.SYSTEM, Role.IMAGE, Role.IMAGE, Role.IMAGE, Role.QUERY),
    view=(-1, 0, 0, 1, -1),
    cell=(-1, 1, 0, 0, -1),
    views=(View((1, 2), 0), View((1, 1), 1)),
)
TEXT = PromptTokens(roles=(Role.QUERY, Role.TAIL), view=(-1, -1), cell=(-1, -1))


def prompts_as_map() -> TokenMap:
    """The prompts above, the second padded on the left."""
    return TokenMap.from_samples([PROMPT, TEXT], torch.tensor([[1] * 5, [0, 0, 0, 1, 1]]))


def parts(tokens: TokenMap) -> tuple[list, list, list]:
    return tokens.roles.tolist(), tokens.view.tolist(), tokens.cell.tolist()


def test_samples_are_put_where_the_mask_is_visible():
    tokens = prompts_as_map()
    assert parts(tokens) == (
        [[2, 3, 3, 3, 5], [1, 1, 1, 5, 6]],
        [[-1, 0, 0, 1, -1], [-1] * 5],
        [[-1, 1, 0, 0, -1], [-1] * 5],
    )
    assert (tokens.roles.dtype, tokens.view.dtype, tokens.cell.dtype) == (
        torch.uint8,
        torch.int32,
        torch.int32,
    )
    assert tokens.views == (PROMPT.views, ())
    assert (PROMPT.images, TEXT.images) == (2, 0)
    right = TokenMap.from_samples([TEXT], torch.tensor([[1.0, 0.0, 1.0]]))
    assert right.roles.tolist() == [[5, 1, 6]]
    with pytest.raises(InputError, match=r"^row 1 shows 3 tokens, but its prompt has 2$"):
        TokenMap.from_samples([PROMPT, TEXT], torch.tensor([[1] * 5, [0, 0, 1, 1, 1]]))


def test_cells_are_found_per_sample_and_view():
    tokens = prompts_as_map()
    assert tokens.image_cells().tolist() == [2, 1]
    assert tokens.image_cells(0, 1).tolist() == [3]
    with pytest.raises(InputError, match=r"^there is no sample 2 in a batch of 2$"):
        tokens.image_cells(2)
    with pytest.raises(InputError, match=r"^sample 0 has 2 views of images with a known grid, not view 2$"):
        tokens.image_cells(0, 2)
    unplaced = TokenMap(tokens.roles, tokens.view, tokens.cell, ((View((0, 0)), View((1, 1))), ()))
    with pytest.raises(InputError, match=r"^sample 0 has 1 views of images with a known grid, not view 0$"):
        unplaced.image_cells(0, 0)
    assert unplaced.image_cells(0, 1).tolist() == [3]


def test_a_class_token_is_of_the_view_and_no_cell():
    tokens = TokenMap.from_samples(
        [PromptTokens((Role.IMAGE,) * 3, (0, 0, 0), (-1, 0, 1), (View((2, 1)),))], torch.ones(1, 3)
    )
    assert tokens.image_cells().tolist() == [1, 2]


def test_masks_and_columns_of_roles():
    tokens = prompts_as_map()
    assert tokens.mask(Role.IMAGE).tolist() == [[False, True, True, True, False], [False] * 5]
    assert tokens.mask(Role.QUERY, Role.TAIL).tolist() == [[False] * 4 + [True], [False] * 3 + [True] * 2]
    assert tokens.columns(Role.IMAGE).tolist() == [1, 2, 3]
    assert tokens.columns(Role.QUERY, 1).tolist() == [3]


def test_a_batch_is_repeated_cut_and_stacked_again():
    tokens = prompts_as_map()
    twice = tokens.repeat(2)
    order = [0, 0, 1, 1]
    assert parts(twice) == tuple([part[sample] for sample in order] for part in parts(tokens))
    assert twice.views == tuple(tokens.views[sample] for sample in order)
    second = twice.rows(slice(2, 3), first=3)
    assert parts(second) == ([[5, 6]], [[-1, -1]], [[-1, -1]])
    assert second.views == ((),)
    first = tokens.rows(slice(0, 1))
    assert parts(first) == ([[2, 3, 3, 3, 5]], [[-1, 0, 0, 1, -1]], [[-1, 1, 0, 0, -1]])
    again = TokenMap.stack([first, second])
    assert (parts(again), again.views) == (parts(tokens), tokens.views)


def test_the_last_token_is_the_last_that_is_no_padding():
    roles = [[1, 2, 5, 6], [2, 5, 6, 1], [5, 1, 1, 1], [5, 0, 0, 1]]
    assert TokenMap.from_roles(roles).last().int().argmax(1).tolist() == [3, 2, 0, 2]
    assert TokenMap.from_roles(roles).last().sum(1).tolist() == [1, 1, 1, 1]


def test_rows_that_predict_the_answer():
    """The last token of the prompt and those of the answer, wherever the padding is."""
    roles = [[1, 2, 6, 0, 0], [2, 5, 6, 0, 1], [2, 5, 6, 1, 1]]
    assert TokenMap.from_roles(roles).answering().int().tolist() == [
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 0, 0],
    ]


def test_tokens_become_padding():
    tokens = prompts_as_map().repeat(2)
    lost = torch.zeros(4, 5, dtype=torch.bool)
    lost[0, 3], lost[1, 4], lost[2, 3] = True, True, True  # an image token, a question, a question
    padded = tokens.padded_where(lost)
    assert parts(padded) == (
        [[2, 3, 3, 1, 5], [2, 3, 3, 3, 1], [1, 1, 1, 1, 6], [1, 1, 1, 5, 6]],
        [[-1, 0, 0, -1, -1], [-1, 0, 0, 1, -1], [-1] * 5, [-1] * 5],
        [[-1, 1, 0, -1, -1], [-1, 1, 0, 0, -1], [-1] * 5, [-1] * 5],
    )
    assert padded.views == ((), PROMPT.views, (), ())


def test_after_the_last_image():
    roles = [Role.SYSTEM, Role.IMAGE, Role.QUERY, Role.IMAGE, Role.SEPARATOR, Role.TAIL]
    tokens = TokenMap.from_roles(torch.tensor([[Role.PAD, *roles], [*roles, Role.PAD], [Role.SYSTEM] * 7]))
    want = [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 0], [0] * 7]
    assert tokens.after_last_image().int().tolist() == want


def test_after_image_skips_images_and_padding():
    roles = [[Role.PAD, Role.SYSTEM, Role.IMAGE, Role.SEPARATOR, Role.IMAGE, Role.QUERY]]
    assert TokenMap.from_roles(roles).after_image().tolist() == [[False, False, False, True, False, True]]
    roles = [[Role.IMAGE, Role.IMAGE, Role.QUERY, Role.TAIL, Role.PAD]]
    assert TokenMap.from_roles(roles).after_image().tolist() == [[False, False, True, True, False]]


def test_an_incomplete_image_is_an_error(gaze):
    ids = gaze.inputs([picture(0)], ["What?"])["input_ids"]
    with pytest.raises(InputError, match="63 neighbouring image tokens"):
        gaze.tokens({"input_ids": torch.cat([ids[:, :10], ids[:, 11:]], 1)})


def test_class_token_of_the_full_strategy_has_no_cell():
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
        vision_feature_select_strategy="full",
    )
    layout = family_of(config).read_layout([0] + [config.image_token_id] * 10, MediaInputs({}))
    assert layout.cell == [-1] + [-1, 0, 1, 2, 3] * 2
    assert layout.view == [-1] + [0] * 5 + [1] * 5
    assert layout.views == [View((2, 2), 0), View((2, 2), 1)]


def test_an_unknown_vision_family_says_so():
    config = SimpleNamespace(model_type="somethingnew", vision_config=SimpleNamespace())
    with pytest.raises(UnsupportedModelError, match="somethingnew"):
        family_of(config).read_layout([1, 2], MediaInputs({}))


@pytest.mark.parametrize(("count", "grid", "cells"), [(9, (3, 3), list(range(9))), (6, (0, 0), [-1] * 6)])
def test_an_image_token_that_a_config_names_is_a_guess_said_once(count, grid, cells):
    family = family_of(SimpleNamespace(model_type="somethingnew", image_token_index=7))
    ids = [1, *[7] * count, 2]
    with pytest.warns(GuessWarning, match="'somethingnew'.*7 is one image"):
        layout = family.read_layout(ids, MediaInputs({}))
    assert layout.views == [View(grid)]
    assert layout.cell == [-1, *cells, -1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        family.read_layout(ids, MediaInputs({}))


def test_ids_alone_do_not_tell_a_grid_of_any_shape():
    vision = SimpleNamespace(spatial_merge_size=2)
    family = family_of(SimpleNamespace(model_type="qwen2_vl", image_token_id=7, vision_config=vision))
    ids = [7] * 6 + [1] + [7] * 2
    layout = family.read_layout(ids, MediaInputs({"image_grid_thw": torch.tensor([[1, 4, 6], [1, 2, 4]])}))
    assert layout.views == [View((2, 3), 0), View((1, 2), 1)]
    with pytest.raises(InputError, match="'image_grid_thw', which its processor gives"):
        family.read_layout(ids, MediaInputs({}))
    with pytest.raises(InputError, match="1 x 2 x 4 patches, merged 2 x 2, but the prompt has 6 tokens"):
        family.read_layout(ids, MediaInputs({"image_grid_thw": torch.tensor([[1, 2, 4]])}))
    with pytest.raises(InputError, match="is of 1 images, but the prompts show more"):
        family.read_layout(ids, MediaInputs({"image_grid_thw": torch.tensor([[1, 4, 6]])}))
