"""Random calls of `attend_paged`, and the same calls with keys and values in one piece."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from kernel_cases import ROWS, Case, make_edit, make_rows, moved, random_like, requests
from torch import Tensor

from regaze.kernels import AttentionEdit, Stats, UnmaskRect, attend_paged

#: Ways to store a cache: [P, Hkv, page, D] itself, keys beside values, heads inside of the page, keys
#: beside values inside of the page.
LAYOUTS = ("plain", "side by side", "heads inner", "pages of pairs")
PAGE_SIZES = (1, 5, 16, 24, 32, 128)


@dataclass
class PagedCase:
    """A call of `attend_paged`."""

    q: Tensor
    key_cache: Tensor
    value_cache: Tensor
    table: Tensor
    lengths: Tensor
    edit: AttentionEdit
    softcap: float | None = None
    sinks: Tensor | None = None

    def run(self, backend: str, device: str = "cpu") -> tuple[Tensor, Stats | None]:
        tensors = (self.q, self.key_cache, self.value_cache, self.table, self.lengths, self.edit, self.sinks)
        *operands, sinks = (moved(part, device) for part in tensors)
        return attend_paged(*operands, softcap=self.softcap, sinks=sinks, backend=backend)

    def whole(self) -> Case:
        """The call of `attend` that it stands for, gathered a key at a time."""
        batch, queries = self.q.shape[0], self.q.shape[2]
        page, keys = self.key_cache.shape[2], self.table.shape[1] * self.key_cache.shape[2]
        gathered = [
            c.new_zeros(batch, c.shape[1], keys, c.shape[3]) for c in (self.key_cache, self.value_cache)
        ]
        mask = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
        exist = torch.zeros(batch, keys, dtype=torch.bool)
        for b, length in enumerate(self.lengths.tolist()):
            for j in range(length):
                exist[b, j] = True
                for whole, cache in zip(gathered, (self.key_cache, self.value_cache), strict=True):
                    whole[b, :, j] = cache[int(self.table[b, j // page]), :, j % page]
                for i in range(queries):
                    mask[b, 0, i, j] = j <= length - queries + i
        opened = tuple(
            UnmaskRect(rect.rows, rect.columns & exist[:, : rect.columns.shape[1]])
            for rect in self.edit.unmask
        )
        edit = self.edit.replace(unmask=opened)
        return Case(self.q, *gathered, edit, mask, False, self.softcap, self.sinks)


def in_layout(layout: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The same caches as views of memory in another order."""
    if layout == "side by side":
        return tuple(torch.cat([key, value], -1).split([key.shape[3], value.shape[3]], -1))
    if layout == "heads inner":
        return tuple(cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in (key, value))
    if layout == "pages of pairs" and key.shape == value.shape:
        pairs = torch.stack([key, value], 1).transpose(2, 3).contiguous()  # [P, 2, page, Hkv, D]
        return tuple(cache.transpose(1, 2) for cache in pairs.unbind(1))
    return key, value


def make_paged(
    g: torch.Generator,
    page: int,
    lengths: list[int],
    kv_heads: int,
    ratio: int,
    queries: int,
    dims: tuple[int, int],
    dtype: torch.dtype,
    layout: str,
) -> PagedCase:
    """An unedited case: shuffled pages, numbers that no cache has past them, NaN where no key belongs."""
    batch, used = len(lengths), [-(-length // page) for length in lengths]
    columns, total = max(1, *used) + int(torch.randint(0, 2, (), generator=g)), sum(used) + 2
    order = iter(torch.randperm(total, generator=g).tolist())
    table = torch.full((batch, columns), 1 << 30, dtype=torch.int32)
    caches = [torch.full((total, kv_heads, page, dim), torch.nan, dtype=dtype) for dim in dims]
    for b, length in enumerate(lengths):
        for i in range(used[b]):
            table[b, i] = next(order)
            rest = min(page, length - i * page)
            for cache in caches:
                some = random_like(g, kv_heads, rest, cache.shape[3], scale=2.0)
                cache[table[b, i], :, :rest] = some.to(dtype)
    q = random_like(g, batch, kv_heads * ratio, queries, dims[0], scale=2.0).to(dtype)
    return PagedCase(q, *in_layout(layout, *caches), table, torch.tensor(lengths), AttentionEdit())


@st.composite
def paged_cases(
    draw,
    parts: tuple[str, ...],
    in_full: bool,
    longest: int = 70,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
) -> PagedCase:
    """Cases with `parts`; their statistics hold weights of single keys only if `in_full`."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    page, dtype = draw(st.sampled_from(PAGE_SIZES)), draw(st.sampled_from(dtypes))
    lengths = draw(st.lists(st.integers(0, longest), min_size=1, max_size=3))
    kv_heads, ratio = draw(st.integers(1, 2)), draw(st.sampled_from((1, 3, 7)))
    queries, dim = draw(st.sampled_from((1, 1, 2, 5))), draw(st.sampled_from((5, 16)))
    dims = dim, draw(st.sampled_from((dim, 3)))
    layout = draw(st.sampled_from(LAYOUTS))
    case = make_paged(g, page, lengths, kv_heads, ratio, queries, dims, dtype, layout)
    if draw(st.booleans()):
        case.table, case.lengths = case.table.long(), case.lengths.int()
    batch, heads, keys = len(lengths), kv_heads * ratio, case.table.shape[1] * page
    used = set(draw(st.lists(st.sampled_from(parts), max_size=4, unique=True)))
    rows = make_rows(draw(st.sampled_from(ROWS)), batch, queries, g)
    named, exact = draw(st.integers(1, keys)), dtype == torch.float32
    edit = make_edit(used, batch, heads, queries, named, g, exact, rows)
    if draw(st.booleans()):
        stats = draw(requests(batch, queries, keys, g))
        if not in_full:
            reweights = edit.policy is not None or edit.value_gain is not None
            edited = stats.edited and not reweights
            stats = replace(stats, columns=None, full_rows=False, edited=edited)
        edit = edit.replace(stats=stats)
    case.edit = edit
    case.softcap = draw(st.sampled_from((None, None, 3.0)))
    if draw(st.integers(0, 2)) == 0:
        case.sinks = random_like(g, heads, scale=2.0).to(dtype)
    return case
