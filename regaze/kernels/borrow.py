"""Borrowed maps: how a backend runs an edit with a `head_source`.

A head that has the queries and keys of another one has its map. So no kernel knows of this: queries and keys
change places before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regaze.errors import ShapeError
from regaze.kernels.spec import AttentionEdit, Stats, StatsRequest

#: Query rows whose visible keys are counted at once.
_BLOCK_ROWS = 512


def borrowing(
    attend: Callable[..., tuple[Tensor, Stats | None]],
    attention_stats: Callable[..., Stats],
    column_sums: Callable[..., Tensor],
) -> Callable[..., tuple[Tensor, Stats | None]]:
    """The `attend` of a backend, for edits with a `head_source` as well.

    Statistics of the unedited rows are those of the heads' own maps, from a pass of their own.
    """

    def attend_borrowed(
        query: Tensor, key: Tensor, value: Tensor, edit: AttentionEdit, **options: Any
    ) -> tuple[Tensor, Stats | None]:
        source = edit.head_source
        if source is None:
            return attend(query, key, value, edit, **options)
        index = source.index
        if index is None:
            assert source.rule is not None
            with torch.no_grad():
                seen = received(query, key, source.rows, attention_stats, column_sums, options)
                index = source.rule(*seen)
        rest, stats = edit.with_own_maps, None
        if rest.stats is not None and not rest.stats.edited:
            stats = attend(query, key, value, rest, **options)[1]
            rest = rest.without_stats
        options["mask"] = exchanged_mask(options["mask"], index)
        out, edited = attend(*exchanged(query, key, value, index), rest, **options)
        return out, edited if stats is None else stats

    return attend_borrowed


def exchanged(query: Tensor, key: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B, Hq, L, D]; head h has query and key of head `index` [B or 1, Hq]."""
    heads, group = query.shape[1], query.shape[1] // key.shape[1]
    index = index.expand(query.shape[0], heads)
    sample = torch.arange(len(index), device=index.device)[:, None]
    own = value if group == 1 else value.repeat_interleave(group, 1)
    return query[sample, index], key[sample, index // group], own


def exchanged_mask(mask: Tensor | None, index: Tensor) -> Tensor | None:
    """A mask that differs between heads goes with the scores."""
    if mask is None or mask.shape[1] == 1:
        return mask
    batch = max(len(mask), len(index))
    sample = torch.arange(batch, device=index.device)[:, None]
    return mask.expand(batch, -1, -1, -1)[sample, index.expand(batch, -1)]


def received(
    query: Tensor,
    key: Tensor,
    rows: Tensor | None,
    attention_stats: Callable[..., Stats],
    column_sums: Callable[..., Tensor],
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """What a `HeadRule` is given, of plain attention.

    Raises:
        ShapeError: rows that are not the keys.
    """
    queries, keys, mask = query.shape[2], key.shape[2], options["mask"]
    if queries > keys or (mask is None and queries != keys):
        raise ShapeError(
            f"a HeadSource with a rule is for the forward of a whole prompt, in which row i is key i; there "
            f"are Lq={queries} rows and Lk={keys} keys"
        )
    counted = torch.ones(1, queries, device=query.device) if rows is None else rows.float()
    total = column_sums(query, key, None, counted, False, **options)  # [B, Hq, Lk]
    lse = attention_stats(query, key, StatsRequest(lse=True), **options).lse
    assert lse is not None
    own = (_own_scores(query, key, options) - lse).exp()
    sees_itself = 1.0 if mask is None else _shown(mask.diagonal(0, 2, 3))
    total[..., :queries] -= (own * counted[:, None] * sees_itself).nan_to_num(0.0)
    return total.clamp_min(0.0), _seen(mask, options["is_causal"], counted, keys)


def _own_scores(query: Tensor, key: Tensor, options: dict[str, Any]) -> Tensor:
    """[B, Hq, Lq] fp32, the score of each row's own key."""
    batch, heads, queries, dim = query.shape
    rows = query.reshape(batch, key.shape[1], -1, queries, dim).float()
    scores = (rows * key[:, :, None, :queries].float()).sum(-1).view(batch, heads, queries)
    scores, softcap, mask = scores * options["scaling"], options["softcap"], options["mask"]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None and mask.is_floating_point():
        scores = scores + mask.diagonal(0, 2, 3).float()
    return scores


def _shown(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _seen(mask: Tensor | None, is_causal: bool, counted: Tensor, keys: int) -> Tensor:
    """[B or 1, Hq or 1, Lk] fp32, how many counted rows may look at each key, its own row left out."""
    if mask is None:
        others = counted.sum(1, keepdim=True) - (counted.cumsum(1) if is_causal else counted)
        return others[:, None]
    queries = counted.shape[1]
    seen = counted.new_zeros(max(len(mask), len(counted)), mask.shape[1], keys)
    for start in range(0, queries, _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        seen += (_shown(mask[:, :, part]) * counted[:, None, part, None]).sum(2)
    seen[..., :queries] -= _shown(mask.diagonal(0, 2, 3)) * counted[:, None]
    return seen
