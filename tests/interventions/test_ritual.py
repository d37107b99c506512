"""RITUAL: its sum, its six transforms, and scores against separate forwards about the transformed images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding_checks import (
    answer_of,
    assert_same_scores,
    check_batch,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    close_as_goldens_ask,
    golden,
    inputs_of,
    plain_logits,
)
from models import logits_of, picture
from PIL import Image

from regaze.errors import BadParameterError, InputError, UnsupportedModelError
from regaze.interventions.contrastive import add_logits
from regaze.interventions.controls import Sharpen
from regaze.interventions.ritual import RITUAL
from regaze.interventions.ritual.transforms import TRANSFORMS, drawn
from regaze.toolkit.model.logits import combine
from regaze.toolkit.prompts.pixels import seen_images, to_pixels


def added(main, other, alpha, beta, where=None):
    return combine(main, [add_logits(main, other, alpha, beta, where)])


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    main, other = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]]), torch.tensor([[[1.0, 2.0, 0.0, 1.0]]])
    scores = added(main, other, 3.0, 0.1)
    assert torch.equal(scores, torch.tensor([[[5.0, 7.0, 0.0, -torch.inf]]]))
    want = torch.tensor([0.119107, 0.880090, 0.000803, 0.0])
    torch.testing.assert_close(scores.softmax(-1)[0, 0], want, rtol=0, atol=1e-6)
    sharper = added(main, main, 3.0, 0.1).softmax(-1)[0, 0]
    torch.testing.assert_close(sharper, torch.tensor([0.981690, 0.017980, 0.000329, 0.0]), rtol=0, atol=1e-6)


def test_golden_combine(shared):
    spec, tensors = golden(shared / "goldens", "ritual", "combine")
    for name, case in spec["cases"].items():
        params = case["params"]
        main, other = (tensors[f"{name}/in/logits_{part}"] for part in ("main", "second"))
        for step, want in enumerate(tensors[f"{name}/out/scores"]):
            got = added(main[step][:, None], other[step][:, None], params["alpha"], params["beta"])
            close_as_goldens_ask(got[:, 0], want, atol=5e-6)
    assert len(spec["cases"]) >= 3


def test_what_it_has_to_beat():
    """Equal logits added are a lower temperature."""
    assert RITUAL(beta=0.3).controls() == (Sharpen(3.0, 0.3),)
    assert RITUAL(alpha=0.0).controls() == ()


def test_rows_outside_are_left_alone():
    main, other = torch.randn(3, 1, 9), torch.randn(3, 1, 9)
    where = torch.tensor([True, False, True])[:, None, None]
    mixed = added(main, other, 3.0, 0.9, where)
    assert torch.equal(mixed[1], main[1])
    assert torch.equal(mixed[[0, 2]], added(main, other, 3.0, 0.9)[[0, 2]])


# The transforms ---------------------------------------------------------------------------------------


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int32)


def test_flips_are_exact():
    image = picture(1, 40, 30)
    assert (pixels(drawn(image, "horizontal_flip", 0)) == pixels(image)[:, ::-1]).all()
    assert (pixels(drawn(image, "vertical_flip", 0)) == pixels(image)[::-1]).all()


def test_a_blur_is_a_gaussian_of_13_pixels():
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    blurred = pixels(drawn(Image.fromarray(point), "blur", 0))[:, :, 0]
    assert blurred[20].nonzero()[0].min() >= 14
    weights = np.exp(-0.5 * (np.arange(-6, 7) / np.linspace(1.5, 2.0, 101)[:, None]) ** 2)
    peaks = 255 * (weights / weights.sum(1, keepdims=True))[:, 6] ** 2
    assert peaks.min() - 1 <= blurred[20, 20] <= peaks.max() + 1
    flat = Image.new("RGB", (9, 9), (10, 90, 200))
    assert (pixels(drawn(flat, "blur", 0)) == pixels(flat)).all()


def test_a_rotation_keeps_the_centre_and_turns_in_black():
    image = Image.new("RGB", (51, 51), (255, 255, 255))
    found = [pixels(drawn(image, "rotation", seed)) for seed in range(4)]
    for turned in found:
        assert (turned[25, 25] == 255).all()
        assert set(np.unique(turned)) <= {0, 255}
    assert any((turned[0, 0] == 0).all() for turned in found)


def test_a_crop_shows_a_part_in_the_size_of_the_image():
    ramp = np.zeros((60, 80, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(80), np.arange(60)[:, None]
    image, widths = Image.fromarray(ramp), []
    for seed in range(8):
        part = drawn(image, "crop", seed)
        assert part.size == image.size
        shown = pixels(part)
        widths.append((np.ptp(shown[..., 0]) + 1) * (np.ptp(shown[..., 1]) + 1) / (60 * 80))
        assert (np.diff(shown[..., 0], axis=1) >= 0).all()
    assert 0.05 < min(widths) < 0.35 < 0.5 < max(widths) <= 1.0


def test_colours_keep_what_has_none():
    black = Image.new("RGB", (8, 8))
    assert (pixels(drawn(black, "colour", 3)) == 0).all()
    image = picture(2, 16, 16)
    changed = pixels(drawn(image, "colour", 3))
    assert changed.shape == (16, 16, 3)
    assert (changed != pixels(image)).any()


def test_a_draw_follows_from_the_seed_and_the_image_alone():
    images = [picture(seed, 20, 20) for seed in range(60)]
    np.random.seed(1)  # noqa: NPY002
    first = [pixels(drawn(image, "random", 0)) for image in images]
    again = [pixels(drawn(image, "random", 0)) for image in reversed(images)][::-1]
    other = [pixels(drawn(image, "random", 1)) for image in images]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert sum((a != b).any() for a, b in zip(first, other, strict=True)) > 30
    kinds = {
        name
        for image, result in zip(images, first, strict=True)
        for name in ("horizontal_flip", "vertical_flip")
        if (pixels(drawn(image, name, 0)) == result).all()
    }
    assert kinds == {"horizontal_flip", "vertical_flip"}
    assert len(TRANSFORMS) == 6


# In a model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["horizontal_flip", "blur", "random", "function"])
def test_every_step_adds_a_fresh_forward_about_the_transformed_image(model, gaze, transform):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    given = (lambda image: image.rotate(90)) if transform == "function" else transform
    answer, got = answer_of(gaze, inputs, RITUAL(transform=given, seed=3))
    processor, layout = gaze.processor.image_processor, gaze.family.pixels
    (seen,) = seen_images(layout, processor, inputs)
    shown = given(seen) if callable(given) else drawn(seen, given, 3)
    if transform == "horizontal_flip":
        changed = inputs["pixel_values"].flip(-1)
    else:
        changed = processor(images=shown, return_tensors="pt")["pixel_values"]
    main = plain_logits(model, inputs, answer)
    other = plain_logits(model, {**inputs, "pixel_values": changed}, answer)
    assert not torch.allclose(main, other, atol=1e-2)
    assert_same_scores(got, added(main, other, 3.0, 0.1), tolerance=1e-3)


def test_the_image_itself_makes_the_distribution_sharper(model, gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    plain = logits_of(model, inputs, tokens=1)
    with gaze.using(RITUAL(transform=lambda image: image, beta=0.0)):
        assert_same_scores(logits_of(model, inputs, tokens=1), 4 * plain, tolerance=1e-3)


def test_pixels_come_back_as_they_were(gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    processor = gaze.processor.image_processor
    images = seen_images(gaze.family.pixels, processor, inputs)
    torch.testing.assert_close(to_pixels(processor, images, inputs), inputs["pixel_values"])


@pytest.mark.parametrize("method", [RITUAL(), RITUAL(alpha=1.0, transform="crop", seed=5)])
def test_batches_and_prompts_without_an_image(gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(gaze.model, inputs_of(gaze))
    torch.testing.assert_close(together[:, 2], plain[:, 2], rtol=1e-4, atol=1e-4)
    assert together[:, :2].isinf().any()


def test_neutral_strength_padding_full_forward_choices_and_json(gaze):
    check_neutral(gaze, RITUAL(alpha=0.0, beta=0.0))
    check_padding(gaze, RITUAL())
    check_full_forward(gaze, RITUAL())
    check_choices(gaze, RITUAL())
    check_json(RITUAL(alpha=1.0, transform="blur", seed=3))
    assert RITUAL(transform=pixels).to_dict()["transform"] == "<pixels>"


def test_a_transform_that_changes_the_size(gaze):
    method = RITUAL(transform=lambda image: image.resize((9, 9)))
    with gaze.using(method), pytest.raises(InputError, match=r"must give a PIL image of size \(112, 112\)"):
        gaze.model(**inputs_of(gaze, slice(0, 1)))


def test_features_instead_of_pixels(gaze):
    inputs = dict(inputs_of(gaze, slice(0, 1)))
    inputs.pop("pixel_values")
    with gaze.using(RITUAL()), pytest.raises(UnsupportedModelError, match="was given no pixels"):
        gaze.model(**inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "alpha must be float >= 0, got -1"),
        ({"transform": "shear"}, "transform must be random, horizontal_flip"),
        ({"seed": -1}, "seed must be int >= 0"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        RITUAL(**changes)
