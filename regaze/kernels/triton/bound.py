"""Kernels launched without Triton's work per call, and the memory that passes sums between them.

At every launch Triton binds the arguments to parameters and derives a key from their types, values and
alignments, by which it finds the compiled kernel. That takes the host longer than a short kernel runs. A
`Launch` does it once: whoever holds one guarantees that later arguments would give the same key.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver

_knobs = triton.knobs.runtime


class Launch:
    """A kernel with its grid and its compile-time constants. Calls give the other arguments, in order.

    The constants are the last parameters of the kernel. Where a profiler listens to launches, and in the
    interpreter, every call goes through Triton.
    """

    def __init__(self, kernel: Any, grid: Sequence[int], constants: dict[str, Any]):
        self.kernel, self.constants = kernel, constants
        self.grid = (*grid, 1, 1)[:3]
        self._compiled: Any = None
        self._last: tuple[Any, ...] = ()

    def __call__(self, *args: Any) -> None:
        compiled = self._compiled
        if compiled is None or _knobs.launch_enter_hook.calls or _knobs.launch_exit_hook.calls:
            self._through_triton(args)
        elif compiled is not _NOTHING:
            active = driver.active
            stream = active.get_current_stream(active.get_current_device())
            function, metadata = compiled.function, compiled.packed_metadata
            # The three after them are for profilers, and there are none.
            compiled.run(*self.grid, stream, function, metadata, None, None, None, *args, *self._last)

    def _through_triton(self, args: tuple[Any, ...]) -> None:
        """Launch, and remember what was launched."""
        compiled = self.kernel[self.grid](*args, **self.constants)
        if not isinstance(self.kernel, triton.JITFunction):
            return
        if compiled is not None:
            self._last = tuple(self.constants[name] for name in self.kernel.arg_names[len(args) :])
            self._compiled = compiled
        elif _knobs.jit_cache_hook is None:
            self._compiled = _NOTHING


#: Stands for a kernel where Triton launches none, nor will: it runs without a device.
_NOTHING = object()


class Scratch(threading.local):
    """Memory for what the kernels of one call hand on, shared by all layers: one block per stream and thread.

    Launches on a stream run one after the other, so the next layer may write where this one has read. While
    a CUDA graph is captured each call gets memory of its own, which belongs to the graph.
    """

    def __init__(self) -> None:
        self._blocks: dict[Any, Tensor] = {}

    def block(self, size: int, device: torch.device) -> Tensor:
        """At least `size` floats, the same ones until a call needs more."""
        where: Any = device
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return torch.empty(size, device=device)
            where = device, driver.active.get_current_stream(device.index)
        block = self._blocks.get(where)
        if block is None or block.shape[0] < size:
            block = self._blocks[where] = torch.empty(size, device=device)
        return block


scratch = Scratch()
