"""Policies with Triton parts of their own, as a third party would write them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from regaze.kernels import TritonPart


@triton.jit
def shrink(masses, heads, exists, numbers_ptr, WIDTH: tl.constexpr):
    total = tl.sum(masses, 1)[:, None]
    return tl.load(numbers_ptr) / (1.0 + total + masses + heads.to(tl.float32))


@triton.jit
def halve_heads(masses, heads, exists, numbers_ptr, WIDTH: tl.constexpr):
    """Rows with less mass in channel 0 than the heads have on average are halved."""
    k = tl.arange(0, WIDTH)[None, :]
    first = tl.sum(tl.where((k == 0) & exists, masses, 0.0), 1)
    mean = tl.sum(first, 0) / tl.sum(tl.sum(exists.to(tl.float32), 1), 0)
    return tl.where((first < mean)[:, None], 0.5, 1.0) + tl.zeros_like(masses)


@dataclass(frozen=True)
class Shrink:
    channels: int = 3
    strength: float = 1.5

    def __call__(self, masses):
        heads = torch.arange(masses.shape[1], device=masses.device)[:, None, None]
        return self.strength / (1.0 + masses.sum(-1, keepdim=True) + masses + heads)


@dataclass(frozen=True)
class HalvedHeads:
    channels: int = 3

    def __call__(self, masses):
        first = masses[..., :1]
        return torch.where(first < first.mean(1, keepdim=True), 0.5, 1.0).expand_as(masses)


class _NoReference:
    def __call__(self, masses):
        raise AssertionError("the reference must not run")


@dataclass(frozen=True)
class ShrinkOnDevice(_NoReference):
    channels: int = 3
    strength: float = 1.5

    def triton_part(self, heads):
        return TritonPart(f"{__name__}:shrink", (self.strength,))


@dataclass(frozen=True)
class HalvedHeadsOnDevice(_NoReference):
    channels: int = 3

    def triton_part(self, heads):
        return TritonPart(f"{__name__}:halve_heads", (), couples_heads=True)
