"""Attention mass by role, as stacked areas over the layers or over the answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.reading import StrPath
from regaze.toolkit.analysis import roles
from regaze.toolkit.analysis.selection import first_trace, token_row
from regaze.toolkit.plot.style import ROLE_COLOURS, legend, new_figure, style_and_save, word_ticks
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace


def role_flow(
    flow: roles.RoleFlow, *, over: Literal["layers", "steps"] = "layers", path: StrPath | None = None
) -> Figure:
    """Attention mass by role as stacked areas.

    Args:
        flow: from `analysis.role_flow`, which also chooses rows, layers and heads.
        over: "layers": the mean over heads and rows; "steps": over the flow's rows, the mean over layers and
            heads.

    Raises:
        BadParameterError: a difference of two flows, whose negative parts cannot be stacked.
    """
    if over not in ("layers", "steps"):
        raise BadParameterError(f'over must be "layers" or "steps", got {over!r}')
    if bool((flow.masses < 0).any()):
        raise BadParameterError("a difference of flows cannot be stacked; draw the two flows")
    values = flow.by_layer() if over == "layers" else flow.by_step()
    wide = 0.14 if over == "layers" else 0.28
    figure = new_figure(max(4.6, wide * len(values) + 1.8), 3.0)
    axes = figure.add_subplot()
    _stack_roles(axes, values)
    if over == "layers":
        step = 1 + len(values) // 16
        axes.set_xticks(range(0, len(values), step), [str(layer) for layer in flow.layers[::step]])
    else:
        words = [text if text.strip() else str(place) for place, text in enumerate(flow.text)]
        word_ticks(axes.xaxis, words, rotation=60)
    axes.set_xlabel("layer" if over == "layers" else "answer token")
    axes.set_ylabel("attention mass (mean over heads)")
    return style_and_save(figure, path)


def role_masses(
    record: Record | Trace,
    *,
    over: Literal["layers", "steps"] = "layers",
    token: int | str = 0,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    path: StrPath | None = None,
) -> Figure:
    """`role_flow` of a record: over the layers for the row of one token, or over the answer's tokens.

    Args:
        record: recorded with masses (the default).
        over: "layers" draws the row of `token`; "steps" draws all answer rows and averages the layers.

    Other arguments and errors as for `heatmap`.
    """
    trace = first_trace(record)
    chosen: Literal["answer"] | list[int] = "answer"
    if over == "layers":
        chosen = [token_row(trace, token, sample)]
    flow = roles.role_flow(trace, rows=chosen, layers=layers, heads=heads, sample=sample)
    return role_flow(flow, over=over, path=path)


def _stack_roles(axes: Axes, values: Tensor) -> None:
    """Draw [n, roles] as stacked areas; a single point becomes a bar."""
    x, base = np.arange(len(values)), np.zeros(len(values))
    for role, colour in ROLE_COLOURS.items():
        part = values[:, int(role)].numpy()
        if not part.any():
            continue
        if len(x) == 1:
            axes.bar(x, part, bottom=base, color=colour, label=role.name.lower())
        else:
            axes.fill_between(x, base, base + part, color=colour, label=role.name.lower(), linewidth=0)
        base = base + part
    axes.set_ylim(0, 1)
    if len(x) > 1:
        axes.set_xlim(0, len(x) - 1)
    handles, labels = axes.get_legend_handles_labels()  # reversed: from top to bottom
    legend(axes, handles=handles[::-1], labels=labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5))
