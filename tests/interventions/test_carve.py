"""CARVE against the paper's hand examples, the authors' outputs and full forwards of the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import llava_processor, picture, small_var, tiny_llama
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil

import regaze
from regaze.errors import BadParameterError, InputError
from regaze.interventions.carve.crop import bounding_box, mask_image, zoom
from regaze.interventions.carve.method import CARVE, SHORT_ANSWER
from regaze.toolkit.analysis import visual_entropy
from regaze.toolkit.prompts.geometry import Geometry, geometry_of

#: CARVE for a model of six layers.
SMALL = {"layers": (2, 4)}


def maps(*steps: list[float]) -> torch.Tensor:
    """Attention of one layer at some steps on a grid of one row."""
    return torch.tensor(steps)[None, :, None]


# The paper's arithmetic ---------------------------------------------------------------------------------

ASKED, DESCRIBED = maps([0.10, 0.40, 0.30, 0.20]), maps([0.10, 0.20, 0.60, 0.10])


@pytest.mark.parametrize(("lam", "expected"), [(0.0, [1, 2, 0.5, 2]), (0.1, [0.5, 4 / 3, 3 / 7, 1.0])])
def test_contrast(lam, expected):
    fused = CARVE(lam=lam).fuse(ASKED, DESCRIBED)
    torch.testing.assert_close(fused[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_entropy():
    assert float(visual_entropy(ASKED.flatten())) == pytest.approx(1.279854, abs=1e-6)
    assert float(visual_entropy(DESCRIBED.flatten())) == pytest.approx(1.088900, abs=1e-6)
    assert float(visual_entropy(ASKED.flatten() * 0.01)) == pytest.approx(1.279854, abs=1e-6)  # renormalised
    assert float(visual_entropy(torch.ones(4))) == pytest.approx(np.log(4))
    assert float(visual_entropy(torch.tensor([1.0, 0.0]))) == 0.0


def test_steps_are_weighted_and_cut_to_the_shorter_answer():
    ones = torch.ones(1, 5, 2, 3)
    steps = torch.stack([ones[0, 0], 10 * ones[0, 0], 100 * ones[0, 0]])[None]
    for mode, expected in (("all", 1 + 2 * 10 + 3 * 100), ("first", 1), ("last", 100)):
        fused = CARVE(lam=0, steps=mode).fuse(steps, ones)
        torch.testing.assert_close(fused, torch.full((2, 3), float(expected), dtype=torch.float64))
    assert CARVE(lam=0).fuse(steps[:, :2], ones)[0, 0] == 21
    assert CARVE(lam=0).fuse(steps, ones[:, :2])[0, 0] == 21
    two_layers = CARVE(lam=0).fuse(steps.repeat(2, 1, 1, 1), ones.repeat(2, 1, 1, 1))
    assert two_layers[0, 0] == 2 * 321


def test_cells_that_the_description_ignores_do_not_break_the_contrast():
    fused = CARVE(lam=0).fuse(maps([0.0, 0.5]), maps([0.0, 0.0]))
    assert torch.isfinite(fused).all()
    assert fused[0, 0] == 0


def test_threshold_region_box_and_zoom():
    values, image = np.arange(16.0).reshape(4, 4), picture(0, 4, 4)
    mask = CARVE(share=0.2).region_mask(values, np.ones((4, 4), bool))
    assert np.array_equal(mask, values >= 12)
    assert bounding_box(mask) == (0, 3, 4, 4)
    assert zoom(image, bounding_box(mask)).size == (16, 4)


def three_blobs() -> np.ndarray:
    """Areas 6, 4 and 1; sums 6, 8 and 5; the last two touch at a corner only."""
    values = np.zeros((8, 8))
    values[0:2, 0:3], values[4:6, 4:6], values[6, 6] = 1.0, 2.0, 5.0
    return values


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"regions_kept": 1}, [2.0]),
        ({"regions_kept": 2}, [1.0, 2.0]),
        ({"regions_kept": 9}, [1.0, 2.0, 5.0]),
        ({"regions_kept": 1, "rank": "area"}, [1.0]),
        ({"regions_kept": 1, "rank": "large"}, [1.0, 2.0, 5.0]),
        ({"regions_kept": 1, "as_released": True}, [2.0]),
    ],
)
def test_regions(changes, kept):
    values = three_blobs()
    mask = CARVE(**{"share": 11 / 64, **changes}).region_mask(values, np.ones((8, 8), bool))
    assert np.array_equal(mask, np.isin(values, kept))


def test_k_is_a_maximum_or_as_released_a_minimum():
    values = np.zeros((40, 40))
    values[::4, ::4] = np.arange(1, 101).reshape(10, 10)  # 100 single pixels
    everywhere = np.ones((40, 40), bool)
    options = {"share": 0.0625, "regions_kept": 3}
    assert CARVE(**options).region_mask(values, everywhere).sum() == 3
    assert CARVE(**options, as_released=True).region_mask(values, everywhere).sum() == int(0.0625 * 100)


def test_specks_are_dropped_by_large():
    values = np.zeros((60, 60))
    values[:40, :50], values[50, 50] = 1.0, 1.0  # 2000 pixels and one: less than a thousandth
    carve = CARVE(share=2001 / 3600, rank="large")
    assert carve.region_mask(values, np.ones((60, 60), bool)).sum() == 2000


# The authors' outputs -----------------------------------------------------------------------------------


def golden(goldens, name: str):
    folder = goldens / "methods" / "carve"
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def test_golden_fuse(goldens):
    spec, tensors = golden(goldens, "fuse")
    for name, case in spec["cases"].items():
        params = case["params"]
        rows, columns = params["grid"]
        asked, described = (
            tensors[f"{name}/in/{which}"][:, params["fused_layers"]]
            .unflatten(2, (rows, columns))
            .transpose(0, 1)
            for which in ("question", "general")
        )
        carve = CARVE(lam=params["lam"], steps=params["step_mode"])
        size = (params["image_width"], params["image_height"])
        got = Geometry.squash(size, (columns * 14, rows * 14)).to_pixels(carve.fuse(asked, described))
        expected = tensors[f"{name}/out/fused"]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6 * float(expected.max()))


def test_golden_mask_and_crop(goldens):
    spec, tensors = golden(goldens, "mask_crop")
    for name, case in spec["cases"].items():
        params = case["params"]
        rank = {"attention_sum": "contrast", "size": "area"}[params["strategy"]]
        for as_released in (False, True):
            carve = CARVE(
                share=params["top_percent"],
                regions_kept=params["min_keep_regions"],
                rank=rank,
                as_released=as_released,
            )
            values = tensors[f"{name}/in/map"].numpy()
            mask = carve.region_mask(values, np.ones(values.shape, bool))
            assert np.array_equal(mask, tensors[f"{name}/out/mask"].numpy().astype(bool))
        image = Image.fromarray(tensors[f"{name}/in/image"].numpy())
        masked, box = mask_image(image, mask), bounding_box(mask)
        assert np.array_equal(np.asarray(masked), tensors[f"{name}/out/masked"].numpy())
        assert list(box) == tensors[f"{name}/out/box"].tolist()
        crop = np.asarray(zoom(masked, box)).astype(float)
        expected = tensors[f"{name}/out/crop"].numpy()
        assert crop.shape == expected.shape
        assert np.abs(crop - expected).mean() <= 2


# What must hold for any attention -----------------------------------------------------------------------


def random_maps(seed: int, layers: int = 2, steps: int = 3, grid: tuple[int, int] = (5, 8)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(layers, steps, *grid, generator=generator) + 0.01 for _ in range(2)]


WIDE = Geometry.squash((48, 30), (8 * 14, 5 * 14))


@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_invariants_of_the_mask(seed, share):
    asked, described = random_maps(seed)
    image = picture(seed, 48, 30)

    def mask(a=asked, d=described, **changes) -> np.ndarray:
        options = {"share": share, "lam": 0.0, "regions_kept": 99, **changes}
        return CARVE(**options).refine(image, a, d, WIDE).mask

    plain = mask()
    assert plain.sum() >= int(share * (plain.size - 1))
    assert np.array_equal(mask(d=8 * described), plain)  # scaling A^G rescales the map
    assert np.array_equal(mask(regions_kept=1000), plain)  # more regions than there are
    assert (mask(share=share / 2) <= plain).all()
    assert (mask(regions_kept=1) <= mask(regions_kept=2)).all()
    large = mask(lam=1e9)
    assert (large == mask(d=torch.ones_like(described))).mean() > 0.999  # A^Q alone decides


def test_the_same_attention_twice_keeps_everything():
    asked, _ = random_maps(3)
    image = picture(3, 48, 30)
    found = CARVE(lam=0.0, share=0.2).refine(image, asked, asked, WIDE)
    assert found.mask.all()
    assert found.image is image
    assert found.box == (0, 0, 48, 30)


def test_a_planted_patch_is_in_the_box_and_is_what_is_seen_then():
    """A wide photo under LLaVA's centre crop, and a long grid of 256 tokens under Qwen's squash."""
    wide = geometry_of(CLIPImageProcessorPil(), (640, 320)), (16, 16), (7, 11)
    long = Geometry.squash((640, 160), (32 * 28, 8 * 28)), (8, 32), (5, 20)
    for geometry, grid, cell in (wide, long):
        image = picture(1, *geometry.original)
        asked, described = torch.full((1, 1, *grid), 0.001), torch.full((1, 1, *grid), 0.001)
        asked[0, 0, cell[0], cell[1]] = 0.1
        found = CARVE(share=0.01, lam=1e-8).refine(image, asked, described, geometry)
        left, top, right, bottom = geometry.cell_box(*cell, grid)
        centre = (int((top + bottom) / 2), int((left + right) / 2))
        assert found.mask[centre]
        assert found.box[0] <= centre[1] < found.box[2]
        assert found.box[1] <= centre[0] < found.box[3]
        assert found.box[2] - found.box[0] <= 3 * (right - left)
        assert not found.mask[~geometry.visible(grid).numpy()].any()
        assert float(found.map()[centre]) == pytest.approx(float(found.map().max()), rel=0.1)


# On a model ---------------------------------------------------------------------------------------------

QUESTIONS = ["Is there a dog?", "What is left of the big red bus that stands in the street?", "Why?"]
PICTURES = [picture(0), picture(1, 160, 112), picture(2, 100, 170)]


def carved(gaze, carve: CARVE, which=slice(None), **options):
    return carve.answer(gaze, PICTURES[which], QUESTIONS[which], **{"max_new_tokens": 5, **options})


def test_results_hold_everything_on_the_way(gaze):
    answers = carved(gaze, CARVE(**SMALL))
    plain = gaze.ask(PICTURES, QUESTIONS, max_new_tokens=5)
    assert [a.plain_answer for a in answers] == plain
    for answer, image in zip(answers, PICTURES, strict=True):
        found = answer.refinement
        assert str(answer) == answer.answer
        assert found.question.shape == found.general.shape == (3, 5, 8, 8)
        assert found.mask.shape == (image.height, image.width)
        assert 0 < found.mask.sum() < found.mask.size
        assert found.map().shape == found.mask.shape
        assert 0 < found.entropy() <= np.log(64)
    refined = [a.refinement.image for a in answers]
    assert gaze.ask(refined, QUESTIONS, max_new_tokens=5) == [a.answer for a in answers]


def test_recorded_attention_is_that_of_a_full_forward(gaze, model):
    (answer,) = carved(gaze, CARVE(**SMALL), slice(1, 2))
    inputs = gaze.inputs(PICTURES[1:2], QUESTIONS[1:2])
    out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    length = inputs["input_ids"].shape[1]
    columns = gaze.tokens(inputs).image_cells()
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            weights = model(
                input_ids=out, pixel_values=inputs["pixel_values"], output_attentions=True
            ).attentions
    finally:
        model.set_attn_implementation({"text_config": before})
    expected = torch.stack([weights[layer][0].mean(0) for layer in (2, 3, 4)])
    expected = expected[:, length - 1 : length + 4, columns].unflatten(-1, (8, 8))
    torch.testing.assert_close(answer.refinement.question, expected, rtol=1e-4, atol=1e-7)


def test_a_batch_is_its_singles(gaze):
    batch = carved(gaze, CARVE(**SMALL))
    for options in ({"batch_size": 1}, {"batch_size": 2}):
        for one, other in zip(batch, carved(gaze, CARVE(**SMALL), **options), strict=True):
            assert (one.answer, one.plain_answer) == (other.answer, other.plain_answer)
            torch.testing.assert_close(one.refinement.fused, other.refinement.fused, rtol=1e-4, atol=1e-6)
            assert (one.refinement.mask == other.refinement.mask).mean() > 0.999


def test_each_answer_has_its_own_steps(gaze):
    """Rows that go on only because another row of the batch does are no steps of the answer."""
    inputs = gaze.inputs(PICTURES, QUESTIONS)
    out = gaze.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    ends = int(new[1, 2])  # an id that ends the second answer after three tokens, at the latest
    expected = [int((row == ends).nonzero()[0]) + 1 if (row == ends).any() else 6 for row in new]
    assert len(set(expected)) > 1
    answers = carved(gaze, CARVE(**SMALL), max_new_tokens=6, eos_token_id=ends)
    assert [a.refinement.question.shape[1] for a in answers] == expected
    singles = carved(gaze, CARVE(**SMALL), max_new_tokens=6, eos_token_id=ends, batch_size=1)
    assert [a.refinement.question.shape[1] for a in singles] == expected
    assert [a.refinement.general.shape[1] for a in singles] == [
        a.refinement.general.shape[1] for a in answers
    ]


def test_keeping_everything_is_asking_plainly(gaze):
    answers = carved(gaze, CARVE(**SMALL, share=1.0))
    for answer, image in zip(answers, PICTURES, strict=True):
        assert answer.answer == answer.plain_answer
        assert np.array_equal(np.asarray(answer.refinement.image), np.asarray(image))


def test_as_released_shows_both_images_and_asks_for_short_answers(gaze, monkeypatch):
    asked, plain_ask = [], gaze.ask

    def watched(images, questions, **options):
        asked.append((images, questions, options["max_new_tokens"]))
        return plain_ask(images, questions, **{**options, "max_new_tokens": 2})

    monkeypatch.setattr(gaze, "ask", watched)
    answers = CARVE.from_released(**SMALL).answer(gaze, PICTURES[:2], QUESTIONS[:2])
    assert [len(images[0]) for images, _, _ in asked] == [1, 1, 2]
    assert np.array_equal(np.asarray(asked[2][0][1][0]), np.asarray(PICTURES[1]))
    assert asked[2][0][1][1] is answers[1].refinement.image
    assert all(question.endswith(SHORT_ANSWER) for _, questions, _ in asked for question in questions)
    assert [tokens for _, _, tokens in asked] == [32, 2, 32]  # no more of a description than of the answer
    asked.clear()
    CARVE(**SMALL).answer(gaze, PICTURES[:1], QUESTIONS[:1], max_new_tokens=3)
    assert [len(images[0]) for images, _, _ in asked] == [1, 1, 1]
    assert asked[0][1] == asked[2][1] == QUESTIONS[:1]


def test_interventions_may_be_active_around_it(gaze):
    with gaze.using(small_var()):
        answers = carved(gaze, CARVE(**SMALL))
        assert [a.plain_answer for a in answers] == gaze.ask(PICTURES, QUESTIONS, max_new_tokens=5)


def test_it_is_a_method_of_ask(gaze):
    texts = gaze.ask(PICTURES, QUESTIONS, method=CARVE(**SMALL), max_new_tokens=5)
    assert texts == [answer.answer for answer in carved(gaze, CARVE(**SMALL))]
    assert texts != gaze.ask(PICTURES, QUESTIONS, max_new_tokens=5)


def test_default_layers_are_scaled_to_a_model_that_has_fewer(gaze):
    (answer,) = carved(gaze, CARVE(), slice(0, 1))
    (same,) = carved(gaze, CARVE(layers=(4, 4)), slice(0, 1))
    assert torch.equal(answer.refinement.question, same.refinement.question)


def test_progress_and_single_questions(gaze):
    counts = []
    carved(gaze, CARVE(**SMALL), batch_size=2, progress=counts.append)
    assert counts == [2, 1]
    (alone,) = CARVE(**SMALL).answer(gaze, PICTURES[0], QUESTIONS[0], max_new_tokens=5)
    assert alone.answer == carved(gaze, CARVE(**SMALL), slice(0, 1))[0].answer


# Wrong use ----------------------------------------------------------------------------------------------


def test_released_versions():
    settings = [(c.steps, c.rank) for c in map(CARVE.from_released, (1, 2, 3, 4))]
    assert settings == [("first", "large"), ("first", "area"), ("first", "contrast"), ("all", "contrast")]
    with pytest.raises(BadParameterError, match="versions 1 to 4"):
        CARVE.from_released(5)


def test_json():
    carve = CARVE(share=0.2, layers=(1, 2), as_released=True)
    assert CARVE.from_dict(json.loads(json.dumps(carve.to_dict()))) == carve
    assert carve.to_dict()["method"] == "carve"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("share", 0.0),
        ("share", 1.1),
        ("regions_kept", 0),
        ("layers", (4, 2)),
        ("layers", "high"),
        ("lam", -1.0),
    ],
)
def test_parameters_without_meaning(name, value):
    with pytest.raises(BadParameterError, match=name):
        CARVE(**{name: value})


def test_modes_without_meaning():
    with pytest.raises(BadParameterError, match="steps must be 'all', 'first' or 'last', got 't_end'"):
        CARVE(steps="t_end")
    with pytest.raises(BadParameterError, match="rank must be 'contrast', 'area' or 'large', got 'size'"):
        CARVE(rank="size")


def test_what_carve_cannot_do(gaze):
    with pytest.raises(BadParameterError, match=r"layers 0\.\.5"):
        carved(gaze, CARVE(layers=(20, 25)))
    with pytest.raises(BadParameterError, match="beam"):
        carved(gaze, CARVE(**SMALL), num_beams=2)
    with pytest.raises(InputError, match="one image per question"):
        CARVE(**SMALL).answer(gaze, [PICTURES[:2]], QUESTIONS[:1])
    with pytest.raises(InputError, match="one image per question"):
        CARVE(**SMALL).answer(gaze, [None], QUESTIONS[:1])
    with pytest.raises(InputError, match="3 images for 1 questions"):
        CARVE(**SMALL).answer(gaze, PICTURES, QUESTIONS[:1])
    with (
        pytest.raises(BadParameterError, match=r"several passes: write gaze\.ask\(\.\.\., method=CARVE"),
        gaze.using(CARVE()),
    ):
        pass
    text = regaze.wrap(tiny_llama(), llava_processor().tokenizer)
    with pytest.raises(InputError, match="text-only"):
        CARVE(layers=(1, 1)).answer(text, PICTURES[:1], QUESTIONS[:1])
