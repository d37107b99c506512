"""Controls that are the method itself with other parameters."""

from __future__ import annotations

import json

import pytest
import torch
from decoding_checks import inputs_of
from models import logits_of

from regaze.interventions import CARVE, M3ID, MMA, OPERA, DeCo, MoA
from regaze.interventions.controls import PlausibilityCut, Sharpen


def test_deco_without_its_layers():
    assert DeCo(alpha=0.3).controls() == (DeCo(alpha=0.0), Sharpen(0.3))
    assert DeCo(top_k=0, top_p=1.0).controls() == (Sharpen(0.6),)
    assert DeCo(alpha=0.0).controls() == ()


def test_moa_with_the_mean_of_its_plan(tmp_path, gaze):
    """The spans of all heads together stay as long."""
    path = tmp_path / "plan.json"
    betas = [[0.1] * 3 + [0.7] * 3] * 6
    path.write_text(json.dumps({"alphas": [[8.0, 24.0] * 3] * 6, "betas": betas}))
    [control] = MoA(plan=str(path), block=8).controls()
    assert (control.plan, control.alpha, control.block) == (None, 16.0, 8)
    assert control.beta == pytest.approx(0.4)
    assert MoA().controls() == ()
    with gaze.using(control):
        edited = logits_of(gaze.model, inputs_of(gaze))
    assert not torch.equal(edited, logits_of(gaze.model, inputs_of(gaze)))


def test_carve_somewhere_else():
    """The map is rolled: the same numbers in other places, the same for the same seed."""
    [control] = CARVE().controls()
    assert control == CARVE(seed=0)
    assert control.controls() == ()
    question, general = torch.rand(2, 1, 3, 5, 7).unbind()
    maps = [CARVE(seed=seed).fuse(question, general) for seed in (None, 0, 0, 1)]
    for moved in maps[1:]:
        assert torch.equal(moved.flatten().sort().values, maps[0].flatten().sort().values)
        assert not torch.equal(moved, maps[0])
    assert torch.equal(maps[1], maps[2])
    assert not torch.equal(maps[1], maps[3])


def test_those_without_one_say_why():
    for method in (M3ID(), MMA(), OPERA()):
        assert method.controls() == ()
        assert "no control of its own" in " ".join(type(method).__doc__.split())
    assert M3ID(as_released=True).controls() == (PlausibilityCut(0.1),)
