"""The protocol of policies: a reference alone runs on every backend, optional parts run where they apply."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import pytest
import torch
from kernel_cases import Case, check_call, random_like

from regaze.errors import ShapeError
from regaze.kernels import AttentionEdit, Channels, RowSelection, Scale, StatsRequest, TritonPart, attend
from regaze.kernels.policies import offers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = [
    "reference",
    "torch",
    pytest.param("triton", marks=pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")),
]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken


@dataclass(frozen=True)
class Squares:
    """A third party's policy: the reference only."""

    channels: int = 3

    def __call__(self, masses):
        return 1.0 + masses.square() - masses.sum(-1, keepdim=True) / 2


@dataclass(frozen=True)
class Expanded:
    """Coefficients that do not depend on the masses, as a tensor without strides of its own."""

    channels: int = 3

    def __call__(self, masses):
        return torch.arange(1, self.channels + 1, device=masses.device).to(masses.dtype).expand_as(masses)


@dataclass(frozen=True)
class AcrossHeads:
    """A policy that couples heads, again without other parts; its result is a transposed view."""

    channels: int = 3

    def __call__(self, masses):
        share = masses / masses.sum(1, keepdim=True).clamp_min(1e-9)
        return share.transpose(1, 2).contiguous().transpose(1, 2)


def case_of(policy, queries: int, groups: int = 3, weights: bool = False, edited: bool = False) -> Case:
    """A call of many or few query rows, some of which are edited."""
    g = torch.Generator().manual_seed(queries + groups)
    q, k, v = random_like(g, 2, 6, queries, 16), *(random_like(g, 2, 2, 40, 16) for _ in range(2))
    group = torch.randint(0, groups, (2, 37), generator=g, dtype=torch.uint8)
    channels = Channels(group, groups, torch.rand(1, 2, 37, generator=g) if weights else None)
    rows = RowSelection.where(torch.rand(2, queries, generator=g) > 0.4) if queries > 1 else None
    stats = StatsRequest(channels=channels, entropy=True, edited=edited)
    edit = AttentionEdit(rows, channels=channels, policy=policy, stats=stats)
    return Case(q, k, v, edit, None, True, None, random_like(g, 6))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries", [1, 3, 19], ids=["step", "few rows", "prefill"])
@pytest.mark.parametrize("policy", [Squares(), Expanded(), AcrossHeads()], ids=lambda p: type(p).__name__)
def test_a_reference_alone_runs_on_every_backend(policy, queries, backend):
    check_call(case_of(policy, queries), backend, DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", [Expanded(), AcrossHeads()], ids=lambda p: type(p).__name__)
def test_a_reference_alone_runs_beside_sinks_of_any_stride(policy, backend):
    case = case_of(policy, 1)
    check_call(replace(case, sinks=case.sinks.repeat_interleave(2)[::2]), backend, DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize(
    "policy", [Expanded(20), Scale(tuple(k / 10 for k in range(20))), Scale(tuple(range(20)), True)]
)
def test_more_channels_than_a_kernel_takes(policy, edited, backend):
    """Constant coefficients come as an expanded tensor, of which kernels must not read past the end."""
    for queries in (1, 5):
        check_call(case_of(policy, queries, groups=20, edited=edited), backend, DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries", [2, 12])
def test_groups_and_weights_together(queries, backend):
    check_call(case_of(Squares(4), queries, weights=True), backend, DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries", [1, 12])
def test_coefficients_of_another_shape_are_refused(queries, backend):
    class TooFew:
        channels = 3

        def __call__(self, masses):
            return masses[..., :2]

    case = case_of(TooFew(), queries).on(DEVICE)
    with pytest.raises(ShapeError, match=r"policy TooFew returned coefficients .* for masses"):
        case.call(attend, backend=backend)


def test_a_subclass_that_redefines_the_reference_loses_the_other_parts():
    class Doubled(Scale):
        def __call__(self, masses):
            return 2 * super().__call__(masses)

    class DoubledInKernels(Doubled):
        def triton_part(self, heads):
            return TritonPart("nowhere:nothing", ())

    assert offers(Scale((1.0,)), "triton_part")
    assert not offers(Scale((1.0,)), "fold")
    assert not offers(Doubled((1.0,)), "triton_part")
    assert offers(DoubledInKernels((1.0,)), "triton_part")


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("queries", [1, 12])
def test_a_subclass_with_another_reference_runs_by_it(queries):
    class Doubled(Scale):
        def __call__(self, masses):
            return 2 * super().__call__(masses)

    check_call(case_of(Doubled((1.0, 0.5, 0.25)), queries), "triton", DEVICE)


@pytest.mark.parametrize("queries", [1, 12])
def test_a_triton_part_runs_in_the_place_of_the_reference(queries, monkeypatch):
    """A third party's device function, in a row of its own and across heads."""
    pytest.importorskip("triton")
    from kernel_policies import HalvedHeads, HalvedHeadsOnDevice, Shrink, ShrinkOnDevice

    for policy, only_on_device in ((Shrink(), ShrinkOnDevice()), (HalvedHeads(), HalvedHeadsOnDevice())):
        want = case_of(policy, queries).call(attend, backend="reference")[0]
        got = case_of(only_on_device, queries).on(DEVICE).call(attend, backend="triton")[0]
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-5)
