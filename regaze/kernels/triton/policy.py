"""Policies in kernels: their device functions by name, and coefficients where a policy couples heads.

The Triton part of a policy is one device function (`regaze.kernels.policies.TritonPart`). Most need the row's
own masses only and run inside the kernel that has them (merge.py, row_stats.py), where the function is a
compile-time constant. A policy that couples heads needs the masses of all heads of a row: `head_kernel` gives
these to its function, one program per row and sample, after the kernel that sums them and before the one that
uses the coefficients. A policy without a Triton part runs in torch on the masses.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.policies import MAX_CHANNELS, FusedPolicy, Policy, TritonPart, constant, offers
from regaze.kernels.triton.arguments import sink_arg
from regaze.kernels.triton.common import TINY, load_sinks
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.splits import SUMS_HEADER, merge_splits
from regaze.kernels.triton.tiling import power_of_two


def triton_part(policy: Policy | None, heads: int) -> TritonPart | None:
    """The Triton part of a policy; None where its reference has to run."""
    if policy is None or policy.channels > MAX_CHANNELS or not offers(policy, "triton_part"):
        return None
    return _packed(policy, heads)  # type: ignore[arg-type]  # these are hashable


@lru_cache(maxsize=256)
def _packed(policy: FusedPolicy, heads: int) -> TritonPart:
    return policy.triton_part(heads)


@lru_cache(maxsize=256)
def device_function(name: str) -> Any:
    """The device function "package.module:name"."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def numbers_on(numbers: Sequence[float], device: torch.device) -> Tensor:
    """The numbers of a policy as a constant on the device, not empty."""
    return constant(tuple(numbers) or (0.0,), device, torch.float32)


@triton.jit
def scale(masses, heads, exists, numbers_ptr, WIDTH: tl.constexpr):
    """Coefficients of `Scale`."""
    return tl.load(numbers_ptr + tl.arange(0, WIDTH)[None, :]) + tl.zeros_like(masses)


@triton.jit
def scale_keeping_mass(masses, heads, exists, numbers_ptr, WIDTH: tl.constexpr):
    """Coefficients of `Scale` with `renormalise`."""
    factors = tl.load(numbers_ptr + tl.arange(0, WIDTH)[None, :])
    total, scaled = tl.sum(masses, 1), tl.sum(masses * factors, 1)
    gain = (total / tl.maximum(scaled, TINY))[:, None]
    return tl.where((scaled <= 0)[:, None], 1.0, factors * gain)


@triton.jit(do_not_specialize=["num_splits", "num_rows"])
def head_kernel(
    coefficients_ptr, masses_ptr, sums_ptr, sinks, numbers_ptr, num_splits, num_heads, num_rows,
    NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr,
    POLICY: tl.constexpr,
):  # fmt: skip
    """Coefficients [B, Hq, R, K] from masses of that shape or, if these are None, from partial sums.

    One program per row and sample. WIDTH, BLOCK_H and BLOCK_S are the numbers of channels, heads and splits
    rounded up to powers of two.
    """
    row, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = tl.arange(0, BLOCK_H)
    head_exists = head < num_heads
    head = tl.where(head_exists, head, 0)
    place = (batch * num_heads + head) * num_rows + row
    if masses_ptr is None:
        sink = None
        if sinks is not None:
            sink = load_sinks(sinks, batch, head, row)
        split_offsets, split_exists, factors, _, _, _, _ = merge_splits(
            sums_ptr, place, head_exists, sink, num_splits, SUMS_HEADER + NUM_CHANNELS, BLOCK_S
        )
    k = tl.arange(0, WIDTH)[None, :]
    masses = tl.zeros([BLOCK_H, WIDTH], tl.float32)
    for channel in tl.static_range(NUM_CHANNELS):  # one at a time: [heads, splits] numbers fill the registers
        if masses_ptr is not None:
            mass = tl.load(masses_ptr + place * NUM_CHANNELS + channel, mask=head_exists, other=0.0)
        else:
            mass_ptrs = sums_ptr + split_offsets + SUMS_HEADER + channel
            mass = tl.sum(factors * tl.load(mass_ptrs, mask=split_exists, other=0.0), 1)
        masses = tl.where(k == channel, mass[:, None], masses)
    coefficients = POLICY(masses, head[:, None], head_exists[:, None], numbers_ptr, WIDTH)
    in_bounds = head_exists[:, None] & (k < NUM_CHANNELS)
    tl.store(coefficients_ptr + place[:, None] * NUM_CHANNELS + k, coefficients, mask=in_bounds)


# --- the host's side


@operator("head_coefficients")
def head_coefficients(
    masses: Tensor | None,
    partial_sums: Tensor | None,
    sinks: Tensor | None,
    sink: Tensor | None,
    shape: Sequence[int],
    function: str,
    numbers: Sequence[float],
) -> Tensor:
    """Coefficients of `shape` [B, Hq, R, K] by the function of a policy that couples heads.

    They come from masses of that shape, or from the partial sums of `decode_split` and the sinks of
    model and edit.
    """
    batch, heads, rows, channels = shape
    coefficients = _coefficients_like(masses, partial_sums, sinks, sink, shape, function, numbers)
    if not coefficients.numel():
        return coefficients
    splits = 1 if partial_sums is None else partial_sums.shape[1]
    head_kernel[(rows, batch)](
        coefficients,
        masses,
        partial_sums,
        sink_arg(sinks, sink),
        numbers_on(numbers, coefficients.device),
        splits,
        heads,
        rows,
        **head_constants(heads, function, channels, splits),
    )
    return coefficients


def head_constants(heads: int, function: str, channels: int, splits: int) -> dict[str, Any]:
    """Compile-time constants of `head_kernel`."""
    return {
        "NUM_CHANNELS": channels,
        "WIDTH": power_of_two(channels),
        "BLOCK_H": power_of_two(heads),
        "BLOCK_S": power_of_two(splits),
        "POLICY": device_function(function),
        "num_warps": 8,
        **FUSED,
    }


@head_coefficients.register_fake
def _coefficients_like(
    masses: Tensor | None,
    partial_sums: Tensor | None,
    sinks: Tensor | None,
    sink: Tensor | None,
    shape: Sequence[int],
    function: str,
    numbers: Sequence[float],
) -> Tensor:
    source = masses if masses is not None else partial_sums
    assert source is not None
    return source.new_empty(tuple(shape), dtype=torch.float32)
