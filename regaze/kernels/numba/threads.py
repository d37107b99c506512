"""Calls of the compiled kernel on several threads, where they have much to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch

from regaze.kernels.numba import kernel

#: Elements of keys that keep a thread busy for a tenth of a millisecond: longer than it takes to wake it.
ELEMENTS_PER_THREAD = 1 << 18


def run_calls(calls: Sequence[bytes], elements: int) -> None:
    """Run packed calls that do not depend on each other, on no more threads than torch has.

    Args:
        elements: of all their keys.
    """
    threads = min(torch.get_num_threads(), len(calls), elements // ELEMENTS_PER_THREAD)
    if threads < 2:
        kernel.attend_calls(b"".join(calls), len(calls))
        return
    own, *others = (calls[number::threads] for number in range(threads))
    running = [_pool().submit(kernel.attend_calls, b"".join(part), len(part)) for part in others]
    try:
        kernel.attend_calls(b"".join(own), len(own))
    finally:
        wait(running)  # they write to memory of the caller
    for part in running:
        part.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "regaze-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay in the parent
