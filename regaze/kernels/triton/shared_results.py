"""Results that the layers of one forward share, because they depend on the same mask or row selection."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_results: deque[tuple[Hashable, list[Any], list[int], Any]] = deque(maxlen=32)


def remember(name: str, tensors: Sequence[Tensor], key: Hashable, make: Callable[[], T]) -> T:
    """The result of `make`, computed once for layers that share the very same unchanged `tensors`.

    Nothing is stored where a change could go unseen: for inference tensors, which count no changes, inside a
    CUDA graph, which replays with other values, and inside a compiled graph, which owns its buffers.
    """
    if torch.compiler.is_compiling() or any(t.is_inference() for t in tensors) or _capturing(tensors):
        return make()
    versions = [t._version for t in tensors]  # noqa: SLF001 (torch counts changes in place there)
    for known_key, refs, known_versions, value in tuple(_results):
        same = known_key == (name, key) and len(refs) == len(tensors) and known_versions == versions
        if same and all(ref() is t for ref, t in zip(refs, tensors, strict=True)):
            return value
    value = make()
    _results.appendleft(((name, key), [weakref.ref(t) for t in tensors], versions, value))
    return value


def _capturing(tensors: Sequence[Tensor]) -> bool:
    return any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing()
