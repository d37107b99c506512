"""`Scale`, the policy of constant coefficients, and what the backends know of any policy, by hand."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from kernel_cases import moved

from regaze.errors import ShapeError
from regaze.kernels import AttentionEdit, Channels, Scale, attend
from regaze.kernels.policies import coefficients_of, offers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def of_rows(policy: Scale, *masses: list[float]) -> list[list[float]]:
    """The coefficients of rows with these masses."""
    return policy(torch.tensor(masses, dtype=torch.float64)[None, :, None])[0, :, 0].tolist()


def test_every_channel_is_scaled_by_its_factor():
    assert of_rows(Scale((0.5, 2.0, 0.0)), [0.25, 0.5, 0.25], [0.0, 0.0, 0.0]) == [[0.5, 2.0, 0.0]] * 2
    assert Scale((1.0,)).renormalise is False


def test_a_row_may_keep_its_total():
    """0.5 * 0.25 + 2 * 0.5 = 1.125 becomes 1 again; what the factors would empty is left alone."""
    scaled, lost, signed, nothing = of_rows(
        Scale((0.5, 2.0, 0.0), renormalise=True),
        [0.25, 0.5, 0.25],
        [0.0, 0.0, 1.0],
        [-1.0, 0.0, 2.0],
        [0.0, 0.0, 0.0],
    )
    assert scaled == pytest.approx([0.5 / 1.125, 2.0 / 1.125, 0.0])
    assert lost == signed == nothing == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("size", [1e-20, 1e-6, 1.0])
def test_the_total_is_kept_at_any_size(size):
    masses = torch.tensor([[0.25, 0.75]])[None, :, None] * size
    for factors in ((3.0, 0.5), (1e-5, 1e-3)):
        edited = masses * Scale(factors, renormalise=True)(masses)
        torch.testing.assert_close(edited.sum(-1), masses.sum(-1), rtol=1e-5, atol=0.0)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("renormalise", [False, True])
def test_the_kernels_scale_alike(renormalise):
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 4, n, 16, generator=g) for n in (1, 24, 24))
    groups = torch.randint(0, 3, (2, 24), generator=g, dtype=torch.uint8)
    edit = AttentionEdit(channels=Channels(groups, 3), policy=Scale((0.25, 3.0, 0.5), renormalise))
    want = attend(q, k, v, edit, backend="reference")[0]
    got = attend(*(moved(each, DEVICE) for each in (q, k, v, edit)), backend="triton")[0]
    torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-5)


def test_coefficients_have_the_shape_of_the_masses():
    masses = torch.ones(1, 2, 3, 2)
    assert coefficients_of(Scale((1.0, 2.0)), masses).tolist() == [[[[1.0, 2.0]] * 3] * 2]

    class Sums:
        channels = 2

        def __call__(self, masses):
            return masses.sum(-1)

    message = (
        r"^policy Sums returned coefficients \[1, 2, 3\] for masses \[B, Hq, R, K\] = \[1, 2, 3, 2\]: "
        "it must keep the shape$"
    )
    with pytest.raises(ShapeError, match=message):
        coefficients_of(Sums(), masses)


def test_an_optional_part_counts_where_the_reference_is_not_younger():
    class Other(Scale):
        def __call__(self, masses):
            return masses

    assert offers(Scale((1.0,)), "triton_part")
    assert not offers(Scale((1.0,)), "fold")
    assert not offers(Other((1.0,)), "triton_part")
