"""VCD's noise against the authors' outputs, and its independence of the batch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from regaze.errors import BadParameterError, ShapeError
from regaze.interventions.vcd import add_noise, add_noise_within, diffuse, signal_share


def test_golden_noise(goldens):
    tensors = load_file(goldens / "methods" / "vcd" / "noise.safetensors")
    for case, step in (("t500", 500), ("t100_batch", 100), ("t999", 999)):
        got = diffuse(tensors[f"{case}/in/image"], tensors[f"{case}/in/noise"], step)
        torch.testing.assert_close(got, tensors[f"{case}/out/noisy"], rtol=1e-5, atol=2e-6)
    share = signal_share()[tensors["schedule/in/steps"]]
    for name, got in (("sqrt_alpha_bar", share.sqrt()), ("sqrt_one_minus_alpha_bar", (1 - share).sqrt())):
        torch.testing.assert_close(got.float(), tensors[f"schedule/out/{name}"], rtol=0, atol=1e-5)


def test_published_shares_of_the_schedule():
    share = signal_share()
    assert float(share[500]) == pytest.approx(0.744799, abs=1e-5)
    assert float(share[999]) == pytest.approx(0.0812492, abs=1e-6)
    assert bool((share.diff() < 0).all())


def test_noise_depends_on_seed_and_shape_alone():
    pixels = torch.rand(3, 3, 20, 24)
    noised = add_noise(pixels, 500, seed=1)
    assert torch.equal(noised[2:], add_noise(pixels[2:], 500, seed=1))
    assert torch.equal(noised.flip(0), add_noise(pixels.flip(0), 500, seed=1))
    assert not torch.equal(noised, add_noise(pixels, 500, seed=2))
    torch.rand(7)  # the global generator plays no part
    assert torch.equal(noised, add_noise(pixels, 500, seed=1))
    assert add_noise(pixels.bfloat16(), 500).dtype == torch.bfloat16


def test_noise_on_tiles_and_patches():
    tiles = torch.rand(2, 4, 3, 5, 7)
    assert torch.equal(add_noise(tiles, 10)[:, :2], add_noise(tiles[:, :2].contiguous(), 10))
    patches = torch.rand(6 + 4, 11)
    noised = add_noise(patches, 10, counts=[6, 4])
    assert torch.equal(noised[:6], add_noise(patches[:6], 10, counts=[6]))
    assert torch.equal(noised[6:], add_noise(patches[6:], 10, counts=[4]))
    with pytest.raises(ShapeError, match="do not make the 10 rows"):
        add_noise(patches, 10, counts=[6, 5])


@pytest.mark.parametrize("step", [-1, 1000])
def test_steps_outside_the_schedule(step):
    with pytest.raises(BadParameterError, match=r"0\.\.999"):
        add_noise(torch.rand(1, 3, 4, 4), step)


def test_noise_of_padded_images_is_that_of_each_alone():
    torch.manual_seed(0)
    wide, high = torch.randn(1, 3, 4, 6), torch.randn(1, 3, 5, 2)
    padded = torch.full((2, 3, 5, 6), 7.0)
    padded[0, :, :4], padded[1, :, :, :2] = wide[0], high[0]
    got = add_noise_within(padded, 400, [(4, 6), (5, 2)], seed=3)
    assert torch.equal(got[:1, :, :4], add_noise(wide, 400, seed=3))
    assert torch.equal(got[1:, :, :, :2], add_noise(high, 400, seed=3))
    assert (got[0, :, 4:] == 7).all()
    assert (got[1, :, :, 2:] == 7).all()
    tiles = add_noise_within(padded[None], 400, [(4, 6), (0, 0)], seed=3)[0]
    assert torch.equal(tiles[0], got[0])
    assert torch.equal(tiles[1], padded[1])
