"""Calls with many query rows for `kernel_launches.py`, by what they make a kernel carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import AttentionEdit, Channels, RowSelection, StatsRequest, UnmaskRect
from regaze.kernels.spec import Windows
from regaze.kernels.triton.call import Call, sum_columns
from regaze.kernels.triton.prefill import attend_prefill, prefill_stats

QUERIES, HEADS, KV_HEADS = 1001, 8, 2  # rows of masks begin anywhere
#: Rows after the image, as VAR edits them; more than torch computes along with the others.
TEXT = RowSelection(torch.arange(QUERIES - 200, QUERIES))


def edits() -> dict[str, AttentionEdit]:
    groups = torch.zeros(1, QUERIES, dtype=torch.uint8)
    record = StatsRequest(
        TEXT, Channels(groups, 7), entropy=True, top1=True, columns=torch.zeros(1, 40).long()
    )
    var = AttentionEdit(
        TEXT, channels=Channels(groups, 4), policy=MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.3, 0.1)
    )
    column = torch.empty(1, HEADS, QUERIES - 8)
    opening = UnmaskRect(torch.ones(1, QUERIES, dtype=torch.bool), torch.ones(1, QUERIES, dtype=torch.bool))
    return {
        "bias on some rows": AttentionEdit(TEXT, bias=column),
        "sink, head gain": AttentionEdit(
            sink=torch.empty(1, HEADS, QUERIES), head_gain=torch.empty(1, HEADS, QUERIES)
        ),
        "var, record": var.replace(stats=record),
        "everything": AttentionEdit(
            score_slope=column,
            score_gain=column,
            head_score_gain=torch.empty(1, HEADS),
            bias=column,
            sink=torch.empty(1, HEADS, QUERIES),
            channels=Channels(groups, 3, torch.empty(1, 1, QUERIES)),
            policy=var.policy,
            value_gain=column,
            head_gain=torch.empty(1, HEADS, QUERIES),
            unmask=(opening,),
            windows=Windows(torch.ones(1, HEADS, dtype=torch.int64)),
        ),
    }


def prefill_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls by name."""
    shapes = [(128, torch.bfloat16, name, mask) for name in edits() for mask in ("causal", "bool")]
    shapes += [(128, torch.float16, "everything", "float")]
    shapes += [(dim, torch.bfloat16, "var, record", "bool") for dim in (32, 64, 80)]
    for dim, dtype, name, mask in shapes:
        q = torch.empty(1, HEADS, QUERIES, dim, dtype=dtype)
        k = torch.empty(1, KV_HEADS, QUERIES, dim, dtype=dtype)
        options: dict[str, Any] = {"mask": None, "scaling": 0.1, "is_causal": mask == "causal"}
        options |= {"softcap": None, "sinks": None}
        if mask != "causal":
            kind = torch.bool if mask == "bool" else dtype
            options["mask"] = torch.zeros(1, 1, QUERIES, QUERIES, dtype=kind)
        if name == "everything":
            options |= {"softcap": 30.0, "sinks": torch.zeros(HEADS, dtype=dtype)}
        label = f"prefill D={dim} {str(dtype).removeprefix('torch.')} {mask}: {name}"
        yield label, partial(attend_prefill, q, k, k.clone(), edits()[name], **options)
        if name == "sink, head gain":
            yield (
                f"{label}, column sums",
                partial(sum_columns, Call(q, k, None, edits()[name], **options), TEXT),
            )
            request = StatsRequest(channels=Channels(torch.zeros(1, 9, dtype=torch.uint8), 7), entropy=True)
            yield f"{label}, observed", partial(prefill_stats, q, k, request, **options)
