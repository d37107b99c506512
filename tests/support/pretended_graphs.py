"""Pretended CUDA graphs: a backend of torch.compile that captures the operations of a call and repeats them.

The first call of a graph runs as it is, the second is captured, and every later one runs the operations of
the second again, on its tensors, into which the new inputs are copied. No other Python runs: what a layer
looks up, decides or keeps on the host happens no more, and what was written to other memory is not seen.

    graphs = PretendedGraphs()
    model.forward = torch.compile(model.forward, backend=graphs, fullgraph=True)
    ...
    graphs.forget()     # the next two calls of each graph are its first and second again
"""

from __future__ import annotations

from typing import Any

import torch
from pretended_device import _INDEXING, _READS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from regaze.toolkit.model.attention import attention_operator


class PretendedGraphs:
    """The backend. `replays`: how many calls were repetitions."""

    def __init__(self) -> None:
        self._graphs: list[_Graph] = []
        self.replays = 0

    def __call__(self, module: Any, inputs: Any) -> Any:
        graph = _Graph(module, self)
        self._graphs.append(graph)
        return graph

    def forget(self) -> None:
        self.replays = 0
        for graph in self._graphs:
            graph.begin()


class _Graph:
    def __init__(self, module: Any, owner: PretendedGraphs):
        self._module, self._owner = module, owner
        self.begin()

    def begin(self) -> None:
        self._calls, self._capture = 0, _Capture()

    def __call__(self, *inputs: Any) -> Any:
        self._calls += 1
        if self._calls == 1:
            return self._module(*inputs)
        if self._calls == 2:
            self._inputs = inputs
            with self._capture:
                self._outputs = self._module(*inputs)
        else:
            for captured, given in zip(self._inputs, inputs, strict=True):
                if not isinstance(given, Tensor):
                    assert given == captured, "a number of the host changed between steps"
                elif captured.data_ptr() != given.data_ptr():
                    captured.copy_(given)
            self._capture.replay()
            self._owner.replays += 1
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self._outputs)


class _Capture(TorchDispatchMode):
    """The operations of a call, those inside regaze's operator included. Raises where the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.regaze.attention.default:
            with self:
                return attention_operator._init_fn(*args, **kwargs)
        indices = [x for x in args[1] if x is not None] if func in _INDEXING else []
        if func in _READS or any(x.dtype == torch.bool for x in indices):
            raise RuntimeError(f"the host waits for {func} in a captured step")
        result = func(*args, **kwargs)
        self._operations.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self._operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
