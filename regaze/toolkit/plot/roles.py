"""How attention divides among the roles, as stacked areas over layers or over the answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.toolkit.analysis import roles
from regaze.toolkit.analysis.selection import check_choice, check_sample, first_trace, select_rows
from regaze.toolkit.plot.style import ROLE_COLOURS, legend, new_figure, style_and_save, word_ticks
from regaze.toolkit.record.record import Record, Trace


def role_flow(
    flow: roles.RoleFlow, *, over: Literal["layers", "steps"] = "layers", path: str | Path | None = None
) -> Figure:
    """Attention mass by role as a stacked area, over the layers or over the flow's rows (mean of the rest).

    Args:
        flow: from `analysis.role_flow`, which also chooses rows, layers and heads.

    Raises:
        BadParameterError: a difference of two flows, whose parts cannot be stacked.
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
    path: str | Path | None = None,
) -> Figure:
    """The same from a record: over the layers for one token's row, or over the answer's tokens.

    Args:
        record: recorded with masses (the default). Other arguments and errors as for `heatmap`; over="steps"
            averages the layers.
    """
    trace = first_trace(record)
    chosen: Literal["answer"] | list[int] = "answer"
    if over == "layers":
        chosen = [_row(trace, token, sample)]
    flow = roles.role_flow(trace, rows=chosen, layers=layers, heads=heads, sample=sample)
    return role_flow(flow, over=over, path=path)


def _row(trace: Trace, token: int | str, sample: int) -> int:
    if isinstance(token, str):
        return trace.row_of(token, check_sample(trace, sample))
    rows = select_rows(trace, "answer", check_sample(trace, sample))
    return int(rows[check_choice("answer token", token, range(len(rows)))])


def _stack_roles(axes: Axes, values: Tensor) -> None:
    """Stacked areas of [n, roles]; a single point becomes a bar."""
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
    handles, labels = axes.get_legend_handles_labels()  # from top to bottom, as the areas lie
    legend(axes, handles=handles[::-1], labels=labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5))
