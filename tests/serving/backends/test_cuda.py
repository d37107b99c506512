"""The backends of a GPU, as far as a CPU can show: the choice, and what they read of vLLM's cache."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.kernels import AttentionEdit, attend
from regaze.serving.backends import cuda
from regaze.serving.worker.acts import Act, LayerCall, Rows
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.layer_plan import plan_layer

pytestmark = pytest.mark.vllm

HEADS, GROUPS, DIM, PAGE = 4, 2, 8, 16
#: Cached keys and new rows of each sequence, and its pages.
CACHED, NEW, TABLE = (0, 20), (5, 1), ((3, 0), (1, 4))


@pytest.mark.parametrize(
    ("capable", "has_flash", "name"),
    [(True, True, "Flash"), (True, False, "Triton"), (False, True, "Triton")],
)
def test_flash_attention_where_it_is(monkeypatch, capable, has_flash, name):
    import vllm.platforms
    from vllm.v1.attention.backends import fa_utils

    for module in ("flash", "triton"):  # before there is another platform
        import_module(f"regaze.serving.backends.{module}")
    monkeypatch.delenv(cuda.CHOICE, raising=False)
    platform = SimpleNamespace(has_device_capability=lambda least: capable)
    monkeypatch.setattr(vllm.platforms, "current_platform", platform)
    monkeypatch.setattr(fa_utils, "is_flash_attn_varlen_func_available", lambda: has_flash)
    assert cuda.EditedBackend.__name__ == f"Edited{name}Backend"


@pytest.mark.parametrize("name", ["flash", "triton"])
def test_the_environment_decides(monkeypatch, name):
    monkeypatch.setenv(cuda.CHOICE, name)
    backend = cuda.EditedBackend
    assert backend.get_name() == "CUSTOM"
    assert name in backend.__name__.lower()
    assert backend.get_builder_cls()._cudagraph_support.name == "NEVER"
    assert hasattr(backend.get_impl_cls(), "edits")


def test_other_names_are_refused(monkeypatch):
    monkeypatch.setenv(cuda.CHOICE, "sdpa")
    with pytest.raises(BadParameterError, match="is 'flash' or 'triton', got 'sdpa'"):
        cuda.edited_backend()
    with pytest.raises(AttributeError):
        _ = cuda.Other


def test_edited_rows_follow_flash_attention(monkeypatch):
    """Its own kernel, which needs a GPU, is played by attention over the pages that it is given."""
    from vllm.v1.attention.backends import flash_attn

    from regaze.serving.backends.flash import EditedFlashImpl

    monkeypatch.setattr(flash_attn, "_FA4_DENSE_ATTENTION_KERNEL", played)
    cache = torch.randn(5, GROUPS, PAGE, 2 * DIM)
    query, output = torch.randn(sum(NEW), HEADS, DIM), torch.zeros(sum(NEW), HEADS, DIM)
    metadata = flash_attn.FlashAttentionMetadata(
        num_actual_tokens=sum(NEW),
        max_query_len=max(NEW),
        query_start_loc=torch.tensor([0, NEW[0], sum(NEW)], dtype=torch.int32),
        max_seq_len=21,
        seq_lens=torch.tensor([5, 21], dtype=torch.int32),
        block_table=torch.tensor(TABLE, dtype=torch.int32),
        slot_mapping=torch.zeros(sum(NEW), dtype=torch.int64),
    )
    impl = EditedFlashImpl(HEADS, DIM, DIM**-0.5, GROUPS, None, None, "auto")
    impl.vllm_flash_attn_version = 2
    layer = SimpleNamespace(_q_scale=torch.ones(1), _k_scale=torch.ones(1), _v_scale=torch.ones(1))
    edit = AttentionEdit(bias=torch.tensor([[[2.0, -1.0, 0.5]]]))
    impl.edits, impl.number = Edits(edit), 7
    impl.forward(layer, query, query, query, cache, metadata, output)

    for number, (start, new, length) in enumerate(((0, 5, 5), (5, 1, 21))):
        key, value = whole(cache, number, length)
        own = query[start : start + new].transpose(0, 1)[None]
        parts = AttentionEdit() if number == 0 else edit
        wanted, _ = attend(own, key, value, parts, is_causal=True, backend="torch")
        torch.testing.assert_close(output[start : start + new].transpose(0, 1)[None], wanted)


class Edits:
    """Edits the second sequence."""

    def __init__(self, edit: AttentionEdit):
        self.edit_of_rows = edit

    def rows(self, metadata: Any) -> list[Rows]:
        start, stop = metadata.query_start_loc.tolist()[1:3]
        length = int(metadata.seq_lens[1])
        return [Rows(None, 1, start, length - (stop - start), length, 1, False)]

    def edit(self, call: LayerCall, metadata: Any) -> None:
        assert call.layer == 7
        plan = plan_layer((Callback(),), [self.edit_of_rows], torch.device("cpu"))
        (rows,) = self.rows(metadata)
        Act(plan, 1).run(rows, call)

    def give_up(self, error: Exception) -> None:
        raise error


def whole(cache: Tensor, number: int, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values [1, Hkv, length, D] of a sequence, slot after slot."""
    slots = torch.cat([cache[page] for page in TABLE[number]], 1)[:, :length]
    return slots[None, ..., :DIM], slots[None, ..., DIM:]


def played(*, q, k, v, out, cu_seqlens_q, seqused_k, block_table, softmax_scale, causal, **options: Any):
    """FlashAttention over keys [pages, page, Hkv, D]."""
    assert causal
    assert not options["softcap"]
    assert options["alibi_slopes"] is None
    starts = cu_seqlens_q.tolist()
    for number, length in enumerate(seqused_k.tolist()):
        rows = slice(starts[number], starts[number + 1])
        key, value = (
            torch.cat([part[page] for page in block_table[number]])[:length].transpose(0, 1)[None]
            for part in (k, v)
        )
        found, _ = attend(
            q[rows].transpose(0, 1)[None], key, value, AttentionEdit(), is_causal=True, scaling=softmax_scale
        )
        out[rows] = found[0].transpose(0, 1)
