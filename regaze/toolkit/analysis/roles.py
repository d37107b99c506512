"""Who looks where: attention mass by role, the reach of heads, the table of heads that look at the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from regaze.errors import BadParameterError, RecordingError, ShapeError
from regaze.toolkit.analysis.selection import (
    RecordedRows,
    check_sample,
    first_trace,
    select_heads,
    select_rows,
)
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace


@dataclass(frozen=True, eq=False, repr=False)
class RoleFlow:
    """Attention mass by role.

    Attributes:
        layers: [S] numbers of the layers.
        masses: [S, Hq, R, 7] by `Role`, of the R rows asked for; rows sum to 1.
        text: [R] the token that each row predicts, "" where it is not known.
    """

    layers: tuple[int, ...]
    masses: Tensor
    text: tuple[str, ...]

    def by_layer(self) -> Tensor:
        """[S, 7], mean over heads and rows."""
        return self.masses.mean((1, 2))

    def by_head(self) -> Tensor:
        """[S, Hq, 7], mean over rows."""
        return self.masses.mean(2)

    def by_step(self) -> Tensor:
        """[R, 7], mean over layers and heads."""
        return self.masses.mean((0, 1))

    def of(self, role: Role) -> Tensor:
        """[S, Hq, R], the mass of one role."""
        return self.masses[..., int(role)]

    def __str__(self) -> str:
        roles = [role for role in Role if bool((self.masses[..., int(role)] > 0).any())]
        head = "layer " + " ".join(f"{role.name.lower():>9}" for role in roles)
        rows = [
            f"{layer:5d} " + " ".join(f"{float(values[int(role)]):9.4f}" for role in roles)
            for layer, values in zip(self.layers, self.by_layer(), strict=True)
        ]
        return "\n".join([head, *rows])


def role_flow(
    record: Record | Trace,
    *,
    rows: RecordedRows = "answer",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
) -> RoleFlow:
    """How attention divides among system text, image, question, answer ... by layer, head and step.

    Args:
        record: recorded with masses (the default); of a Record the first trace.
        rows: see `RecordedRows`. layers, heads: numbers; None: all. sample: row of the batch.

    Raises:
        RecordingError: masses were not recorded. BadParameterError: what is asked for was not recorded.
    """
    trace = first_trace(record)
    masses = select_heads(trace, trace.require("masses")[:, check_sample(trace, sample)], layers, heads)
    chosen = select_rows(trace, rows, sample)
    numbers = trace.layers if layers is None else tuple(layers)
    return RoleFlow(numbers, masses[:, :, chosen], tuple(_predicted(trace, chosen, sample)))


def _predicted(trace: Trace, rows: Tensor, sample: int) -> list[str]:
    """The piece of text behind each row."""
    known = trace.text[sample] if trace.text is not None else ()
    behind = [int(trace.row_position[row]) + 1 for row in rows]
    return [known[place] if place < len(known) else "" for place in behind]


def attention_distance(record: Record | Trace, *, sample: int = 0) -> Tensor:
    """Mean distance in tokens from a row back to what it looks at, [layers, Hq, N].

    Source: the mean attention distance of Dosovitskiy et al. (arXiv:2010.11929), along the text. Padding does
    not count, as it gets no attention.

    Args:
        record: recorded with slices="all".
    """
    trace = first_trace(record)
    weights = _all_columns(trace)[:, check_sample(trace, sample)]
    distance = trace.row_position[:, None] - torch.arange(weights.shape[-1])
    total = weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)  # below 1 beside a model's own sinks
    return (weights * distance.clamp_min(0)).sum(-1) / total


def sink_share(
    record: Record | Trace,
    sinks: Tensor | None = None,
    *,
    of: Literal["row", "recorded"] = "row",
    sample: int = 0,
) -> Tensor:
    """Share of each row's attention that lies on sink tokens, [layers, Hq, N].

    Args:
        record: recorded with slices="all", or "image" for the sinks among image tokens.
        sinks: [L] or [layers, L] bool over the prompt's columns, of this sample (see `sink_tokens`); default:
            its first token.
        of: "row": of all attention; "recorded": of that on the recorded columns, which with slices="image" is
            the share of the image's attention that its sinks take (1 - r in VAR).

    Raises:
        RecordingError: slices were not recorded. ShapeError: sinks of another shape.
    """
    if of not in ("row", "recorded"):
        raise BadParameterError(f'of must be "row" or "recorded", got {of!r}')
    trace = first_trace(record)
    weights = trace.require("slices")[:, check_sample(trace, sample)]
    places = torch.arange(weights.shape[-1]) if trace.slice_columns is None else trace.slice_columns[sample]
    length = trace.tokens.length if trace.tokens is not None else weights.shape[-1]
    if sinks is None:
        sinks = torch.zeros(length, dtype=torch.bool)
        sinks[
            0 if trace.tokens is None else int((trace.tokens.roles[sample] != int(Role.PAD)).int().argmax())
        ] = True
    sinks = sinks.cpu().expand(len(trace.layers), -1) if sinks.dim() == 1 else sinks.cpu()
    if sinks.dim() != 2 or len(sinks) != len(trace.layers) or sinks.dtype != torch.bool:
        raise ShapeError(
            f"sinks must be [L] or [layers, L] = [{len(trace.layers)}, {length}] bool, "
            f"got {list(sinks.shape)}"
        )
    known = (places >= 0) & (places < sinks.shape[1])  # keys generated later are none
    chosen = sinks[:, places.where(known, 0)] & known
    share = (weights * chosen[:, None, None]).sum(-1)
    if of == "row":
        return share
    return share / weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)


def _all_columns(trace: Trace) -> Tensor:
    weights = trace.require("slices")
    if trace.slice_columns is not None:
        raise RecordingError('this needs the weights of all columns; use gaze.recording(slices="all", ...)')
    return weights


@dataclass(frozen=True)
class HeadRow:
    """One head in a `HeadTable`; None for what was not recorded.

    Attributes:
        layer, head: its numbers. mass: mean attention on the role over all rows. peak: the most of any row.
        entropy: mean of the rows, in nats. distance: mean, in tokens. sink: mean share on the first token.
    """

    layer: int
    head: int
    mass: float
    peak: float
    entropy: float | None = None
    distance: float | None = None
    sink: float | None = None


@dataclass(frozen=True, repr=False)
class HeadTable(Sequence[HeadRow]):
    """Heads and what they look at; prints as a table, `sorted_by` any column.

    Attributes:
        role: whose mass is in the table. rows: one `HeadRow` per head.
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
        """The same heads by a column; of equal ones the first layer and head come first."""
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
        """Every column less that of the same head in `other`, by falling mass."""
        known = {(row.layer, row.head): row for row in other.rows}
        rows = []
        for row in self.rows:
            before = known.get((row.layer, row.head))
            if before is None:
                raise ShapeError(f"head {row.head} of layer {row.layer} is in one of the tables only")
            rows.append(replace(row, **_less(row, before)))
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

    __repr__ = __str__


