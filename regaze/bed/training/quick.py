"""The precision that this machine trains fastest in."""

from __future__ import annotations

import torch


def quick_dtype() -> torch.dtype:
    """bf16 on CPUs with AVX-512, where whole steps were 1.5 x as fast in it; else fp32.

    With AVX2 alone, products of matrices take 6 x as long in bf16. The frozen weights are bf16 numbers in
    either.
    """
    return torch.bfloat16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else torch.float32
