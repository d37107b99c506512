"""What a call of a layer's attention tells: blocks of rows, the keys that they see, their weights."""

from __future__ import annotations

import pytest
import torch

from regaze.kernels import AttentionEdit
from regaze.toolkit.model import attention_call
from regaze.toolkit.model.attention_call import AttentionCall


def call(mask, queries=6, keys=6, causal=True):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 8, generator=generator) for n in (queries, keys, keys))
    options = {"mask": mask, "scaling": 0.3, "is_causal": causal, "softcap": None, "sinks": None}
    return AttentionCall(q, k, v, v.transpose(1, 2), AttentionEdit(), options)


def padded(dtype):
    """Causal, and the first two keys of the second sample are padding."""
    seen = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    seen[1, :, :, :2] = False
    return seen if dtype == torch.bool else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(dtype).min)


@pytest.mark.parametrize(
    "mask", [None, padded(torch.bool), padded(torch.float32)], ids=["none", "bool", "float"]
)
def test_blocks_of_rows_are_parts_of_the_whole(monkeypatch, mask):
    whole = call(mask)
    rows = slice(0, 6)
    weights, seen = whole.weights(rows), whole.visible(rows)
    want = torch.ones(1, 6, 6, dtype=torch.bool).tril() if mask is None else padded(torch.bool)[:, 0]
    assert torch.equal(seen, want)
    assert not weights[~seen[:, None].expand_as(weights)].any()
    monkeypatch.setattr(attention_call, "CPU_BLOCK_ELEMENTS", 2 * 4 * 6 * 2)
    blocks = call(mask).blocks(first=1)
    assert blocks == [slice(1, 3), slice(3, 5), slice(5, 6)]
    for block in blocks:
        part = call(mask).weights(block)
        assert part.shape[-1] == block.stop
        torch.testing.assert_close(part, weights[:, :, block, : block.stop])
        assert torch.equal(call(mask).visible(block), seen[:, block, : block.stop])


def test_a_single_row_sees_all_keys_that_no_mask_hides():
    assert call(None, queries=1, keys=5).visible(slice(0, 1)).all()
    window = torch.tensor([False, False, True, True, True])[None, None, None].expand(2, 1, 1, 5)
    assert torch.equal(call(window, queries=1, keys=5).visible(slice(0, 1)), window[:, 0])


def test_of_the_last_block_nothing_is_asked_of_the_mask():
    """Whether a mask is causal is read from the device."""
    last = call(padded(torch.bool))
    last.visible(slice(5, 6)), last.weights(slice(5, 6))
    assert not last.causal_masks
    last.weights(slice(3, 5))
    assert last.causal_masks
