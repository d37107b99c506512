"""Massive activations: the few largest values of the residual stream in each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.display import Tabular, first_lines, long_table
from regaze.errors import BadParameterError
from regaze.toolkit.analysis.forward import EachDevice, HiddenStateProbe, run_forward, stacked
from regaze.toolkit.model.context import Context
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True, eq=False, repr=False)
class MassiveActivations(Tabular):
    """The largest activations of the hidden states in each layer, without padding.

    Attributes:
        layers: [S] as in `LogitLens`: l is the input of layer l; the number of layers is the last output.
        values: [S, B, k] fp32 with their sign, largest magnitude first.
        positions, dimensions: [S, B, k] int64, the token's column and the hidden dimension of each value.
        median: [S, B] median magnitude of the hidden states.
    """

    layers: tuple[int, ...]
    values: Tensor
    positions: Tensor
    dimensions: Tensor
    median: Tensor

    def massive(self, least: float = 100.0, ratio: float = 1000.0) -> Tensor:
        """[S, B, k] bool: larger than `least` and than `ratio` times the median, as the paper defines it."""
        size = self.values.abs()
        return (size > least) & (size > ratio * self.median[..., None])

    def __str__(self) -> str:
        lines = ["layer sample    median  largest (column, dimension)"]
        for number, layer in enumerate(self.layers):
            for sample in range(self.values.shape[1]):
                places = zip(self.positions[number, sample], self.dimensions[number, sample], strict=True)
                text = "  ".join(
                    f"{float(value):9.2f} ({int(column)}, {int(dimension)})"
                    for value, (column, dimension) in zip(self.values[number, sample], places, strict=True)
                )
                lines.append(f"{layer:5d} {sample:6d} {float(self.median[number, sample]):9.4f}  {text}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return first_lines(str(self))

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per layer, sample and rank."""
        samples, k = self.values.shape[1:]
        return long_table(
            {"layer": self.layers, "sample": range(samples), "rank": range(k)},
            value=self.values,
            column=self.positions,
            dimension=self.dimensions,
            median=self.median[..., None].expand_as(self.values),
        )


def massive_activations(
    gaze: Gaze, inputs: Mapping[str, Any], *, k: int = 3, layers: Sequence[int] | None = None
) -> MassiveActivations:
    """The k largest activations and the median of each layer.

    Source: Sun et al., "Massive Activations in Large Language Models" (arXiv:2402.17762), which shows that
    they lie in a few dimensions of a few tokens, whatever the input.

    Args:
        inputs: from `gaze.inputs`, or `with_answers`. k: how many values.
        layers: see `MassiveActivations`; None: all.

    Raises:
        BadParameterError: k below 1.
    """
    if k < 1:
        raise BadParameterError(f"k must be at least 1, got {k}")
    probe = _LargestProbe(k, layers)
    with torch.no_grad():
        run_forward(gaze, inputs, probe)
    return MassiveActivations(probe.chosen, *stacked(probe.per_layer, probe.chosen))


class _LargestProbe(HiddenStateProbe):
    def __init__(self, k: int, layers: Sequence[int] | None):
        super().__init__(layers)
        self.k = k
        self.per_layer: dict[int, tuple[Tensor, ...]] = {}

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.padding = EachDevice(~context.visible[..., None])

    def measure(self, layer: int, hidden: Tensor) -> None:
        width, padding = hidden.shape[-1], self.padding.to(hidden.device).tensor
        size = hidden.float().abs()
        index = size.masked_fill(padding, -1.0).flatten(1).topk(self.k, dim=1).indices
        values = hidden.float().flatten(1).gather(1, index)
        median = size.masked_fill(padding, torch.nan).flatten(1).nanmedian(1).values
        self.per_layer[layer] = values, index // width, index % width, median
