"""Edits on another device than the one they were made on."""

from __future__ import annotations

import gc
import weakref

import torch

from regaze.kernels import AttentionEdit, Channels, RowSelection, StatsRequest, UnmaskRect
from regaze.kernels.policies import Scale
from regaze.kernels.spec import Windows

CPU, META = torch.device("cpu"), torch.device("meta")


def full_edit():
    """Every kind of part, with one `Channels` in two places."""
    channels = Channels(groups=torch.tensor([[0, 1, 1]], dtype=torch.uint8), num_groups=2)
    rows = RowSelection(torch.tensor([1, 2]), torch.tensor([[True, False], [True, True]]))
    return AttentionEdit(
        rows=rows,
        bias=torch.zeros(1, 1, 3),
        channels=channels,
        policy=Scale((1.0, 2.0)),
        head_gain=torch.ones(1, 4),
        unmask=(UnmaskRect(torch.ones(1, 3).bool(), torch.ones(1, 3).bool()),),
        windows=Windows(torch.ones(1, 4).long(), first=torch.zeros(2).long()),
        stats=StatsRequest(rows=rows, channels=channels, columns=torch.zeros(1, 2).long()),
    )


def devices(edit):
    held = (edit.rows.index, edit.rows.active, edit.bias, edit.channels.groups, edit.channels.matrix)
    held += (edit.head_gain, edit.unmask[0].rows, edit.unmask[0].columns, edit.windows.span)
    held += (edit.windows.first, edit.stats.columns, edit.stats.channels.groups)
    return {tensor.device.type for tensor in held}


def test_every_part_goes_to_the_device():
    edit = full_edit()
    there = edit.to(META)
    assert devices(there) == {"meta"}
    assert devices(edit) == {"cpu"}, "the edit itself stays"
    assert there.policy is edit.policy
    assert there.windows.sink == 0


def test_an_edit_that_lies_there_is_itself():
    edit = full_edit()
    assert edit.to(CPU) is edit
    assert edit.to(META).to(META) is edit.to(META)


def test_a_part_that_edits_share_is_copied_once():
    edit = full_edit()
    other = AttentionEdit(rows=edit.rows, channels=edit.channels, policy=Scale((3.0, 1.0)))
    there, too = edit.to(META), other.to(META)
    assert there.channels is there.stats.channels is too.channels
    assert there.rows is there.stats.rows is too.rows
    assert edit.to(META) is there


def test_tensors_of_several_devices_come_together():
    edit = AttentionEdit(bias=torch.zeros(1, 1, 3, device="meta"), head_gain=torch.ones(1, 4))
    there = edit.to(META)
    assert there.bias is edit.bias
    assert there.head_gain.device == META


def test_copies_of_learned_tensors_belong_to_one_graph_each():
    edit = AttentionEdit(bias=torch.zeros(1, 1, 3, requires_grad=True))
    with torch.no_grad():
        assert edit.to(META) is not edit.to(META)
    bias = edit.to(META).bias
    assert bias.requires_grad, "a copy without a graph is not kept for later"


def test_copies_made_in_inference_mode_serve_training_too():
    edit = AttentionEdit(bias=torch.zeros(1, 1, 3))
    with torch.inference_mode():
        there = edit.to(META)
    assert not there.bias.is_inference()


def test_an_edit_frees_its_tensors_without_the_garbage_collector():
    edit = full_edit()
    edit.to(META), edit.to(CPU)
    gone = weakref.ref(edit)
    gc.disable()
    try:
        del edit
        assert gone() is None
    finally:
        gc.enable()
