"""Rows of sequences whose keys lie in pages, each under an edit of its own, in one compiled call.

A serving engine has rows of many requests in a forward. Nothing is gathered or stacked here: the kernel reads
pages where they are, and the edit of each request as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regaze.kernels.numba import kernel
from regaze.kernels.numba.launch import MAX_KEY_ELEMENTS, Program


class PagedCalls:
    """Calls about rows of one layer, which `run` runs together.

    Args:
        query, output: [T, Hq, D] rows of all sequences, and [T, Hq, Dv], to be written to. The tensors stay
            as they are until `run`, and so do those of programs.
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
        self._query, self._query_row = query.data_ptr(), query.stride(0) * query.element_size()
        self._output, self._output_row = output.data_ptr(), output.stride(0) * output.element_size()
        self._table, self._table_row = table.data_ptr(), table.stride(0) * table.element_size()
        self._caches = key_cache.data_ptr(), value_cache.data_ptr()
        _, kv_heads, page_size, dim = key_cache.shape
        self._heads = query.shape[1], kv_heads
        strides = *query.stride()[:2], 0, *key_cache.stride()[1:], 0, *value_cache.stride()[1:3]
        self._sizes = dim, output.shape[2], *strides, 0
        self._pages = page_size, key_cache.stride(0), value_cache.stride(0)
        self._scaling = scaling
        self._calls: list[bytes] = []
        self._programs: list[Program] = []  # which calls have the addresses of

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

    def takes(self, count: int, keys: int) -> bool:
        """Whether `count` rows over so many keys are so few that the processor does not wait for memory."""
        return count * keys * self._heads[1] * self._sizes[0] <= MAX_KEY_ELEMENTS

    def attend(self, program: Program, start: int, count: int, sequence: int, place: int) -> None:
        """Write the edited output of `count` rows from `start` on.

        Args:
            sequence: whose they are, by its number in the table. place: of the first of them in it; each row
                sees the keys up to its own.
        """
        self._add(program, self._query + start * self._query_row, start, count, sequence, place + 1)

    def gain(self, program: Program, start: int, count: int) -> None:
        """Multiply the output that is there by the head gains of a program, which has nothing else."""
        self._add(program, 0, start, count, 0, 0)

    def _add(self, program: Program, query: int, start: int, count: int, sequence: int, keys: int) -> None:
        out, pages = self._output + start * self._output_row, self._table + sequence * self._table_row
        addresses = program.address, query, *self._caches, out, 0, 0, 0, 0, 0, 0, 0
        sizes = count, *self._heads, keys, *self._sizes
        self._calls.append(kernel.CALL.pack(*addresses, *sizes, pages, *self._pages, 1, self._scaling))
        self._programs.append(program)

    def run(self) -> None:
        """Run the calls, once."""
        if self._calls:
            kernel.attend_calls(b"".join(self._calls), len(self._calls))
        self._calls, self._programs = [], []
