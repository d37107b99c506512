"""Results that the layers of one forward share, because they depend on the same mask or row selection."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class _Result(NamedTuple):
    """A result, and the tensors that it follows from as they were.

    `versions` is None for inference tensors, which count no changes; then `layers` says by which keys, and in
    which call with them, the result was used.
    """

    key: Hashable
    tensors: list[weakref.ref[Tensor]]
    versions: list[int] | None
    layers: dict[int, int]
    value: Any


class _State(threading.local):
    """The results of a thread, and the call that it is in: its number, and the address of its keys."""

    def __init__(self) -> None:
        self.results: deque[_Result] = deque(maxlen=32)
        self.call: tuple[int, int] | None = None


_state, _numbers = _State(), count()


def begin_call(key: Tensor) -> None:
    """Say that a call with these keys begins; see `remember`."""
    _state.call = next(_numbers), key.data_ptr()


def remember(name: str, tensors: Sequence[Tensor], key: Hashable, make: Callable[[], T]) -> T:
    """The result of `make`, computed once for layers that share the very same unchanged `tensors`.

    Inference tensors count no changes. There a result serves one layer after the other, each with keys of its
    own, until the same keys come again: that is another forward, before which the tensors may have changed.

    Nothing is stored inside a CUDA graph, which replays with other values, and inside a compiled graph, which
    owns its buffers.
    """
    if torch.compiler.is_compiling() or _capturing(tensors):
        return make()
    state, versions = _state, None
    if not any(t.is_inference() for t in tensors):
        versions = [t._version for t in tensors]  # noqa: SLF001 (torch counts changes in place there)
    elif state.call is None:
        return make()
    for known in tuple(state.results):
        if known.key != (name, key) or len(known.tensors) != len(tensors) or known.versions != versions:
            continue
        if all(ref() is t for ref, t in zip(known.tensors, tensors, strict=True)):
            if versions is not None or _serves(known.layers, state.call):
                return known.value
            state.results.remove(known)
    result = _Result((name, key), [weakref.ref(t) for t in tensors], versions, {}, make())
    if versions is None:
        _serves(result.layers, state.call)
    state.results.appendleft(result)
    return result.value


def _serves(layers: dict[int, int], call: tuple[int, int] | None) -> bool:
    """Whether the keys of the call are new to a result, which it then serves, or served in this very call."""
    assert call is not None
    number, address = call
    return layers.setdefault(address, number) == number


def _capturing(tensors: Sequence[Tensor]) -> bool:
    return any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing()
