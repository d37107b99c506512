"""Faithfulness of maps small enough to judge by hand: pointing, agreement, curves, intervals, boxes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from regaze.errors import BadParameterError, InputError, ShapeError
from regaze.toolkit.analysis.boxes import LabelledBox, boxes_of, covered_share, holds_centre, read_boxes
from regaze.toolkit.analysis.faithfulness import (
    agreement,
    mass_inside,
    occlusion_saliency,
    pearson,
    perturbation_curve,
    points_inside,
    random_mask_saliency,
    random_roll,
    shuffle_regions,
    spearman,
)
from regaze.toolkit.analysis.intervals import estimate
from regaze.toolkit.prompts.geometry import Geometry

# Boxes --------------------------------------------------------------------------------------------------

COCO = {
    "info": {"year": 2017},
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "empty.jpg"}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 18, "name": "hot dog"}],
    "annotations": [
        {"image_id": 7, "category_id": 18, "bbox": [10, 20.5, 30, 40], "iscrowd": 0},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5]},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 100], "iscrowd": 1},
    ],
}


def test_coco_boxes_become_corners_and_crowds_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text(json.dumps(COCO))
    boxes = read_boxes(tmp_path / "instances.json")
    assert boxes["empty.jpg"] == ()
    assert boxes["a.jpg"] == (LabelledBox("hot dog", (10, 20.5, 40, 60.5)), LabelledBox("dog", (0, 0, 5, 5)))
    assert boxes_of(boxes["a.jpg"], "dog") == [(0, 0, 5, 5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"boxes\.json:1: not valid JSON"),
        ("[" * 10_000, "nested deeper than 100 levels"),
        ("[]", "is not a COCO-style file: the whole: Input should be a valid dictionary"),
        (json.dumps({**COCO, "categories": [{"id": 1}]}), r"categories\.0\.name: Field required"),
        (json.dumps({**COCO, "images": COCO["images"] * 2}), "images has the id 7 twice"),
        (
            json.dumps({**COCO, "images": [{"id": i, "file_name": "a.jpg"} for i in (7, 8)]}),
            "the same file_name",
        ),
        (json.dumps({**COCO, "annotations": 7}), "annotations: Input should be a valid list"),
        (
            json.dumps({**COCO, "annotations": [{"image_id": 8, "category_id": 1, "bbox": [0, 0, 1, 1]}]}),
            r"annotations\.0 is of an unknown image",
        ),
        (
            json.dumps({**COCO, "annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]}),
            r"annotations\.0\.bbox: List should have at least 4 items",
        ),
        (
            json.dumps({**COCO, "annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, "x"]}]}),
            r"annotations\.0\.bbox\.3: Input should be a valid number",
        ),
        (
            json.dumps({**COCO, "annotations": [{"image_id": [7], "category_id": 1, "bbox": [0, 0, 1, 1]}]}),
            r"annotations\.0\.image_id",
        ),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_boxes(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json"):
        read_boxes(tmp_path / "gone.json")


def test_a_box_covers_shares_of_cells_and_holds_centres() -> None:
    geometry = Geometry.squash((40, 20), (80, 40))  # the model sees the image twice as large
    box = (5.0, 0.0, 20.0, 10.0)  # cells are 10 x 10 pixels of the image
    share = covered_share([box], geometry, (2, 4))
    assert share.flatten().tolist() == pytest.approx([0.5, 1, 0, 0, 0, 0, 0, 0])
    assert holds_centre([box], geometry, (2, 4)).tolist() == [[True, True, False, False], [False] * 4]
    assert holds_centre([box], geometry, (2, 4), tolerance=5.5).tolist() == [[True, True, True, False]] * 2
    both = covered_share([box, (0.0, 0.0, 20.0, 10.0)], geometry, (2, 4))  # overlap counts once
    assert both.flatten().tolist() == pytest.approx([1, 1, 0, 0, 0, 0, 0, 0])
    with pytest.raises(ShapeError, match="does not meet"):
        covered_share([(50.0, 0.0, 60.0, 5.0)], geometry, (2, 4))


def test_padding_shows_nothing() -> None:
    padded = Geometry((40, 20), (40, 40), (1, 1), (0, 10))  # ten rows of padding above and below
    everything = [(0.0, 0.0, 40.0, 20.0)]
    assert holds_centre(everything, padded, (4, 4)).any(1).tolist() == [False, True, True, False]
    assert covered_share(everything, padded, (4, 4)).sum(1).tolist() == pytest.approx([0, 4, 4, 0])


# Pointing -----------------------------------------------------------------------------------------------

THING = torch.tensor([[0, 1, 0], [0, 1, 0]], dtype=torch.bool)


def test_pointing_by_hand() -> None:
    maps = torch.tensor(
        [
            [[0.1, 0.5, 0.2], [0.1, 0.1, 0.0]],  # on the thing
            [[0.6, 0.5, 0.2], [0.1, 0.9, 0.0]],  # on its other cell
            [[0.6, 0.5, 0.2], [0.1, 0.1, 0.0]],  # beside it
            [[0.6, 0.6, 0.2], [0.6, 0.1, 0.0]],  # a tie of three, one of them on it
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],  # flat
        ]
    )
    assert points_inside(maps, THING).tolist() == pytest.approx([1, 1, 0, 1 / 3, 1 / 3])
    share = THING * torch.tensor([[1.0], [0.5]])
    assert mass_inside(maps[0], share).item() == pytest.approx(0.55)
    assert mass_inside(torch.tensor([[-1.0, 1, 0], [0, 0, 1]]), share).item() == pytest.approx(0.5)
    assert mass_inside(maps[4], share).isnan()
    assert mass_inside(torch.ones(2, 3), share).item() == pytest.approx(share.mean().item())


def test_a_broken_map_has_no_point() -> None:
    assert points_inside(torch.tensor([[math.nan, 1.0], [0, 0]]), torch.ones(2, 2)).isnan()


def test_a_shuffled_map_points_as_chance_does() -> None:
    peak = torch.zeros(2, 3)
    peak[0, 1] = 1  # always a hit
    assert points_inside(peak, THING).item() == 1
    many = shuffle_regions(peak.expand(4000, 2, 3), seed=3, dims=2)
    assert many.flatten(1).sort(1).values.equal(peak.flatten().sort().values.expand(4000, 6))
    hits = estimate(points_inside(many, THING))
    assert hits.low < 1 / 3 < hits.high
    assert hits.high - hits.low < 0.04


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 5))
def test_a_turn_keeps_the_neighbours(n: int, seed: int) -> None:
    maps = torch.arange(n).expand(3, n)
    for row in random_roll(maps, seed):
        assert not row.equal(maps[0])
        assert set(torch.remainder(row.diff(), n).tolist()) == {1}


def test_a_flat_tensor_is_no_map() -> None:
    with pytest.raises(ShapeError, match="rows, columns"):
        points_inside(torch.ones(4), torch.ones(4))


# Agreement ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(3, 30), st.integers(0, 1000))
def test_correlations_are_those_of_scipy(n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, 4, n)), generator.integers(0, 4, (2, 4, n)).astype(float)  # ties
    b[..., 0] += 10  # never constant
    ours = pearson(torch.tensor(a), torch.tensor(b)), spearman(torch.tensor(a), torch.tensor(b))
    for i in range(2):
        for j in range(4):
            assert ours[0][i, j].item() == pytest.approx(stats.pearsonr(a[i, j], b[i, j]).statistic)
            assert ours[1][i, j].item() == pytest.approx(stats.spearmanr(a[i, j], b[i, j]).statistic)


def test_attention_proportional_to_saliency_agrees_fully() -> None:
    saliency = torch.rand(5, 40, generator=torch.Generator().manual_seed(0))
    full = agreement(3 * saliency + 0.1, saliency)
    assert full.pooled == pytest.approx(1)
    assert full.per_token.tolist() == pytest.approx([1] * 5)
    assert agreement(saliency.exp(), saliency, rank=True).mean == pytest.approx(1)
    many = torch.rand(200, 40, generator=torch.Generator().manual_seed(1))
    assert abs(agreement(shuffle_regions(many), many).mean) < 0.03


def test_pooled_agreement_rewards_knowing_which_token_matters() -> None:
    saliency = torch.tensor([[0.0, 0.1, 0.0, 0.1], [5.0, 5.1, 5.0, 5.1]])
    wrong_place = torch.tensor([[0.1, 0.0, 0.1, 0.0], [5.1, 5.0, 5.1, 5.0]])
    both = agreement(wrong_place, saliency)
    assert both.per_token.tolist() == pytest.approx([-1, -1])
    assert both.pooled > 0.99


def test_a_constant_map_agrees_with_nothing() -> None:
    maps = torch.tensor([[0.1] * 7, [0, 1, 2, 3, 4, 5, 6.0]])
    result = agreement(maps, torch.arange(7.0).expand(2, 7))
    assert result.per_token[0].isnan()
    assert result.mean == pytest.approx(1)


def test_maps_of_different_shapes_do_not_compare() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 3\], \[2, 4\]"):
        pearson(torch.ones(2, 3), torch.ones(2, 4))


# Saliency by hiding -------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([[2.0, 0.0, 1.0, 0.5], [0.0, 3.0, 0.0, 0.0]])  # [tokens, regions]


def additive(hidden: Tensor) -> Tensor:
    """An answer each of whose tokens loses a fixed number of nats for every hidden region."""
    return -1.0 - hidden.float() @ WEIGHTS.T


def either(hidden: Tensor) -> Tensor:
    """An answer that one of the first two regions is enough for."""
    return -5.0 * (hidden[:, :1] & hidden[:, 1:2]).float()


def test_occlusion_finds_what_each_token_loses() -> None:
    assert occlusion_saliency(additive, 4).equal(WEIGHTS)


def test_random_masks_find_the_same_where_regions_add_up() -> None:
    estimated = random_mask_saliency(additive, 4, masks=8000, seed=1)
    assert (estimated - WEIGHTS).abs().max() < 0.15


def test_random_masks_see_regions_that_stand_in_for_each_other() -> None:
    assert occlusion_saliency(either, 4).abs().max() == 0
    estimated = random_mask_saliency(either, 4, masks=8000)[0]
    assert estimated[:2].tolist() == pytest.approx([2.5, 2.5], abs=0.2)
    assert estimated[2:].abs().max() < 0.2


def test_random_masks_need_a_share_and_masks() -> None:
    with pytest.raises(BadParameterError, match="at least 2"):
        random_mask_saliency(additive, 4, masks=1)


# Curves -------------------------------------------------------------------------------------------------


def test_curves_by_hand() -> None:
    importance = WEIGHTS.sum(0)  # 2, 3, 1, .5
    deletion = perturbation_curve(additive, importance, "deletion", points=5)
    assert deletion.share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert deletion.score.tolist() == [-2, -5, -7, -8, -8.5]
    assert deletion.area.item() == pytest.approx((-1 - 5 - 7 - 8 - 4.25) / 4)
    insertion = perturbation_curve(additive, importance, "insertion", points=5)
    assert insertion.score.tolist() == [-8.5, -5.5, -3.5, -2.5, -2]


def test_the_true_order_is_the_best_order() -> None:
    orders = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(24)])
    maps = torch.cat([WEIGHTS.sum(0, keepdim=True), orders])
    deletion = perturbation_curve(additive, maps, "deletion", points=5).area
    insertion = perturbation_curve(additive, maps, "insertion", points=5).area
    assert deletion.argmin() == 0
    assert insertion.argmax() == 0


def test_ties_come_in_random_order() -> None:
    flat = torch.zeros(400, 4)
    curve = perturbation_curve(additive, flat, "deletion", points=5, seed=2)
    assert curve.score.std(0)[1:4].min() > 0.1
    mean_weight = WEIGHTS.sum(0).mean().item()
    assert curve.score[:, 1].mean().item() == pytest.approx(-2 - mean_weight, abs=0.2)


def test_variants_that_curves_share_run_once() -> None:
    seen = []

    def counting(hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return additive(hidden)

    perturbation_curve(counting, torch.tensor([[4.0, 3, 2, 1], [4, 3, 1, 2]]), points=5)
    assert seen == [6]  # both ends, after one, after two, and two ways to be without three


def test_more_points_than_regions_and_bad_arguments() -> None:
    assert perturbation_curve(additive, torch.arange(4.0), points=17).share.tolist() == [
        0,
        0.25,
        0.5,
        0.75,
        1,
    ]
    with pytest.raises(BadParameterError, match="deletion"):
        perturbation_curve(additive, torch.arange(4.0), "removal")  # type: ignore[arg-type]
    with pytest.raises(BadParameterError, match="2 points"):
        perturbation_curve(additive, torch.arange(4.0), points=1)


# Intervals ----------------------------------------------------------------------------------------------


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    found = [estimate(generator.normal(3, 1, 60), resamples=500, seed=i) for i in range(200)]
    covered = np.mean([each.low < 3 < each.high for each in found])
    assert 0.90 < covered < 0.985  # 0.95 +- three standard errors, less the bootstrap's known shortfall


def test_what_is_undefined_is_left_out_and_counted() -> None:
    result = estimate([1.0, math.nan, 3.0])
    assert (result.value, result.samples, result.undefined) == (2.0, 2, 1)
    assert str(estimate([1.0, 1.0])) == "1.000 [1.000, 1.000]"
    alone = estimate([2.0])
    assert (alone.value, alone.samples) == (2.0, 1)
    assert math.isnan(alone.low)
    with pytest.raises(InputError, match="none of 1 samples"):
        estimate([math.nan])
    with pytest.raises(InputError, match="one number per sample"):
        estimate(torch.ones(2, 2))
