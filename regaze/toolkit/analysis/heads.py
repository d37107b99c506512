"""A table of all attention heads: how much each looks at a role, and how its rows are spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

from regaze.display import Summary, Tabular, first_lines
from regaze.errors import BadParameterError, RecordingError, ShapeError
from regaze.toolkit.analysis.row_measures import attention_distance, attention_entropy, sink_share
from regaze.toolkit.analysis.selection import RecordedRows, select_heads, select_rows
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace


@dataclass(frozen=True)
class HeadRow:
    """One head in a `HeadTable`; a measure that was not recorded is None.

    Attributes:
        layer, head: numbers of the head.
        mass: mean attention on the role over all rows. peak: the largest over all rows.
        entropy: mean over the rows, in nats. distance: mean, in tokens. sink: mean share on the first token.
    """

    layer: int
    head: int
    mass: float
    peak: float
    entropy: float | None = None
    distance: float | None = None
    sink: float | None = None


@dataclass(frozen=True, repr=False)
class HeadTable(Tabular, Sequence[HeadRow]):
    """Measures of heads; prints as a table and sorts by any column (`sorted_by`).

    Attributes:
        role: the role of the columns mass and peak. rows: one `HeadRow` per head.
    """

    role: Role
    rows: tuple[HeadRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> HeadRow: ...
    @overload
    def __getitem__(self, index: slice) -> HeadTable: ...
    def __getitem__(self, index: int | slice) -> HeadRow | HeadTable:
        return HeadTable(self.role, self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[HeadRow]:
        return iter(self.rows)

    def sorted_by(self, column: str = "mass", *, descending: bool = True) -> HeadTable:
        """The same heads sorted by a column, ties by layer and head."""
        self._check(column)
        sign = -1 if descending else 1
        ordered = sorted(self.rows, key=lambda row: (sign * getattr(row, column), row.layer, row.head))
        return HeadTable(self.role, tuple(ordered))

    def grid(self, column: str = "mass") -> Tensor:
        """A column as a map [layers, Hq] fp32, layers in increasing order."""
        self._check(column)
        layers = sorted({row.layer for row in self.rows})
        heads = sorted({row.head for row in self.rows})
        grid = torch.full((len(layers), len(heads)), torch.nan)
        for row in self.rows:
            grid[layers.index(row.layer), heads.index(row.head)] = getattr(row, column)
        return grid

    def minus(self, other: HeadTable) -> HeadTable:
        """Every column minus that of the same head in `other`, sorted by falling mass."""
        known = {(row.layer, row.head): row for row in other.rows}
        rows = []
        for row in self.rows:
            same_head = known.get((row.layer, row.head))
            if same_head is None:
                raise ShapeError(f"head {row.head} of layer {row.layer} is in one of the tables only")
            rows.append(replace(row, **_differences(row, same_head)))
        return HeadTable(self.role, tuple(rows)).sorted_by("mass")

    def _check(self, column: str) -> None:
        if column not in HeadRow.__dataclass_fields__:
            raise BadParameterError(
                f"no column {column!r}; there are {', '.join(HeadRow.__dataclass_fields__)}"
            )
        if any(getattr(row, column) is None for row in self.rows):
            raise RecordingError(f'{column} was not recorded: entropy=True, slices="all" for the others')

    def __str__(self) -> str:
        optional = [
            c for c in ("entropy", "distance", "sink") if self.rows and getattr(self.rows[0], c) is not None
        ]
        columns = ["mass", "peak", *optional]
        head = f"layer head {' '.join(f'{name:>8}' for name in columns)}   (mass on {self.role.name.lower()})"
        rows = [
            f"{row.layer:5d} {row.head:4d} " + " ".join(f"{getattr(row, name):8.4f}" for name in columns)
            for row in self.rows
        ]
        return "\n".join([head, *rows])

    def __repr__(self) -> str:
        return first_lines(str(self))

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per head; a measure that was not recorded has no column."""
        columns = {name: [getattr(row, name) for row in self.rows] for name in HeadRow.__dataclass_fields__}
        return {name: values for name, values in columns.items() if any(each is not None for each in values)}

    def _summary(self) -> Summary:
        return Summary(f"heads by their mass on {self.role.name.lower()} tokens", self.table())


def _differences(row: HeadRow, other: HeadRow) -> dict[str, Any]:
    names = ("mass", "peak", "entropy", "distance", "sink")
    pairs = {name: (getattr(row, name), getattr(other, name)) for name in names}
    return {name: a - b for name, (a, b) in pairs.items() if a is not None and b is not None}


def head_table(
    record: Record | Trace,
    *,
    role: Role = Role.IMAGE,
    rows: RecordedRows = "answer",
    layers: Sequence[int] | None = None,
) -> HeadTable:
    """How much each head looks at the image, or another role: means over all rows, samples and traces.

    Args:
        record: recorded with masses, and for the other columns with entropy=True and slices="all".
        role: the role whose mass is measured. rows: see `RecordedRows`. layers: numbers; None: all.

    Returns:
        The heads, sorted by falling mass.

    Raises:
        RecordingError: masses were not recorded, or there is no such row.
    """
    traces = [record] if isinstance(record, Trace) else list(record)
    if not traces:
        raise RecordingError(
            "nothing is recorded: run the model inside the block and read the record after it"
        )
    columns: dict[str, list[Tensor]] = {"mass": [], "entropy": [], "distance": [], "sink": []}
    for trace in traces:
        for sample in range(len(trace.row_active)):
            active = trace.row_active[sample]
            chosen = (active.cumsum(0) - 1)[select_rows(trace, rows, sample)]
            for name, values in _per_row(trace, sample, role).items():
                columns[name].append(select_heads(trace, values, layers)[:, :, chosen])
    joined = {name: torch.cat(parts, -1) for name, parts in columns.items() if parts}
    if not joined["mass"].shape[-1]:
        raise RecordingError("the record has none of the rows asked for")
    means = {name: values.mean(-1) for name, values in joined.items()}
    peak = joined["mass"].amax(-1)
    numbers = traces[0].layers if layers is None else tuple(layers)
    heads = [
        HeadRow(layer, head, peak=float(peak[i, head]), **{k: float(v[i, head]) for k, v in means.items()})
        for i, layer in enumerate(numbers)
        for head in range(peak.shape[1])
    ]
    return HeadTable(role, tuple(heads)).sorted_by("mass")


def _per_row(trace: Trace, sample: int, role: Role) -> dict[str, Tensor]:
    """The measures that were recorded, each [layers, Hq, n] for the rows of the sample."""
    known = {"mass": trace.require("masses")[:, sample, ..., int(role)][:, :, trace.row_active[sample]]}
    if trace.entropy is not None:
        known["entropy"] = attention_entropy(trace, sample=sample)
    if trace.slices is not None and trace.slice_columns is None:
        known["distance"] = attention_distance(trace, sample=sample)
        known["sink"] = sink_share(trace, sample=sample)
    return known
