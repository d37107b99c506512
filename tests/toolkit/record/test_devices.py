"""Recordings on one and on two devices: the records of the CPU, no wait of the host at layers or steps."""

from __future__ import annotations

import pytest
import torch
from device_checks import logits

from regaze.interventions import VCD, HeadKnockout
from regaze.toolkit.record import host_copies
from regaze.toolkit.record.host_copies import to_host


@pytest.mark.parametrize(
    ("wanted", "methods"),
    [
        ({}, ()),
        ({"entropy": True, "top1": True, "lse": True, "slices": "image", "rows": "text"}, ()),
        ({"slices": "all", "rows": "all", "masses": False}, ()),
        ({"edited": True, "slices": "all"}, (HeadKnockout(heads=((1, 0), (4, 2))), VCD())),
    ],
    ids=["masses", "every statistic", "all", "edited, with a branch"],
)
def test_a_recording(placed, wanted, methods):
    def run(gaze):
        with gaze.using(*methods), gaze.recording(**wanted) as record:
            logits(gaze)
        trace = record[0]
        names = ("masses", "entropy", "top_weight", "lse", "slices", "row_position", "output_ids")
        return tuple(value for name in names if (value := getattr(trace, name)) is not None)

    placed.check(run)


def test_tensors_come_to_the_host_together(placed, monkeypatch):
    accelerator = placed.others[0][1]
    monkeypatch.setattr(host_copies, "COPY_BYTES", 40)
    first, second, cpu = accelerator.first, accelerator.second, torch.device("cpu")
    values = [torch.rand(2, 3), torch.arange(4), torch.rand(()), torch.rand(30), torch.rand(0, 2)]
    values.append(torch.rand(2))
    devices = [first, first, second, first, first, cpu]
    with accelerator:
        moved = [value.to(device) for value, device in zip(values, devices, strict=True)]
        accelerator.forget()
        fetched = to_host(moved)
    for value, got in zip(values, fetched, strict=True):
        assert got.device.type == "cpu"
        assert torch.equal(got, value)
    assert fetched[-1].data_ptr() == values[-1].data_ptr()
    # 24 bytes of floats, and 120, which are more than one copy brings; whole numbers; the other device.
    assert [contact.what for contact in accelerator.contacts] == ["copy to cpu"] * 4
