"""Rows of sequences whose keys lie in pages, each under an edit of its own, in one compiled call.

A serving engine has rows of many requests in a forward. Nothing is gathered or stacked here: the kernel reads
pages where they are, and the edit of each request as it is. What is said of the rows holds for all layers
whose tensors are laid out alike: only the addresses are another layer's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regaze.caching import cached_property
from regaze.kernels.numba import kernel
from regaze.kernels.numba.launch import MAX_KEY_ELEMENTS, Program

_INT64 = np.dtype(np.int64)


@dataclass(frozen=True)
class Layout:
    """How the tensors of a layer lie in memory.

    Attributes:
        heads: Hq, Hkv. dim: D.
        sizes: D, Dv, and the strides of query, keys and values, as a call has them. page: its keys, and the
            strides of both caches over pages.
        query_row, output_row, table_row: bytes from a row to the next.
        scaling: of scores.
    """

    heads: tuple[int, int]
    dim: int
    sizes: tuple[int, ...]
    page: tuple[int, int, int]
    query_row: int
    output_row: int
    table_row: int
    scaling: float


class PagedTensors:
    """Where the tensors of one layer are, which stay as they are while rows run.

    Args:
        query, output: [T, Hq, D] rows of all sequences, and [T, Hq, Dv], to be written to.
        key_cache, value_cache, table: as for `attend_paged`.
    """

    def __init__(
        self,
        query: Tensor,
        output: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        table: Tensor,
        scaling: float,
    ):
        self.query, self.output, self.table = query.data_ptr(), output.data_ptr(), table.data_ptr()
        self.keys, self.values = key_cache.data_ptr(), value_cache.data_ptr()
        _, kv_heads, page_size, dim = key_cache.shape
        strides = *query.stride()[:2], 0, *key_cache.stride()[1:], 0, *value_cache.stride()[1:3]
        self.layout = Layout(
            heads=(query.shape[1], kv_heads),
            dim=dim,
            sizes=(dim, output.shape[2], *strides, 0),
            page=(page_size, key_cache.stride(0), value_cache.stride(0)),
            query_row=query.stride(0) * query.element_size(),
            output_row=output.stride(0) * output.element_size(),
            table_row=table.stride(0) * table.element_size(),
            scaling=scaling,
        )

    @staticmethod
    def fit(query: Tensor, output: Tensor, key_cache: Tensor, value_cache: Tensor, table: Tensor) -> bool:
        """Whether the kernel reads these tensors: fp32 on a CPU, their memory in an order that it knows."""
        tensors = query, output, key_cache, value_cache
        if any(each.dtype != torch.float32 or not each.is_cpu for each in tensors):
            return False
        _, heads, value_dim = output.shape
        dense = query.stride(2) == value_cache.stride(3) == 1 and 1 in key_cache.stride()[2:]
        packed = output.stride() == (heads * value_dim, value_dim, 1)
        return dense and packed and table.dtype == torch.int32 and table.stride(1) == 1


class PagedRows:
    """Rows of sequences and what is done to each, in any layer with tensors of one layout.

    The tensors of programs stay as they are as long as rows run.
    """

    def __init__(self, layout: Layout):
        self._layout = layout
        self._calls: list[tuple[int, ...]] = []  # with distances from a layer's tensors in place of addresses
        self._programs: list[Program] = []  # which calls have the addresses of

    def takes(self, count: int, keys: int) -> bool:
        """Whether `count` rows over so many keys are so few that the processor does not wait for memory."""
        return count * keys * self._layout.heads[1] * self._layout.dim <= MAX_KEY_ELEMENTS

    def attend(self, program: Program, start: int, count: int, sequence: int, place: int) -> None:
        """The edited output of `count` rows from `start` on is written.

        Args:
            sequence: whose they are, by its number in the table. place: of the first of them in it; each row
                sees the keys up to its own.
        """
        self._add(program, start, count, sequence, place + 1)

    def gain(self, program: Program, start: int, count: int) -> None:
        """The output that is there is multiplied by the head gains of a program, which has nothing else."""
        self._add(program, start, count, 0, 0)

    def _add(self, program: Program, start: int, count: int, sequence: int, keys: int) -> None:
        layout = self._layout
        query, out = start * layout.query_row, start * layout.output_row
        addresses = program.address, query, 0, 0, out, 0, 0, 0, 0, 0, 0, 0
        sizes = count, *layout.heads, keys, *layout.sizes
        self._calls.append((*addresses, *sizes, sequence * layout.table_row, *layout.page, 1, self._scaling))
        self._programs.append(program)

    @cached_property
    def _scaling(self) -> int:
        """The bits of the scaling, as those of an integer."""
        (bits,) = struct.unpack("=q", struct.pack("=d", self._layout.scaling))
        return int(bits)

    @cached_property
    def _packed(self) -> npt.NDArray[np.int64]:
        return np.array(self._calls, _INT64)

    @cached_property
    def _attend(self) -> npt.NDArray[np.bool_]:
        """[n], which calls have keys."""
        return self._packed[:, kernel.KEYS] > 0

    def run(self, tensors: PagedTensors) -> None:
        """Run all rows in a layer; nothing may be added any more."""
        if not self._calls:
            return
        calls = self._packed.copy()
        calls[:, kernel.QUERY] = np.where(self._attend, calls[:, kernel.QUERY] + tensors.query, 0)
        calls[:, kernel.KEY], calls[:, kernel.VALUE] = tensors.keys, tensors.values
        calls[:, kernel.OUT] += tensors.output
        calls[:, kernel.PAGES] += tensors.table
        kernel.attend_calls(calls.tobytes(), len(calls))
