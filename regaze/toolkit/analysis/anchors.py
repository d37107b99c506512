"""The preplan-and-anchor rhythm of a generated text: where it looks back, and which tokens it looks back at.

Source: "Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm" (arXiv:2510.13554). It defines
two signals per generated token. WAAD is how far local heads look back within a window; its jumps mark the
start of a chunk. FAI is how much later tokens look back at a token through global heads; its peaks mark
anchors.

`lookback` computes both per head in one pass over the layers. Here the heads are divided into local and
global ones, and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.display import Tabular, short_repr
from regaze.errors import BadParameterError, InputError, RecordingError
from regaze.toolkit.analysis.answers import token_map_of
from regaze.toolkit.analysis.forward import AttentionProbe, EachDevice, run_forward, stacked
from regaze.toolkit.analysis.lookback import PAPER, HeadSignals, Horizon, SignalSums, head_signals
from regaze.toolkit.analysis.selection import check_sample, first_column, first_trace, select_rows
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.content_words import read_tokens
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True, eq=False)
class Rhythm(Tabular):
    """The rhythm of one response of R tokens.

    Attributes:
        layers: [S] numbers of the layers.
        heads: the signals of each head, [S, Hq, R].
        local, global_: [S, Hq] bool, the heads with the shortest and the longest mean distance.
        positions: [R] columns of the response's tokens. text: [R] their text, "" where it is not known.
    """

    layers: tuple[int, ...]
    heads: HeadSignals
    local: Tensor
    global_: Tensor
    positions: Tensor
    text: tuple[str, ...]

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per token of the answer."""
        return {
            "token": range(len(self.text)),
            "text": self.text,
            "position": self.positions.tolist(),
            "waad": self.waad.tolist(),
            "fai": self.fai.tolist(),
        }

    @property
    def distance(self) -> Tensor:
        """[S, Hq], d: mean distance back over the response's rows, prompt keys included."""
        return self.heads.distance.mean(-1)

    @property
    def waad(self) -> Tensor:
        """[R], windowed average attention distance, mean over local heads; in [0, W]."""
        return self.heads.waad[self.local].mean(0)

    @property
    def fai(self) -> Tensor:
        """[R], future attention influence, mean over global heads; in [0, 1], nan without later rows."""
        return self.heads.fai[self.global_].mean(0)

    def preplans(self, q: float = 0.4) -> Tensor:
        """Indices of the tokens after which WAAD changes most: the ceil(q (R - 1)) largest changes."""
        return top_fraction(waad_changes(self.waad), q)

    def anchors(self, q: float = 0.4) -> Tensor:
        """Indices of the tokens with the largest FAI: ceil(q R') of the R' tokens where it is defined."""
        return top_fraction(self.fai, q)


def rhythm(
    gaze: Gaze,
    inputs: Mapping[str, Any],
    *,
    layers: Sequence[int] | None = None,
    share: float = 0.3,
    horizon: Horizon = PAPER,
) -> list[Rhythm]:
    """The rhythm of each answer of a batch, from one forward over prompts and answers.

    Args:
        inputs: from `with_answers`.
        layers: numbers; None: all, as in the paper's analysis (`middle_layers` for its training).
        share: fraction of all heads that is local, and the fraction that is global.
        horizon: window and rows of the signals.

    Raises:
        InputError: inputs without an answer.
    """
    tokens = token_map_of(gaze, inputs)
    output = tokens.mask(Role.OUTPUT)
    if not bool(output.any(1).all()):
        raise InputError("the rhythm is that of an answer: use with_answers(gaze, inputs, answers)")
    probe = _SignalProbe(layers, horizon, output)
    with torch.no_grad():
        run_forward(gaze, inputs, probe)
    rhythms = []
    for sample, signals in enumerate(probe.results()):
        positions = output[sample].nonzero().flatten()
        text = _token_texts(gaze.reader.tokenizer, inputs["input_ids"][sample, positions].tolist())
        rhythms.append(_rhythm(probe.chosen, signals, share, positions, text))
    return rhythms


def recorded_rhythm(
    record: Record | Trace, *, share: float = 0.3, horizon: Horizon = PAPER, sample: int = 0
) -> Rhythm:
    """The rhythm from attention that was recorded with slices="all" while the answer was generated.

    The answer's last token has no row: it was never fed to the model.

    Raises:
        RecordingError: not all columns, or no decode step was recorded.
    """
    trace = first_trace(record)
    if trace.slice_columns is not None:
        raise RecordingError('the rhythm needs all columns; use gaze.recording(slices="all", ...)')
    weights = trace.require("slices")[:, check_sample(trace, sample)]
    rows = select_rows(trace, "answer", sample)[1:]  # without the prompt's last row
    if not len(rows):
        raise RecordingError("no row of an answer's token was recorded: generate two tokens at the least")
    positions = trace.row_position[rows]
    signals = head_signals(weights[:, :, rows], positions, horizon, first=first_column(trace, sample))
    known = trace.text[sample] if trace.text is not None else ()
    text = tuple(known[place] if place < len(known) else "" for place in positions.tolist())
    return _rhythm(trace.layers, signals, share, positions, text)