def _less(row: HeadRow, before: HeadRow) -> dict[str, Any]:
    names = ("mass", "peak", "entropy", "distance", "sink")
    pairs = {name: (getattr(row, name), getattr(before, name)) for name in names}
    return {name: a - b for name, (a, b) in pairs.items() if a is not None and b is not None}


def head_table(
    record: Record | Trace,
    *,
    role: Role = Role.IMAGE,
    rows: RecordedRows = "answer",
    layers: Sequence[int] | None = None,
) -> HeadTable:
    """Who looks at the image? The mean over all rows, samples and traces of a record, for every head.

    Args:
        record: recorded with masses, and for the other columns with entropy=True and slices="all".
        role: whose mass. rows: see `RecordedRows`. layers: numbers; None: all.

    Returns:
        Heads by falling mass.

    Raises:
        RecordingError: masses were not recorded, or no row is there.
    """
    traces = [record] if isinstance(record, Trace) else list(record)
    if not traces:
        raise RecordingError(
            "nothing is recorded: run the model inside the block and read the record after it"
        )
    columns: dict[str, list[Tensor]] = {"mass": [], "entropy": [], "distance": [], "sink": []}
    for trace in traces:
        for sample in range(len(trace.row_active)):
            chosen = select_rows(trace, rows, sample)
            for name, values in _per_row(trace, sample, role).items():
                columns[name].append(select_heads(trace, values, layers)[:, :, chosen])
    joined = {name: torch.cat(parts, -1) for name, parts in columns.items() if parts}
    if not joined["mass"].shape[-1]:
        raise RecordingError("the record has none of the rows asked for")
    means = {name: values.mean(-1) for name, values in joined.items()}
    peak = joined["mass"].amax(-1)
    numbers = traces[0].layers if layers is None else tuple(layers)
    found = [
        _head_row(
            layer,
            head,
            {name: float(values[i, head]) for name, values in means.items()},
            float(peak[i, head]),
        )
        for i, layer in enumerate(numbers)
        for head in range(peak.shape[1])
    ]
    return HeadTable(role, tuple(found)).sorted_by("mass")


def _per_row(trace: Trace, sample: int, role: Role) -> dict[str, Tensor]:
    """What is known of each row, [layers, Hq, N] each."""
    known = {"mass": trace.require("masses")[:, sample, ..., int(role)]}
    if trace.entropy is not None:
        known["entropy"] = trace.entropy[:, sample]
    if trace.slices is not None and trace.slice_columns is None:
        known["distance"] = attention_distance(trace, sample=sample)
        known["sink"] = sink_share(trace, sample=sample)
    return known


def _head_row(layer: int, head: int, means: dict[str, Any], peak: float) -> HeadRow:
    return HeadRow(layer, head, peak=peak, **means)
