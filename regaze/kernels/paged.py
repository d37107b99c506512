"""`attend_paged`: `attend` for the last tokens of sequences whose keys and values lie in pages.

The Triton decode kernel reads the pages where they are. What it does not run is gathered first and then runs
as any call of `attend` does: on other backends, with more than 8 query rows or 4 channels, and where a layer
has to see whole rows (slices of weights, statistics of edited rows) or other keys (shifts, a head source, a
score gate).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regaze.errors import BadParameterError, ShapeError
from regaze.kernels.attend import attend, attention_stats
from regaze.kernels.backends import BACKENDS, choose
from regaze.kernels.channels import describe
from regaze.kernels.pages import Pages
from regaze.kernels.spec import AttentionEdit, Stats, StatsRequest

if TYPE_CHECKING:
    from regaze.kernels.numba.paged import PagedTensors

_PLAIN = AttentionEdit()


def attend_paged(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    edit: AttentionEdit | None = None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Stats | None]:
    """Scaled dot-product attention under an edit, over keys and values in pages.

    It is `attend` of what `Pages.gather` makes of the caches, without making it where the Triton kernel runs.
    Columns of the edit and of its statistics count from the first key of each sequence.

    Args:
        query: [B, Hq, Lq, D], the last Lq tokens of each sequence: row i sits at key length - Lq + i and sees
            the keys up to there. A sequence with fewer new tokens has them in its last rows; a row before
            the first key sees nothing and gives zeros.
        key_cache, value_cache: [P, Hkv, page, D] and [P, Hkv, page, Dv] with any number of keys in a page;
            views of any strides (where the last is not 1, pages are gathered): a cache that is stored as
            [P, page, Hkv, D] goes in as `cache.transpose(1, 2)`, one with keys and values side by side as
            `cache[..., :D]` and `cache[..., D:]`.
        block_table: [B, n] int32 or int64, the pages of each sequence in order. Entries past a sequence's
            last page are not looked at. What a launch is cut into follows from n, so pass no more columns
            than the longest sequence needs.
        lengths: [B] int32 or int64, the keys of each sequence, those of `query` included; 0 to n * page.
        edit: what to change and measure, with Lk = n * page; None is plain attention. A model's own sliding
            window is given as its `windows`.
        scaling, softcap, sinks, backend: as for `attend`.

    Returns:
        out [B, Hq, Lq, Dv] in the dtype of `query`, and the `Stats` that `edit.stats` requests.

    Raises:
        ShapeError: tensors that do not fit together; on a CPU, where it costs no wait for the device, also
            lengths and pages that do not exist.
        BadParameterError: as for `attend`.
    """
    pages = _pages(query, key_cache, value_cache, block_table, lengths)
    edit = _PLAIN if edit is None else edit
    page_size = key_cache.shape[2]
    options: dict[str, Any] = {"scaling": query.shape[-1] ** -0.5 if scaling is None else scaling}
    options |= {"softcap": softcap, "sinks": sinks}
    edit.check(query.shape[0], query.shape[1], query.shape[2], pages.capacity(page_size))
    if _reads_pages(backend, query, key_cache, value_cache, pages, edit):
        _check_options(query, softcap, sinks)
        from regaze.kernels.triton.launch import attend_paged_triton  # Triton takes a while to import

        return attend_paged_triton(query, key_cache, value_cache, pages, edit, **options)
    key, value = pages.gather(key_cache), pages.gather(value_cache)
    mask = pages.mask(query.shape[2], page_size)
    return attend(query, key, value, pages.inside(edit, page_size), mask=mask, backend=backend, **options)


def attention_stats_paged(
    query: Tensor,
    key_cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    request: StatsRequest,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str = "auto",
) -> Stats:
    """Statistics of plain attention over keys in pages, whose output another kernel has computed.

    Arguments and errors as for `attend_paged`; `request` as for `attention_stats`.
    """
    pages = _pages(query, key_cache, key_cache, block_table, lengths)
    page_size = key_cache.shape[2]
    options: dict[str, Any] = {"scaling": query.shape[-1] ** -0.5 if scaling is None else scaling}
    options |= {"softcap": softcap, "sinks": sinks}
    edit = request.as_edit
    edit.check(query.shape[0], query.shape[1], query.shape[2], pages.capacity(page_size))
    if _reads_pages(backend, query, key_cache, key_cache, pages, edit):
        _check_options(query, softcap, sinks)
        from regaze.kernels.triton.launch import attention_stats_paged_triton

        return attention_stats_paged_triton(query, key_cache, pages, request, **options)
    mask = pages.mask(query.shape[2], page_size)
    return attention_stats(query, pages.gather(key_cache), request, mask=mask, backend=backend, **options)


def compiled_tensors(
    query: Tensor,
    output: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    table: Tensor,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> PagedTensors | None:
    """A layer's tensors for the compiled kernel of the CPU, see `PagedRows`.

    Arguments as for `PagedTensors` and `attend`; None where another backend is chosen or the kernel does not
    read these tensors.
    """
    first = query[:1, :, None]
    chosen = choose("auto", first, first, first, _PLAIN)
    if softcap is not None or sinks is not None or chosen is not BACKENDS.get("numba"):
        return None
    from regaze.kernels.numba.paged import PagedTensors  # Numba takes a while to import

    tensors = query, output, key_cache, value_cache, table
    return PagedTensors(*tensors, scaling) if PagedTensors.fit(*tensors) else None


def _reads_pages(
    backend: str, query: Tensor, key_cache: Tensor, value_cache: Tensor, pages: Pages, edit: AttentionEdit
) -> bool:
    """Whether the Triton decode kernel runs a call."""
    if choose(backend, query, key_cache, value_cache, edit) is not BACKENDS.get("triton"):
        return False
    if not key_cache.stride(3) == value_cache.stride(3) == 1:  # the kernel would need a copy of whole caches
        return False
    if 0 in (query.shape[0], query.shape[2], pages.capacity(key_cache.shape[2])):
        return False
    elsewhere = (edit.head_mean_slope, edit.spread, edit.score_gate, edit.head_source)
    if edit.has_outstanding or edit.shifts or any(part is not None for part in elsewhere):
        return False
    from regaze.kernels.triton.launch import is_decoded

    return is_decoded(query, edit)


def _pages(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, block_table: Tensor, lengths: Tensor
) -> Pages:
    """Table and lengths; ShapeError unless they and the tensors fit together."""
    named = {"query": query, "key_cache": key_cache, "value_cache": value_cache}
    named |= {"block_table": block_table, "lengths": lengths}
    found = ", ".join(f"{name} is {describe(tensor)}" for name, tensor in named.items())
    if not query.dim() == key_cache.dim() == value_cache.dim() == 4:
        raise ShapeError(f"query must be [B, Hq, Lq, D], the caches [P, Hkv, page, D or Dv]; {found}")
    same = key_cache.shape[:3] == value_cache.shape[:3]
    if not same or query.shape[3] != key_cache.shape[3]:
        raise ShapeError(f"query and the caches [P, Hkv, page, D and Dv] disagree: {found}")
    if not all((query.shape[1], *key_cache.shape[1:], value_cache.shape[3])):
        raise ShapeError(f"paged attention needs heads, keys in a page, and D and Dv of at least 1: {found}")
    if query.shape[1] % key_cache.shape[1]:
        raise ShapeError(f"Hq={query.shape[1]} is not a multiple of Hkv={key_cache.shape[1]}: {found}")
    batch = query.shape[0]
    whole = {block_table.dtype, lengths.dtype} <= {torch.int32, torch.int64}
    if not whole or block_table.dim() != 2 or len(block_table) != batch or lengths.shape != (batch,):
        raise ShapeError(f"block_table must be [B={batch}, n] and lengths [B], int32 or int64; {found}")
    pages = Pages(block_table, lengths)
    if lengths.device.type == "cpu" and block_table.device.type == "cpu" and batch:
        _check_values(pages, key_cache)
    return pages


def _check_values(pages: Pages, cache: Tensor) -> None:
    """Raise ShapeError for lengths or pages that do not exist."""
    total, page_size = cache.shape[0], cache.shape[2]
    low, high = (int(x) for x in pages.lengths.aminmax())
    if low < 0 or high > pages.capacity(page_size):
        raise ShapeError(
            f"lengths must be 0 to {pages.capacity(page_size)}, for a block table of {pages.table.shape[1]} "
            f"pages of {page_size} keys per sequence; they are {low} to {high}"
        )
    is_used = torch.arange(pages.table.shape[1]) * page_size < pages.lengths[:, None]
    used = pages.table[is_used]
    if used.numel() and (int(used.min()) < 0 or int(used.max()) >= total):
        raise ShapeError(
            f"the caches have pages 0 to {total - 1}, and block_table names pages {int(used.min())} to "
            f"{int(used.max())} within the lengths"
        )


def _check_options(query: Tensor, softcap: float | None, sinks: Tensor | None) -> None:
    """The checks of `attend` of what it would see as well."""
    heads = query.shape[1]
    if softcap is not None and not softcap > 0:
        raise BadParameterError(f"softcap must be positive (None for no soft cap), got {softcap}")
    if sinks is not None and (sinks.shape != (heads,) or not sinks.is_floating_point()):
        raise ShapeError(f"sinks must be [Hq] = [{heads}] float, one logit per query head; {describe(sinks)}")
