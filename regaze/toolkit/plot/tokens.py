"""Attention of each token to the other tokens, or to the frames of a recording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from regaze.errors import BadParameterError, RecordingError
from regaze.reading import StrPath
from regaze.toolkit.analysis.selection import (
    RecordedRows,
    check_sample,
    first_column,
    first_trace,
    select_heads,
    select_rows,
)
from regaze.toolkit.plot.style import colour_scale, new_figure, style_and_save, word_ticks
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace


def token_matrix(
    record: Record | Trace,
    *,
    rows: RecordedRows = "all",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    sink: bool = False,
    path: StrPath | None = None,
) -> Figure:
    """Attention from each token (downwards) to the tokens (to the right); the mean over layers and heads.

    Args:
        record: recorded with slices="all", and rows="all" to have a row for every token.
        rows: see `RecordedRows`. layers, heads: numbers; None: all. sample: row of the batch.
        sink: whether to draw the first token, an attention sink that takes most of the weight of most heads.
            Without it its column stays white and the other weights set the colour scale.

    Raises:
        RecordingError: the weights of all columns, or the text, were not recorded.
        BadParameterError: a layer, head, row or sample that is not in the record.
    """
    trace = first_trace(record)
    sample = check_sample(trace, sample)
    if trace.slice_columns is not None or trace.text is None:
        raise RecordingError(
            'this draws tokens against tokens; use gaze.recording(slices="all", ...) and a tokenizer'
        )
    chosen = select_rows(trace, rows, sample)
    weights = select_heads(trace, trace.require("slices")[:, sample], layers, heads)[:, :, chosen].mean(
        (0, 1)
    )
    text, first = trace.text[sample], first_column(trace, sample)
    positions = trace.row_position[chosen].tolist()
    last = min(max(positions) + 1, len(text), weights.shape[1])
    values = weights[:, first:last].double().numpy()
    columns = np.arange(first, last)
    values[columns[None] > np.array(positions)[:, None]] = np.nan
    if not sink:
        values[:, 0] = np.nan
    figure = new_figure(0.17 * len(columns) + 2.0, 0.17 * len(positions) + 1.4)
    axes = figure.add_subplot()
    mappable = axes.imshow(values, aspect="auto", interpolation="nearest", **colour_scale(values))
    word_ticks(axes.xaxis, text[first:last], rotation=90)
    word_ticks(axes.yaxis, [text[p] if p < len(text) else "" for p in positions])
    axes.set_xlabel("token looked at" + ("" if sink else " (without the first)"))
    axes.set_ylabel("token that looks")
    figure.colorbar(mappable, ax=axes, pad=0.01).set_label("attention weight (mean)")
    return style_and_save(figure, path)


def cross_attention(
    weights: Record | Trace | Tensor,
    *,
    words: Sequence[str] | None = None,
    seconds: float = 0.02,
    end: float | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    path: StrPath | None = None,
) -> Figure:
    """Cross-attention of a speech model, words downwards and time to the right.

    Every row is scaled to its largest weight.

    Args:
        weights: a record with slices="all" of a model such as Whisper, whose rows that predict the answer are
            drawn; or weights [T, keys], such as one head of `analysis.Utterance.cross_attention`.
        words: [T] the answer's tokens; None: those of the record.
        seconds: duration of a key; 0.02 in Whisper.
        end: where the sound ends, in seconds; None: draw all keys, padding included.
        layers, heads, sample: as for `heatmap`; used with a record only.

    Raises:
        RecordingError: no cross-attention was recorded, or not all its columns.
        BadParameterError: not one word per row, or weights of another shape.
    """
    if isinstance(weights, Tensor):
        rows = weights.detach().float().cpu()
    else:
        rows, words = _answer_rows(first_trace(weights), words, layers, heads, sample)
    if rows.dim() != 2 or (words is not None and len(words) != len(rows)):
        raise BadParameterError(
            f"expected weights [T, keys] and T words, got {list(rows.shape)} and "
            f"{'none' if words is None else len(words)}"
        )
    keys = rows.shape[1] if end is None else max(1, min(rows.shape[1], round(end / seconds)))
    values = (rows[:, :keys] / rows[:, :keys].amax(1, keepdim=True).clamp_min(1e-12)).numpy()
    figure = new_figure(6.4, 0.19 * len(values) + 1.0)
    axes = figure.add_subplot()
    extent = (0.0, keys * seconds, len(values) - 0.5, -0.5)
    mappable = axes.imshow(
        values, extent=extent, aspect="auto", interpolation="nearest", **colour_scale(values)
    )
    word_ticks(axes.yaxis, [str(row) for row in range(len(values))] if words is None else words)
    axes.set_xlabel("time in the recording (s)")
    axes.set_ylabel("token that is written")
    figure.colorbar(mappable, ax=axes, pad=0.01).set_label("attention (row's largest is 1)")
    return style_and_save(figure, path)


def _answer_rows(
    trace: Trace, words: Sequence[str] | None, layers: object, heads: object, sample: int
) -> tuple[Tensor, Sequence[str] | None]:
    """Mean weights [T, keys] of the rows that predict the answer, and the answer's words if known."""
    if trace.cross is None or trace.cross.slices is None or trace.cross.slice_columns is not None:
        raise RecordingError('no cross-attention was recorded; use gaze.recording(slices="all", ...)')
    sample = check_sample(trace, sample)
    chosen = select_rows(trace, "answer", sample)
    rows = select_heads(trace.cross, trace.cross.slices[:, sample], layers, heads)[:, :, chosen].mean((0, 1))
    if words is None:
        known = trace.answer_text(sample)
        words = known if any(known) else None
    elif len(words) < len(chosen):  # the row after the last word predicts the end of the text
        rows = rows[: len(words)]
    return torch.as_tensor(rows).float(), words
