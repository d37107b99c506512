"""Attention weights as the bytes of a page: quantised, and limited to the strongest of each row.

A weight w in [FLOOR, 1] becomes the code 1 + (top - 1) * (1 - ln w / ln FLOOR), rounded, with top = 255 or
65535; smaller weights become 0. The steps of this logarithmic scale have one *relative* size, so that the
small weight of an image cell has as many digits as the large one of an attention sink. Rows are sparse, with
the same columns for all variants (plain, edited), so that both weights of a difference are known.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regaze.errors import BadParameterError

#: The smallest weight that is stored: a thousandth of an even share among a thousand columns.
FLOOR = 1e-6
#: Shares of the bytes for each section. The means over heads are shown first and most.
_SHARES = {"means": 0.3, "maxima": 0.1, "heads": 0.6}

Array = NDArray[Any]


def encode(weights: Array, bits: int) -> Array:
    """Codes of weights in [0, 1], of any shape: uint8 or uint16."""
    top = 2**bits - 1
    with np.errstate(divide="ignore"):
        code = np.rint(top - (top - 1) * (np.log(weights, dtype=np.float32) / np.float32(np.log(FLOOR))))
    kind = np.uint8 if bits == 8 else np.uint16
    return np.where(weights < FLOOR, 0, np.clip(code, 1, top)).astype(kind)


def decode(codes: Array, bits: int) -> Array:
    """The weights of codes, float32; 0 for weights that are not stored."""
    top = 2**bits - 1
    return np.where(codes == 0, 0, FLOOR ** ((top - codes.astype(np.float64)) / (top - 1))).astype(np.float32)


def relative_error(bits: int) -> float:
    """Largest relative error of a stored weight: half a step of the scale."""
    return float(FLOOR ** (-0.5 / (2**bits - 2)) - 1)


@dataclass(frozen=True)
class SparseRows:
    """The strongest weights of P rows, for V variants.

    Attributes:
        counts: [P] entries in each row. columns: [E] their columns, increasing within a row.
        codes: [V, E]; an entry is as strong as its largest code.
    """

    counts: Array
    columns: Array
    codes: Array

    @classmethod
    def of(cls, codes: Array, most: int) -> SparseRows:
        """From codes [V, P, columns]: the `most` strongest entries of each row, without those of code 0."""
        strength = codes.max(0)
        kept = strength > 0
        if most < strength.shape[1]:
            weakest = np.argpartition(strength, -most, axis=1)[:, :-most]
            np.put_along_axis(kept, weakest, False, axis=1)
        return cls(kept.sum(1), kept.nonzero()[1], codes[:, kept])

    def strongest(self, most: int) -> SparseRows:
        """The `most` strongest entries of each row."""
        row = np.repeat(np.arange(len(self.counts)), self.counts)
        starts = np.cumsum(self.counts) - self.counts
        order = np.lexsort((-self.codes.max(0).astype(np.int32), row))
        kept = np.empty(len(row), bool)
        kept[order] = np.arange(len(row)) - starts[row] < most
        return SparseRows(np.minimum(self.counts, most), self.columns[kept], self.codes[:, kept])

    @classmethod
    def join(cls, parts: Sequence[SparseRows]) -> SparseRows:
        """The rows of all parts, one after the other."""
        counts, columns = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("counts", "columns")
        )
        return cls(counts, columns, np.concatenate([p.codes for p in parts], 1))

    def to_bytes(self, index: type) -> bytes:
        """Compressed: the counts, the gaps between the columns of a row (both of type `index`), the codes."""
        before = np.concatenate([[0], self.columns[:-1]]) if len(self.columns) else self.columns
        starts = np.cumsum(self.counts) - self.counts
        before[starts[self.counts > 0]] = 0
        parts: tuple[Array, ...] = (
            self.counts.astype(index),
            (self.columns - before).astype(index),
            self.codes,
        )
        return gzip.compress(b"".join(np.ascontiguousarray(part).tobytes() for part in parts), 6, mtime=0)


@dataclass(frozen=True)
class EncodedWeights:
    """The weights of a page.

    Attributes:
        sections: compressed bytes of "means", "maxima" and "heads", and of "masses" where they are known.
        entries_per_row: by section, how many weights of a row there are at most.
        bits: of a code. index_bytes: of a column.
    """

    sections: dict[str, bytes]
    entries_per_row: dict[str, int]
    bits: int
    index_bytes: int


class WeightEncoder:
    """Encodes one layer after the other into a limited number of bytes.

    Rows are [planes, N], with a plane for each layer ("heads": for each layer and head); "means" and "maxima"
    over heads begin with a plane of all layers.

    Args:
        variants, layers, heads, rows, columns: sizes V, n, H, N and C.
        budget: most bytes of the compressed weights.
    """

    budget: int
    variants: int
    layers: int
    columns: int

    def __init__(self, variants: int, layers: int, heads: int, rows: int, columns: int, budget: int):
        self.budget, self.variants, self.layers, self.columns = budget, variants, layers, columns
        self.index: type = np.uint16 if columns <= np.iinfo(np.uint16).max else np.uint32
        planes = {"means": layers + 1, "maxima": layers + 1, "heads": layers * heads}
        # 16 bits when all weights would fit even if nothing could be compressed.
        self.bits = 16 if sum(planes.values()) * rows * columns * (2 * variants + 2) <= budget else 8
        # Compressed, an entry takes about a byte for its column and one for each code. At first half as many
        # entries again are stored; `_fit` then removes entries until they fit.
        entries = {name: 1.5 * share * budget / (1 + variants) for name, share in _SHARES.items()}
        self._most = {
            name: max(1, min(columns, int(entries[name] / (planes[name] * rows)))) for name in planes
        }
        self._parts: dict[str, list[SparseRows]] = {name: [] for name in planes}
        self._masses: list[Array] = []
        self._mean = np.zeros((variants, rows, columns), np.float32)
        self._max = np.zeros((variants, rows, columns), np.float32)

    def add(self, weights: Array, masses: Array | None) -> None:
        """The next layer: weights [V, H, N, C] and, where they are known, masses of roles [V, H, N, R]."""
        mean, largest = weights.mean(1), weights.max(1)
        self._mean += mean / self.layers
        np.maximum(self._max, largest, out=self._max)
        for name, part in (("means", mean), ("maxima", largest), ("heads", weights)):
            self._parts[name].append(self._sparse(name, part))
        if masses is not None:
            self._masses.append(_fixed_point(masses, self.bits))

    def finish(self) -> EncodedWeights:
        """The bytes of all layers.

        Raises:
            BadParameterError: the budget cannot hold even the strongest weight of each row.
        """
        self._parts["means"].insert(0, self._sparse("means", self._mean))
        self._parts["maxima"].insert(0, self._sparse("maxima", self._max))
        sections, entries = {}, {}
        if self._masses:
            sections["masses"] = gzip.compress(np.stack(self._masses, 1).tobytes(), 6, mtime=0)
        share, room = 1.0, self.budget - len(sections.get("masses", b""))
        for name, parts in self._parts.items():  # bytes that a section does not use are left for the next
            sections[name], entries[name] = self._fit(name, parts, int(room * _SHARES[name] / share))
            share, room = share - _SHARES[name], room - len(sections[name])
        return EncodedWeights(sections, entries, self.bits, np.dtype(self.index).itemsize)

    def _sparse(self, name: str, weights: Array) -> SparseRows:
        codes = encode(weights, self.bits)
        return SparseRows.of(codes.reshape(self.variants, -1, self.columns), self._most[name])

    def _fit(self, name: str, parts: list[SparseRows], budget: int) -> tuple[bytes, int]:
        """Parts as at most `budget` bytes, and how many weights of each row these hold at most."""
        sparse, most = SparseRows.join(parts), self._most[name]
        data = sparse.to_bytes(self.index)
        while len(data) > budget:
            most = min(most - 1, int(most * 0.98 * budget / len(data)))
            if most < 1:
                raise BadParameterError(
                    f"the page's size leaves {self.budget} bytes for the attention weights, which is too "
                    "little; allow a larger page, or record fewer rows or layers"
                )
            sparse = sparse.strongest(most)
            data = sparse.to_bytes(self.index)
        return data, most


def _fixed_point(masses: Array, bits: int) -> Array:
    """Shares in [0, 1] as whole numbers up to 2^bits - 1."""
    top = 2**bits - 1
    return np.rint(np.clip(masses, 0, 1) * top).astype(np.uint8 if bits == 8 else np.uint16)
