"""Calls with many query rows for `test_kernels_triton_prefill.py`, and what their results are held to."""

from __future__ import annotations

from dataclasses import replace

import torch
from kernel_cases import Case, eager, make_edit, make_mask, random_like, stats_dict, within_budget

from regaze.kernels import AttentionEdit, Channels, RowSelection, StatsRequest, UnmaskRect, attend
from regaze.kernels.borrow import borrowing
from regaze.kernels.spec import Windows
from regaze.kernels.triton.call import Call
from regaze.kernels.triton.launch import attention_stats_triton, column_sums_triton
from regaze.kernels.triton.prefill import attend_prefill

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(case: Case):
    """`attend_prefill` on the device, its results on the CPU."""
    case = moved(case)
    scaling = case.q.shape[-1] ** -0.5
    attend = borrowing(attend_prefill, attention_stats_triton, column_sums_triton)  # as a backend runs it
    out, stats = attend(case.q, case.k, case.v, case.edit, scaling=scaling, **case.options)
    if stats is not None:
        stats = type(stats)(*(None if part is None else part.cpu() for part in stats))
    return out.cpu(), stats


def check(case: Case, eager_case: Case | None = None) -> None:
    """Output within twice the error of eager, statistics within twice that of the fp32 specification."""
    out, stats = run(case)
    exact, exact_stats = case.doubled().call(attend, backend="reference")
    assert out.dtype == case.q.dtype
    assert out.shape == exact.shape
    error, allowed = within_budget(out, exact, (eager_case or case).call(eager), case.scale)
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
    if case.edit.stats is None:
        return
    _, single = case.call(attend, backend="reference")
    got, want, single = stats_dict(stats), stats_dict(exact_stats), stats_dict(single)
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert tensor.shape == want[name].shape, name
        assert tensor.dtype == single[name].dtype, name
        if name == "top_column" or not tensor.numel():
            continue
        finite = want[name].isfinite()
        assert torch.equal(finite, tensor.isfinite()), name
        true, low, mine = (x.double()[finite] for x in (want[name], single[name], tensor))
        if true.numel():
            size = max(1.0, true.abs().max().item()) * case.scale
            allowed = 2 * (low - true).abs().max().item() + 8 * torch.finfo(torch.float32).eps * size
            assert (mine - true).abs().max().item() <= allowed, name


def make_case(
    used: tuple[str, ...] = (),
    *,
    queries: int = 23,
    keys: int | None = None,
    ratio: int = 2,
    dim: int = 16,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    mask: str = "causal",
    rows: RowSelection | None = None,
    batch: int = 2,
    kv_heads: int = 1,
    seed: int = 0,
    stats: bool = False,
    **options,
) -> Case:
    """A call whose edit has the parts `used` of `kernel_cases.PARTS`."""
    g = torch.Generator().manual_seed(seed)
    keys, heads = keys or queries, kv_heads * ratio
    q = random_like(g, batch, heads, queries, dim, scale=2.0).to(dtype)
    k, v = (random_like(g, batch, kv_heads, keys, d, scale=2.0).to(dtype) for d in (dim, value_dim or dim))
    named = max(1, keys - 3)
    edit = make_edit(set(used), batch, heads, queries, named, g, dtype == torch.float32, rows)
    if stats:
        edit = edit.replace(stats=request(batch, queries, keys, g))
    visible = make_mask(mask, batch, heads, queries, keys, dtype, g)
    return Case(q, k, v, edit, visible, mask == "causal", **options)


def request(batch: int, queries: int, keys: int, g: torch.Generator, **changes) -> StatsRequest:
    """Everything there is to ask, of some rows, different ones in each sample."""
    rows = RowSelection.where(torch.rand(batch, queries, generator=g) > 0.6)
    groups = torch.randint(0, 3, (batch, keys), generator=g, dtype=torch.uint8)
    channels = Channels(groups, 3, torch.rand(2, batch, keys, generator=g))
    columns = torch.randint(-1, keys, (batch, 5), generator=g)
    asked = StatsRequest(rows, channels, entropy=True, top1=True, lse=True, columns=columns)
    return replace(asked, **changes)


def call_of(case: Case) -> Call:
    """The call that the case makes, on the device."""
    case = moved(case)
    scaling = case.q.shape[-1] ** -0.5
    options = (case.mask, scaling, case.is_causal, case.softcap, case.sinks)
    return Call(case.q, case.k, case.v, case.edit, *options)


def moved(case: Case) -> Case:
    """The case on the device, its edit too."""
    if DEVICE == "cpu":
        return case

    def move(x):
        if isinstance(x, torch.Tensor):
            return x.to(DEVICE)
        if isinstance(x, tuple) and not hasattr(x, "_fields"):
            return tuple(move(part) for part in x)
        if isinstance(x, AttentionEdit | Channels | RowSelection | StatsRequest | UnmaskRect | Windows):
            fields = [f for f in x.__dataclass_fields__.values() if f.init]
            return type(x)(**{f.name: move(getattr(x, f.name)) for f in fields})
        return x

    return Case(*(move(getattr(case, name)) for name in case.__dataclass_fields__))
