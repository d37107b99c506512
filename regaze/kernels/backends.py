"""Which implementation runs a call of `attend`: by name, by the environment, or the best that can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.kernels.borrow import borrowing
from regaze.kernels.gating import gating
from regaze.kernels.reference import attend_reference, attention_stats_reference, column_sums_reference
from regaze.kernels.shift import shifting
from regaze.kernels.spec import AttentionEdit, Stats, StatsRequest
from regaze.kernels.torch_backend import attend_torch, attention_stats_torch, column_sums_torch


class Backend(NamedTuple):
    """One implementation of `attend`, of `attention_stats` and of `column_sums`.

    Attributes:
        own_attend: as `attend`, for edits without the parts that all backends have in common.
        stats_of_layers: as `attention_stats` for several layers with the same request, [layers, ...], in one
            launch: takes of each its query, key, scaling and other options, and the request. None where it
            cannot run them; no such function where several launches cost little.
    """

    attend: Callable[..., tuple[Tensor, Stats | None]]
    attention_stats: Callable[..., Stats]
    column_sums: Callable[..., Tensor]
    own_attend: Callable[..., tuple[Tensor, Stats | None]]
    stats_of_layers: Callable[..., Stats | None] | None = None

    def attend_for(self, edit: AttentionEdit) -> Callable[..., tuple[Tensor, Stats | None]]:
        """The shortest way to `attend` for an edit."""
        shared = edit.shifts or edit.head_source is not None or edit.score_gate is not None
        return self.attend if shared else self.own_attend


def _backend(
    attend: Callable[..., tuple[Tensor, Stats | None]],
    attention_stats: Callable[..., Stats],
    column_sums: Callable[..., Tensor],
    stats_of_layers: Callable[..., Stats | None] | None = None,
) -> Backend:
    gated = attend if attend is attend_reference else gating(attend)
    with_all_parts = shifting(borrowing(gated, attention_stats, column_sums))
    return Backend(with_all_parts, attention_stats, column_sums, attend, stats_of_layers)


def _attend_triton(
    query: Tensor, key: Tensor, value: Tensor, edit: AttentionEdit, **options: Any
) -> tuple[Tensor, Stats | None]:
    # The first needs the scores of all heads before those of any, the second plain beside edited weights, the
    # third whole rows before their masses.
    if edit.head_mean_slope is not None or edit.spread is not None or edit.has_outstanding:
        return attend_torch(query, key, value, edit, **options)
    from regaze.kernels.triton.launch import attend_triton  # Triton takes a while to import

    return attend_triton(query, key, value, edit, **options)


def _attention_stats_triton(*args: Any, **kwargs: Any) -> Stats:
    request: StatsRequest = args[2]
    if request.channels is not None and request.channels.outstanding is not None:
        return attention_stats_torch(*args, **kwargs)
    from regaze.kernels.triton.launch import attention_stats_triton

    return attention_stats_triton(*args, **kwargs)


def _column_sums_triton(*args: Any, **kwargs: Any) -> Tensor:
    from regaze.kernels.triton.launch import column_sums_triton

    return column_sums_triton(*args, **kwargs)


def _attend_numba(*args: Any, **kwargs: Any) -> tuple[Tensor, Stats | None]:
    from regaze.kernels.numba.launch import attend_numba  # Numba takes a while to import

    return attend_numba(*args, **kwargs)


def _attention_stats_numba(*args: Any, **kwargs: Any) -> Stats:
    from regaze.kernels.numba.launch import attention_stats_numba

    return attention_stats_numba(*args, **kwargs)


def _stats_of_layers_numba(*args: Any) -> Stats | None:
    from regaze.kernels.numba.launch import stats_of_layers_numba

    return stats_of_layers_numba(*args)


#: Backend by name; none may change what an edit means.
BACKENDS = {
    "reference": _backend(attend_reference, attention_stats_reference, column_sums_reference),
    "torch": _backend(attend_torch, attention_stats_torch, column_sums_torch),
}
if find_spec("triton") is not None:
    BACKENDS["triton"] = _backend(_attend_triton, _attention_stats_triton, _column_sums_triton)
if find_spec("numba") is not None:
    BACKENDS["numba"] = _backend(
        _attend_numba, _attention_stats_numba, column_sums_torch, _stats_of_layers_numba
    )

MAX_HEAD_DIM = 256
MAX_UNMASK = 63
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def choose(name: str, query: Tensor, key: Tensor, value: Tensor, edit: AttentionEdit) -> Backend:
    """The backend for a call: by the argument, else by REGAZE_BACKEND, else the fastest that can run it.

    Raises:
        BadParameterError: an unknown name, or a named backend that cannot run the call.
    """
    if name == "auto":
        name = os.environ.get("REGAZE_BACKEND") or "auto"
    if name == "auto":
        if query.is_cuda and why_not_triton(query, key, value, edit) is None:
            return BACKENDS["triton"]
        single = query.is_cpu and query.shape[2] == 1
        return BACKENDS["numba" if single and "numba" in BACKENDS else "torch"]
    if name == "triton":
        if (why := why_not_triton(query, key, value, edit)) is not None:
            raise BadParameterError(f"the Triton backend cannot run this call: {why}")
    elif name not in BACKENDS:
        raise BadParameterError(f"unknown attention backend {name!r}; this build has {', '.join(BACKENDS)}")
    return BACKENDS[name]


def why_not_triton(query: Tensor, key: Tensor, value: Tensor, edit: AttentionEdit) -> str | None:
    """Why the fused kernels cannot run a call, and what to do about it; None when they can."""
    if (why := _why_no_kernels(query.device)) is not None:
        return why
    dtypes = {x.dtype for x in (query, key, value)}
    if len(dtypes) > 1 or query.dtype not in _DTYPES:
        given = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return (
            f'query, key and value must all be float16, bfloat16 or float32, got {given}; use backend="torch"'
        )
    if max(query.shape[-1], value.shape[-1]) > MAX_HEAD_DIM:
        return (
            f"head dimensions go up to {MAX_HEAD_DIM}, got D={query.shape[-1]} and Dv={value.shape[-1]}; "
            'use backend="torch"'
        )
    if len(edit.unmask) > MAX_UNMASK:
        return (
            f'an edit may have {MAX_UNMASK} unmasked rectangles, got {len(edit.unmask)}; use backend="torch"'
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value, *_tensors(edit))):
        return 'it has no gradients: call it under torch.no_grad(), or use backend="torch" to train'
    return None


def _tensors(edit: AttentionEdit) -> Iterator[Tensor]:
    """The parts of an edit that may be learned."""
    maps = (edit.score_slope, edit.head_mean_slope, edit.score_gain, edit.head_score_gain)
    parts = (*maps, edit.bias, edit.sink, edit.value_gain)
    weights = None if edit.channels is None else edit.channels.weights
    shifts = (vectors for shift in edit.shifts for vectors in (shift.keys, shift.values))
    return (part for part in (*parts, edit.head_gain, weights, *shifts) if part is not None)


@torch.compiler.assume_constant_result
def _why_no_kernels(device: torch.device) -> str | None:
    """Why Triton cannot run on a device; None when it can. Determined once per device."""
    return _why_no_kernels_on(device)


@lru_cache(maxsize=32)
def _why_no_kernels_on(device: torch.device) -> str | None:
    if "triton" not in BACKENDS:
        return "Triton is not installed; pip install 'regaze[triton]', or use backend=\"torch\""
    if device.type == "cuda":
        if torch.version.hip is not None:
            return _why_not_compiled(device)
        found = torch.cuda.get_device_properties(device)
        if found.major < 8:
            version = f"{found.major}.{found.minor}"
            return f'{device} has compute capability {version}, and 8.0 is needed; use backend="torch"'
        return None
    from regaze.kernels.triton.common import INTERPRETED

    if device.type == "cpu" and INTERPRETED.value:
        return None
    return (
        f'its kernels run on a GPU, and query is on {device}; use backend="torch", or set TRITON_INTERPRET=1 '
        "before Python starts to run them on the CPU in Triton's interpreter, which is slow"
    )


def _why_not_compiled(device: torch.device) -> str | None:
    """Try a small call: not every ROCm device has a Triton that compiles for it."""
    x = torch.zeros(1, 1, 1, 16, device=device, dtype=torch.float16)
    try:
        _attend_triton(
            x, x, x, AttentionEdit(), mask=None, scaling=1.0, is_causal=False, softcap=None, sinks=None
        )
    except Exception as error:  # whatever the compiler raises
        return f'Triton does not compile for {device} ({type(error).__name__}: {error}); use backend="torch"'
    return None
