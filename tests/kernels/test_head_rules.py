"""Rules over the heads of a layer: by hand, and their kernel against the specification."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

from regaze.errors import BadParameterError
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.interventions.spin.policy import DampLowHeads
from regaze.kernels import AttentionEdit, Channels, HeadChoice, HeadStep, ScaleHeads, attend
from regaze.kernels.head_rules import outstanding_heads, top_heads

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken

#: ILVAD's row edit: image, text | evidence, image by its gains, text by its factors.
ILVAD = ScaleHeads(
    (
        HeadStep(HeadChoice(2, over=0, top=1), (0.0, 1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 0.0, 1.0)),
        HeadStep(HeadChoice(1, top=1), (1.0, 0.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 0.0)),
    ),
    renormalise=True,
    weighted=(2, 3, 4),
)


def heads(*values: float) -> torch.Tensor:
    return torch.tensor(values)[None, :, None]


def rows_after(weights: torch.Tensor, edit: AttentionEdit, backend: str) -> torch.Tensor:
    """The edited attention weights of one row per head, [H, Lk] -> [H, Lk]."""
    count, keys = weights.shape
    q, k = torch.zeros(1, count, 1, 16), torch.zeros(1, count, keys, 16)
    v = torch.eye(keys).expand(1, count, keys, keys)
    edit, mask = edit.to(torch.device(DEVICE)), weights.log()[None, :, None]
    out = attend(*(x.to(DEVICE) for x in (q, k, v)), edit, mask=mask.to(DEVICE), backend=backend)[0]
    return out[0, :, 0].cpu()


def test_ranks():
    assert top_heads(heads(0.1, 0.4, 0.4, 0.2), 2)[0, :, 0].tolist() == [False, True, True, False]
    assert top_heads(heads(0.4, 0.1, 0.4, 0.4), 2)[0, :, 0].tolist() == [True, False, True, False]
    assert not top_heads(heads(0.1, 0.2), 0).any()
    assert top_heads(heads(0.0, 0.0, 0.0), 1).all()


def test_deviations_from_the_mean():
    """VHR's distances: mean 1.85, deviation 1.956826, so that only 6 is above 3.806826."""
    distance = heads(0.5, 2.0, 1.0, 1.5, 0.1, 6.0)
    assert outstanding_heads(distance, 1.0)[0, :, 0].tolist() == [False] * 5 + [True]
    assert outstanding_heads(distance, 0.0)[0, :, 0].tolist() == [False, True, False, False, False, True]
    assert not outstanding_heads(heads(2.0, 2.0), 0.0).any()


@pytest.mark.parametrize("backend", ["reference", "torch", pytest.param("triton", marks=needs_triton)])
def test_two_choices_by_hand(backend):
    """ILVAD's example: the head with more evidence per image mass, and that which looks more at the text."""
    rows = torch.tensor([[0.10, 0.10, 0.20, 0.05, 0.25, 0.20, 0.10], [0.05, 0.20, 0.05, 0.10, 0.3, 0.1, 0.2]])
    groups = torch.tensor([[0, 0, 0, 0, 1, 1, 1]], dtype=torch.uint8)
    evidence = torch.tensor([0.0, 0.0, math.log(4), 0.0, 0.0, 0.0, 0.0])
    gains, factors = torch.zeros(7), torch.zeros(7)
    gains[:4], factors[4:] = torch.tensor([1.0, 1.0, 4.0, 1.0]), torch.tensor([0.633333, 1.3, 0.3])
    channels = Channels(groups, 2, torch.stack([evidence, gains, factors])[:, None])
    got = rows_after(rows, AttentionEdit(channels=channels, policy=ILVAD), backend)
    want = [
        [0.0625, 0.0625, 0.5, 0.03125, 0.15625, 0.125, 0.0625],
        [0.064103, 0.256410, 0.064103, 0.128205, 0.243590, 0.166667, 0.076923],
    ]
    torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=2e-6)


def test_a_gain_is_that_of_the_chosen_heads_together():
    """Head 0 has 0.25 of the image and doubles it; the query of head 1 is doubled, then times 1.5."""
    first = HeadStep(HeadChoice(0, top=1), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0))
    second = HeadStep(HeadChoice(1, top=1), (1.0, 1.5, 1.0), (1.0, 1.0, 1.0), gained=1)
    rule = ScaleHeads((first, second), weighted=(2,))
    masses = torch.tensor([[0.25, 0.25, 0.5], [0.125, 0.375, 0.0]])[None, :, None]
    assert rule(masses)[0, :, 0].tolist() == [[0.0, 1.0, 1.0], [1.0, 3.0, 0.0]]
    nothing = torch.tensor([[0.0, 0.25, 0.0], [0.0, 0.375, 0.0]])[None, :, None]
    assert rule(nothing)[0, :, 0, 1].tolist() == [1.0, 1.5]


RULES = [
    ILVAD,
    AmplifyTopHeads(5, 0, 1, 2, heads=3, query_gain=1.5),
    DampLowHeads(5, channel=1, kept=3, factor=0.08),
    ScaleHeads((HeadStep(HeadChoice(1, deviations=0.5), (2.0,) * 5, (1.0, 1.0, 0.5, 1.0, 1.0)),)),
    ScaleHeads((HeadStep(HeadChoice(3, over=1, deviations=-0.2), (0.0,) * 5, (1.0,) * 5),), renormalise=True),
]


@needs_triton
@pytest.mark.parametrize("count", [1, 5, 28])
@pytest.mark.parametrize("rule", RULES, ids=["two steps", "GIFT", "SPIN", "above the mean", "ratio"])
def test_the_kernel_is_the_rule(rule, count):
    """On random masses, ties, and rows without any mass; heads that are no power of two."""
    from regaze.kernels.triton.policy import head_coefficients, triton_part

    g = torch.Generator().manual_seed(count)
    masses = torch.rand(2, count, 3, 5, generator=g)
    masses[0, :, 0] = 0.25
    masses[1, :, 1] = 0.0
    masses[1, :, 2, 1] = 0.0
    part = triton_part(rule, count)
    got = head_coefficients(masses.to(DEVICE), None, None, None, masses.shape, part.function, part.numbers)
    torch.testing.assert_close(got.cpu(), rule(masses))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: HeadChoice(0), "either `top` or `deviations`"),
        (lambda: HeadChoice(0, top=1, deviations=1.0), "either `top` or `deviations`"),
        (lambda: HeadChoice(0, top=-1), "top must not be negative, got -1"),
        (lambda: ScaleHeads(()), "equally many channels, got none"),
        (lambda: ScaleHeads((HeadStep(HeadChoice(0, top=1), (1.0,), (1.0, 1.0)),)), r"got \[1, 2\]"),
        (lambda: ScaleHeads((HeadStep(HeadChoice(1, top=1), (1.0,), (1.0,)),)), r"in 0\.\.0, got 1"),
        (lambda: ScaleHeads((HeadStep(HeadChoice(0, 2, top=1), (1.0,), (1.0,)),)), r"in 0\.\.0, got 2"),
        (lambda: ScaleHeads((HeadStep(HeadChoice(0, top=1), (1.0,), (1.0,), gained=-1),)), "got -1"),
    ],
)
def test_bad_rules(make, what):
    with pytest.raises(BadParameterError, match=what):
        make()
