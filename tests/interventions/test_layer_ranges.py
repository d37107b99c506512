"""Layer ranges, scaled to other depths and checked."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from family_checks import case_of
from models import logits_of
from zoo.every import VISION

from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.interventions import ADHH, EAH, GIFT, HGAI, PAI, SPARC, SPIN, VAF, VHR, AttnReal, CausalMM
from regaze.interventions.base import Method
from regaze.interventions.layer_ranges import LayerRange, resolve_range, scaled_range


@pytest.mark.parametrize(
    ("published", "of", "to", "expected"),
    [
        ((9, 14), 32, 32, (9, 14)),
        ((9, 14), 32, 40, (11, 18)),
        ((9, 14), 32, 6, (2, 2)),
        ((2, 31), 32, 24, (2, 23)),
        ((0, 31), 32, 5, (0, 4)),
        ((20, 20), 32, 6, (4, 4)),
        ((31, 31), 32, 1, (0, 0)),
    ],
)
def test_a_range_keeps_its_place_in_the_depth(published, of, to, expected):
    assert scaled_range(*published, of, to) == expected


def test_scaled_ranges_are_never_empty_nor_outside():
    for to in range(1, 70):
        for first in range(32):
            for last in range(first, 32):
                a, b = scaled_range(first, last, 32, to)
                assert 0 <= a <= b < to
        assert scaled_range(0, 31, 32, to) == (0, to - 1)


@dataclass(frozen=True)
class Ranged(Method):
    """A method with a range of layers."""

    layers: LayerRange | None = None


def test_given_ranges_are_checked():
    assert Ranged().layers is None
    assert Ranged([1, 3]).layers == (1, 3)
    for wrong in ((3, 1), (-1, 2), (1,), (1, 2, 3), 4, "ab", (0.5, 2)):
        with pytest.raises(BadParameterError, match="layers must be the first and the last layer"):
            Ranged(wrong)
    assert resolve_range((1, 5), (0, 0), 32, 6) == (1, 5)
    assert resolve_range(None, (16, 31), 32, 6) == (3, 5)
    with pytest.raises(BadParameterError, match=r"layers 1\.\.6 do not exist: the model has layers 0\.\.5"):
        resolve_range((1, 6), (0, 0), 32, 6)


#: Methods on layers without attention, and on the one layer of `qwen3_5` that has it.
RECURRENT, ATTENDING = (0, 1), (1, 2)
BY_LAYERS = {
    "vaf": lambda layers: VAF(layers=layers),
    "hgai": lambda layers: HGAI(layers=layers, alpha=2.0),
    "gift": lambda layers: GIFT(layers=layers, alpha=2.0, saliency_layer="auto"),
    "gift-saliency": lambda layers: GIFT(layers=(0, 3), alpha=2.0, saliency_layer=layers[1]),
    "pai": lambda layers: PAI(layers=layers, alpha=2.0, gamma=1.0),
    "sparc": lambda layers: SPARC(layers=layers, selected_layer=2),
    "sparc-selected": lambda layers: SPARC(layers=(0, 3), selected_layer=layers[1]),
    "spin": lambda layers: SPIN(layers=layers, kept=0.5),
    "attnreal": lambda layers: AttnReal(layers=layers, above=1.0, rho=0.0),
    "eah": lambda layers: EAH(layers=layers),
    "vhr": lambda layers: VHR(layers=layers, alpha=3.0),
    "causalmm": lambda layers: CausalMM(layers=layers),
}


@pytest.fixture(scope="module")
def hybrid():
    """A model of which one layer, the third of four, has attention."""
    return case_of(next(entry for entry in VISION if entry.name == "qwen3_5"))


@pytest.mark.parametrize("name", BY_LAYERS)
def test_layers_without_attention_are_refused(hybrid, name):
    make, message = BY_LAYERS[name], r"there is no attention in layers? .* the layers that have it: 2$"
    with hybrid.gaze.using(make(RECURRENT)), pytest.raises(UnsupportedModelError, match=message):
        logits_of(hybrid.model, hybrid.inputs(0, 1), tokens=2)
    if "gift" in name:  # runs the last row again, which a recurrent layer cannot
        return
    with hybrid.gaze.using(make(ATTENDING)):
        logits = logits_of(hybrid.model, hybrid.inputs(0, 1), tokens=3)
    assert not torch.equal(logits, logits_of(hybrid.model, hybrid.inputs(0, 1), tokens=3))


def test_heads_of_layers_without_attention_are_refused(hybrid):
    message = r"head \(1, 0\) does not exist: its layer has no attention"
    with (
        hybrid.gaze.using(ADHH(heads=((2, 0), (1, 0)))),
        pytest.raises(BadParameterError, match=message),
    ):
        logits_of(hybrid.model, hybrid.inputs(0, 1), tokens=2)
