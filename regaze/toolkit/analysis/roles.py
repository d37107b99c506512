"""Attention mass by role: how attention divides among system text, image, question and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regaze.display import Summary, Tabular, long_table
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
class RoleFlow(Tabular):
    """Attention mass by role.

    Attributes:
        layers: [S] numbers of the layers.
        masses: [S, Hq, R, 7] by `Role`, of the R chosen rows; the last dimension sums to 1.
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

    __repr__ = __str__

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per layer, head and answer row, a column per role."""
        heads, rows = self.masses.shape[1:3]
        masses = {role.name.lower(): self.masses[..., int(role)] for role in Role}
        axes = {"layer": self.layers, "head": range(heads), "row": range(rows)}
        table = long_table(axes, **masses)
        text = list(self.text) * (len(self.layers) * heads)
        return {name: table[name] for name in axes} | {"text": text} | {name: table[name] for name in masses}

    def _summary(self) -> Summary:
        """The mean over heads and rows, by layer."""
        masses = {role.name.lower(): self.by_layer()[:, int(role)].tolist() for role in Role}
        seen = {name: values for name, values in masses.items() if any(values)}
        return Summary("RoleFlow: mean over heads and rows", {"layer": self.layers, **seen})


def role_flow(
    record: Record | Trace,
    *,
    rows: RecordedRows = "answer",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
) -> RoleFlow:
    """Attention mass on system text, image, question, answer and so on, by layer, head and step.

    Args:
        record: recorded with masses (the default); the first trace of a Record.
        rows: see `RecordedRows`. layers, heads: numbers; None: all. sample: row of the batch.

    Raises:
        RecordingError: masses were not recorded. BadParameterError: a choice that was not recorded.
    """
    trace = first_trace(record)
    masses = select_heads(trace, trace.require("masses")[:, check_sample(trace, sample)], layers, heads)
    chosen = select_rows(trace, rows, sample)
    numbers = trace.layers if layers is None else tuple(layers)
    return RoleFlow(numbers, masses[:, :, chosen], tuple(_predicted(trace, chosen, sample)))


def _predicted(trace: Trace, rows: Tensor, sample: int) -> list[str]:
    """The text of the token after each row."""
    known = trace.text[sample] if trace.text is not None else ()
    columns = [int(trace.row_position[row]) + 1 for row in rows]
    return [known[column] if column < len(known) else "" for column in columns]
