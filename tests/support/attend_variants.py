"""Random calls of `attend` with windows and sliding caches: how far a backend is from the specification."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from kernel_cases import PARTS, Case, cases, eager, stats_dict, within_budget
from torch import Tensor

from regaze.kernels import AttentionEdit, UnmaskRect, Windows, attend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Variant:
    """A case, of which a sliding cache may have dropped the first keys.

    Attributes:
        case: the call with all keys; dropped ones are hidden from every row.
        dropped: how many keys the backend is not given.
        huge: whether scores leave the range of fp16, so that only what is finite is compared.
    """

    case: Case
    dropped: int = 0
    huge: bool = False

    def call(self, backend: str) -> tuple[Tensor, dict[str, Tensor]]:
        case, first = self.case, self.dropped
        k, v = case.k[:, :, first:], case.v[:, :, first:]
        mask = case.mask if case.mask is None else case.mask[..., first:]
        part = replace(case, k=k, v=v, mask=mask)
        out, stats = part.call(attend, backend=backend, first_key=first)
        return out, {} if stats is None else stats_dict(stats)


@dataclass(frozen=True)
class Deviation:
    """Of one call, against the specification in fp64.

    Attributes:
        output, statistics: largest error over what is allowed; 1 is the budget.
        mismatches: numbers that are finite on one side alone.
    """

    output: float
    statistics: float
    mismatches: int


@st.composite
def variants(draw) -> Variant:
    case = draw(cases(parts=(*PARTS, "head_mean"), dtypes=DTYPES, stats=draw(st.booleans())))
    batch, heads = case.q.shape[:2]
    keys, edit = case.k.shape[2], case.edit
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if case.q.dtype == torch.bfloat16:  # its products are rounded: statistics have no budget
        edit = edit.replace(stats=None)
    if draw(st.integers(0, 3)) == 0:
        span = torch.randint(1, keys + 2, (batch, heads), generator=g)
        first = torch.randint(0, keys, (batch,), generator=g) if draw(st.booleans()) else None
        edit = edit.replace(windows=Windows(span, draw(st.integers(0, 3)), first))
    huge = case.q.dtype == torch.float16 and draw(st.integers(0, 3)) == 0
    if huge:
        case = replace(case, q=case.q * 200, k=case.k * 200)
    dropped = draw(st.integers(0, keys - 1)) if draw(st.integers(0, 3)) == 0 else 0
    case = replace(case, edit=edit)
    return Variant(_without_first(case, dropped) if dropped else case, dropped, huge)


def _without_first(case: Case, dropped: int) -> Case:
    """The same call with the first keys hidden; its mask is explicit."""
    queries, keys = case.q.shape[2], case.k.shape[2]
    mask = case.mask
    if mask is None:
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool)
        mask = mask.tril(keys - queries) if case.is_causal else mask
    hidden = torch.arange(keys) < dropped
    mask = mask.masked_fill(hidden, False if mask.dtype == torch.bool else -torch.inf)
    unmask = []
    for rect in case.edit.unmask:
        n = rect.columns.shape[1]
        unmask.append(UnmaskRect(rect.rows, rect.columns & ~hidden[:n]))
    return replace(case, mask=mask, is_causal=False, edit=case.edit.replace(unmask=tuple(unmask)))


def deviation(variant: Variant, backend: str) -> Deviation:
    """How far a backend is from the specification, in units of the error budget of `kernel_cases`."""
    case = variant.case
    out, stats = variant.call(backend)
    exact, exact_stats = case.doubled().call(attend, backend="reference")
    assert out.shape == exact.shape
    assert out.dtype == case.q.dtype
    mismatches = int((out.isfinite() != exact.isfinite()).sum())
    worst = 0.0
    if not variant.huge and not mismatches:
        error, allowed = within_budget(out, exact, case.call(eager), case.scale)
        worst = error / allowed if error else 0.0
    statistics = 0.0
    if case.edit.stats is not None:
        single = stats_dict(case.call(attend, backend="reference")[1])
        for name, want in stats_dict(exact_stats).items():
            mismatches += int((want.isfinite() != stats[name].isfinite()).sum())
            if name != "top_column" and not variant.huge:
                statistics = max(statistics, _stats_ratio(stats[name], want, single[name], case.scale))
    return Deviation(worst, statistics, mismatches)


def _stats_ratio(got: Tensor, exact: Tensor, single: Tensor, scale: float) -> float:
    """Error over twice that of the fp32 specification and a few roundings."""
    assert got.shape == exact.shape
    finite = exact.isfinite() & got.isfinite()
    if not finite.any():
        return 0.0
    want = exact.double()[finite]
    allowed = 2 * (single.double()[finite] - want).abs().max().item()
    allowed += 8 * torch.finfo(torch.float32).eps * max(1.0, want.abs().max().item()) * scale
    return (got.double()[finite] - want).abs().max().item() / allowed


def parts_of(edit: AttentionEdit) -> list[str]:
    """Names of what an edit does."""
    names = ("score_slope", "head_mean_slope", "score_gain", "head_score_gain", "bias", "value_gain")
    parts = [
        name
        for name in (*names, "head_gain", "head_source", "windows", "stats")
        if getattr(edit, name) is not None
    ]
    if edit.policy is not None:
        parts.append(type(edit.policy).__name__)
    return parts + ["unmask"] * bool(edit.unmask)
