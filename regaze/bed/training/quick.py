"""The precision that this machine trains fastest in."""

from __future__ import annotations

import torch


def quick_dtype() -> torch.dtype:
    """bf16 where the CPU has instructions for it (1.5 x as fast), else fp32 (6 x as fast on AVX2 alone).

    The frozen weights are bf16 numbers in either.
    """
    return torch.bfloat16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else torch.float32