def _token_texts(tokenizer: Any, ids: list[int]) -> tuple[str, ...]:
    if tokenizer is None:
        return ("",) * len(ids)
    text, offsets = read_tokens(tokenizer, ids)
    return tuple(text[start:end] for start, end in offsets)


def _rhythm(
    layers: Sequence[int], signals: HeadSignals, share: float, positions: Tensor, text: tuple[str, ...]
) -> Rhythm:
    local, global_ = split_heads(signals.distance.mean(-1), share)
    return Rhythm(tuple(layers), signals, local, global_, positions, text)


def split_heads(distance: Tensor, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """The heads with the shortest and with the longest distance, among the heads of all layers together.

    Args:
        distance: [S, Hq]; of equal distances the earlier one counts as shorter.
        share: fraction of the heads in each group.

    Returns:
        Two [S, Hq] bool, each with floor(share * S * Hq) heads, at least one.
    """
    if not 0.0 < share <= 0.5:
        raise BadParameterError(f"share is a fraction in (0, 0.5], got {share}")
    count = max(1, math.floor(share * distance.numel() + 1e-9))
    order = distance.flatten().argsort(stable=True)
    masks = []
    for chosen in (order[:count], order[-count:]):
        mask = torch.zeros(distance.numel(), dtype=torch.bool)
        mask[chosen] = True
        masks.append(mask.view(distance.shape))
    return masks[0], masks[1]


def waad_changes(waad: Tensor) -> Tensor:
    """|WAAD_t - WAAD_(t+1)|: [R] -> [R - 1]; the last token has none."""
    return (waad[1:] - waad[:-1]).abs()


def top_fraction(values: Tensor, q: float = 0.4) -> Tensor:
    """Indices of the ceil(q n) largest of the n values that are not nan, in increasing order.

    Of equal values the earlier one comes first.
    """
    if not 0.0 < q <= 1.0:
        raise BadParameterError(f"q is a fraction in (0, 1], got {q}")
    count = math.ceil(q * int((~values.isnan()).sum()) - 1e-9)
    order = values.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    return order[:count].sort().values


def middle_layers(num_layers: int, count: int = 5) -> tuple[int, ...]:
    """Evenly spaced layers from a third to two thirds of the depth, as the paper uses for training.

    36 layers give 12, 15, 18, 21, 24.
    """
    first, last = num_layers // 3, 2 * num_layers // 3
    if count < 2 or last - first + 1 < count:
        return tuple(range(first, min(last, first + count - 1) + 1))
    return tuple(round(first + number * (last - first) / (count - 1)) for number in range(count))


class _SignalProbe(AttentionProbe):
    """Sums the signals of every answer in a batch, layer by layer."""

    def __init__(self, layers: Sequence[int] | None, horizon: Horizon, output: Tensor):
        super().__init__(layers)
        self.horizon, self.length = horizon, output.shape[1]
        self._positions = [EachDevice(sample.nonzero().flatten()) for sample in output]
        self.per_layer: dict[int, tuple[Tensor, ...]] = {}  # three tensors for each sample

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.visible = context.visible

    def measure(self, layer: int, call: AttentionCall) -> None:
        heads, device, sums = call.query.shape[1], call.query.device, []
        for sample in range(self.batch):
            first = int(self.visible[sample].int().argmax())
            positions = self._positions[sample].to(device).tensor
            sums.append(SignalSums((heads,), positions, self.length, self.horizon, first))
        for rows, weights in self.blocks(call):
            for sample, each in enumerate(sums):
                part = _tokens_within(self._positions[sample].tensor, rows)
                each.add(weights[sample, :, each.positions[part] - rows.start], part)
        self.per_layer[layer] = tuple(tensor for each in sums for tensor in each.signals())

    def results(self) -> list[HeadSignals]:
        """Per sample, [S, Hq, R]."""
        signals = stacked(self.per_layer, self.chosen)
        return [HeadSignals(*signals[3 * sample : 3 * sample + 3]) for sample in range(self.batch)]


def _tokens_within(positions: Tensor, rows: slice) -> slice:
    """Which of a response's tokens, at increasing `positions`, lie in a block of rows."""
    start, stop = torch.searchsorted(positions, torch.tensor([rows.start, rows.stop])).tolist()
    return slice(start, stop)
