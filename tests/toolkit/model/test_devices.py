"""Generation on one and on two devices, and the pretended accelerator that shows it."""

from __future__ import annotations

import pytest
import torch
from device_checks import DEVICE_MAP, IMAGES, QUESTIONS, Placed, logits
from models import small_var
from pretended_device import Accelerator

import regaze
from regaze.interventions import ADHH, ICD, PAI, SPARC, VCD, VISTA, DoLa
from regaze.toolkit.analysis import logit_lens


@pytest.fixture
def accelerator(placed):
    found = placed.others[0][1]
    found.forget()
    return found


def test_devices_do_not_mix(accelerator):
    with accelerator:
        here, there = torch.ones(3, device=accelerator.first), torch.ones(3, device=accelerator.second)
        for a, b in ((here, there), (here, torch.ones(3)), (torch.ones(3), there)):
            with pytest.raises(RuntimeError, match=r"tensors on .* in aten.add.Tensor, at tests/toolkit"):
                a + b
        with pytest.raises(RuntimeError, match="index_select"):
            here.index_select(0, torch.tensor([0]))
        assert (here + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]
        assert (here + here.to(accelerator.first)).device == accelerator.first


@pytest.mark.parametrize("inference", [False, True])
def test_what_the_host_waits_for(accelerator, inference):
    with accelerator, torch.inference_mode(inference):
        here = torch.arange(4.0, device=accelerator.first)  # made there
        for act, what, waits in (
            (lambda: torch.tensor([1.0, 2.0], device=here.device), "copy from cpu", True),
            (lambda: torch.ones(2).to(here.device, non_blocking=True), "copy from cpu", False),
            (lambda: here[[0, 1]], "copy from cpu", True),
            (lambda: here[0].item(), "_local_scalar_dense", True),
            (lambda: bool(here.any()), "_local_scalar_dense", True),
            (lambda: here.nonzero(), "nonzero", True),
            (lambda: here[here > 1], "boolean index", True),
            (lambda: here.cpu(), "copy to cpu", True),
            (lambda: here.tolist(), "copy to cpu", True),
            (lambda: here.to(accelerator.second), "copy between devices", False),
        ):
            accelerator.forget()
            act()
            assert [contact[0::4] for contact in accelerator.contacts] == [(what, waits)]
            assert "test_devices.py:" in accelerator.contacts[0].line
        accelerator.forget()
        here[here > 1] = 0.0
        here.masked_fill_(here > 1, 1.0).sum().add_(1)
        torch.zeros_like(here)[None].expand(2, -1)
        assert accelerator.contacts == []


def test_inference_mode_is_that_of_torch(accelerator):
    with accelerator:
        here = torch.arange(3.0).to(accelerator.first)
        with torch.inference_mode():
            assert here[1:].is_inference() is False  # a view
            assert here.mul(2).is_inference()
    with pytest.raises(RuntimeError, match="outside of `with Accelerator"):
        here + 1


def test_repeated_waits_are_counted_by_line(accelerator, monkeypatch):
    """As if lines of this file were lines of regaze."""
    monkeypatch.setattr(Accelerator, "_own", lambda self: self.contacts)
    with accelerator:
        here = torch.ones(2, device=accelerator.first)
        for _ in range(3):
            here.tolist()
        here.tolist()
    (line, count), *others = accelerator.repeated().items()
    assert "copy to cpu at tests/toolkit/model/test_devices.py" in line
    assert (count, others) == (3, [])
    assert accelerator.repeated(allowed=3) == {}


@pytest.mark.parametrize(
    ("methods", "options", "reads"),
    [
        ((VCD(), ICD(), small_var()), {}, ()),
        ((SPARC(alpha=1.5, tau=0.01),), {"num_beams": 3}, ("copy between devices",)),
        ((small_var(), DoLa()), {"num_beams": 2}, ()),
        ((small_var(), VCD()), {"cache_implementation": "static"}, ()),
        ((PAI(gamma=1.0), ADHH(heads=((2, 0), (3, 1), (4, 1)))), {}, ()),
    ],
    ids=["branches", "beams", "beams, two methods", "static cache", "equal rows"],
)
def test_generation(placed, methods, options, reads):
    """What changes with steps or beams goes from device to device."""

    def run(gaze: regaze.Gaze) -> torch.Tensor:
        with gaze.using(*methods):
            return logits(gaze, **options)

    placed.check(run, *reads)


def test_offloaded_norm_and_head(placed):
    """Their weights are on no device between forwards; accelerate brings them to the one where they run."""
    offloaded = {**DEVICE_MAP, "model.language_model.norm": "cpu", "lm_head": "cpu"}

    def run(gaze: regaze.Gaze) -> tuple[torch.Tensor, ...]:
        with gaze.using(VISTA(), DoLa(norm=True)):
            edited = logits(gaze)
        return edited, logit_lens(gaze, gaze.inputs(IMAGES, QUESTIONS)).entropy

    Placed.llava(offloaded=offloaded).check(run, waits=True)
