"""Query rows with their scores materialised, in plain torch: what blocks of rows and single rows share.

Operations work in place where no gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.kernels.policies import coefficients_of
from regaze.kernels.reference import edit_scores, keys_share, spread_out
from regaze.kernels.spec import AttentionEdit

#: Elements of the keys above which, on a CPU, matrix products outrun torch's attention for a single row.
LARGE_ELEMENTS = 1 << 18


def grouped(x: Tensor) -> Tensor:
    """Keys or values [B, Hkv, Lk, D] as [B Hkv, Lk, D], a view if the cache allows it.

    Those of fp16 are copied to fp32: scores, gains and weights may leave the range of fp16.
    """
    x = x.flatten(0, 1)
    return x.float() if x.dtype == torch.float16 else x


def product(rows: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """rows [N, M, D] by keys [N, Lk, D], scaled: [N, M, Lk]."""
    zero = _zero(rows.dtype, rows.device)
    if keys.numel() >= LARGE_ELEMENTS and rows.shape[1] <= 4 and keys.dtype == torch.float32 and keys.is_cpu:
        # For few rows MKL reads keys that no cache holds up to three times as fast when they come first.
        return torch.baddbmm(zero, keys, rows.mT, beta=0, alpha=scaling).mT.contiguous()
    return torch.baddbmm(zero, rows, keys.mT, beta=0, alpha=scaling)


@lru_cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant that `baddbmm` adds with factor 0."""
    with torch.inference_mode(False):  # it outlives the block that needs it first
        return torch.zeros((), dtype=dtype, device=device)


def row_scores(
    rows: Tensor, keys: Tensor, scaling: float, softcap: float | None, additive: Tensor | None
) -> Tensor:
    """[B, Hq, R, Lk], fp32 or fp64, of rows [B, Hq, R, D] and keys [B Hkv, Lk, D].

    Args:
        additive: the part of a mask that is added after the soft cap.
    """
    batch, heads, count, dim = rows.shape
    # The query group joins the rows: a group shares its keys.
    rows = rows.reshape(len(keys), -1, dim)
    if rows.dtype != keys.dtype:
        rows = rows.to(keys.dtype)
    scores = product(rows, keys, scaling).view(batch, heads, count, keys.shape[1])
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores if additive is None else scores + additive.to(scores.dtype)


def masked_softmax(
    scores: Tensor, hidden: Tensor | None, sinks: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Masked scores and their softmax, in which hidden keys, and so fully masked rows, are zeros.

    `sinks` [B or 1, Hq or 1, R or 1] are those of the rows. With `in_place`, the given scores are overwritten
    where no gradient is needed.
    """
    if hidden is not None:
        write = in_place and not scores.requires_grad
        scores = scores.masked_fill_(hidden, -torch.inf) if write else scores.masked_fill(hidden, -torch.inf)
    weights = torch.softmax(scores, -1)
    if hidden is not None:
        # This replaces the NaN of a fully masked row, the lines above that of its gradient.
        weights = (
            weights.masked_fill(hidden, 0.0) if weights.requires_grad else weights.masked_fill_(hidden, 0.0)
        )
    if sinks is not None:
        weights = weights * keys_share(torch.logsumexp(scores, -1), sinks)[..., None]
    return scores, weights


def edited_softmax(
    edit: AttentionEdit, plain: Tensor, hidden: Tensor | None, sinks: Tensor | None, selected: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores and weights [B, Hq, R, Lk] with the parts of the edit that act before the softmax.

    Args:
        plain: the scores without mask. selected: [B or 1, 1, R, 1] bool, rows that are edited; None: all.
    """
    scores, keys = edit_scores(plain, edit), plain.shape[-1]
    if selected is not None:
        scores = torch.where(selected, scores, plain)
    if edit.bias is not None:  # a key with bias -inf is hidden like a masked one
        removed = edit.columns("bias", keys)[:, :, None] == -torch.inf
        removed = removed if selected is None else removed & selected
        hidden = removed if hidden is None else hidden | removed
    return masked_softmax(scores, hidden, sinks, in_place=True)


def reweighted(
    edit: AttentionEdit,
    weights: Tensor,
    plain: Tensor,
    selected: Tensor | None,
    fold: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Weights [B, Hq, R, Lk] with the parts of the edit that act after the softmax.

    Args:
        plain: the weights without the edit, where it has a spread.
        selected: as for `edited_softmax`. fold: the policy multiplied into its channels.
    """
    final, keys = weights, weights.shape[-1]
    if fold is not None:
        final = fold(weights.flatten(1, 2)).view_as(weights)
    elif edit.policy is not None and edit.channels is not None:
        coefficients = coefficients_of(edit.policy, edit.channels.masses(weights))
        final = edit.channels.reweighted(weights, coefficients)
    if edit.value_gain is not None:
        final = final * edit.columns("value_gain", keys)[:, :, None].to(final.dtype)
    if edit.spread is not None:
        final = spread_out(plain, final, edit.columns("spread", keys))
    if final is not weights and selected is not None:
        final = torch.where(selected, final, weights)
    return final


def weighted_values(weights: Tensor, values: Tensor) -> Tensor:
    """[B, Hq, R, Dv] of weights [B, Hq, R, Lk] and values [B Hkv, Lk, Dv]."""
    batch, heads, rows, keys = weights.shape
    if weights.dtype != values.dtype:
        weights = weights.to(values.dtype)
    out = torch.bmm(weights.view(len(values), -1, keys), values)
    return out.view(batch, heads, rows, values.shape[2])


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, causal: bool
) -> Tensor:
    """[B, Hq, Lq, Dv] by torch's own kernels. Causal rows are as many as the keys."""
    batch, heads, queries, dim = query.shape
    kv_heads = key.shape[1]
    shared = heads != kv_heads
    if shared and queries == 1 and (mask is None or mask.shape[1] == 1):
        # The single rows of the heads that share keys are as good as rows of one head.
        query, shared = query.reshape(batch, kv_heads, -1, dim), False
    elif shared and key.is_cuda and not _cuda_shares_keys(key, value, mask):
        key, value = (x.repeat_interleave(heads // kv_heads, 1) for x in (key, value))
        shared = False
    out = F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal, scale=scaling, enable_gqa=shared
    )
    if mask is not None and mask.is_floating_point():
        # A row of a dtype's minimum is as fully masked as one of -inf, but torch averages its values.
        empty = mask.amax(-1, keepdim=True) <= torch.finfo(mask.dtype).min / 2
        out = out.masked_fill(empty, 0.0)
    return out if out.shape[1] == heads else out.view(batch, heads, 1, -1)


def _cuda_shares_keys(k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether CUDA has a fused kernel in which heads share keys; the fallback would be an L x L matrix."""
    return mask is None and k.shape[-1] == v.shape[-1] and k.dtype in (torch.float16, torch.bfloat16)
