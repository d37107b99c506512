"""Preplan and anchor: where a generated text looks back, and which of its tokens are looked back at.

Source: "Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm" (arXiv:2510.13554). Two signals
per generated token: WAAD, how far back local heads look within a window, whose jumps mark the onset of a
chunk; and FAI, how much later tokens look back at a token through global heads, whose peaks mark anchors.

Both are linear in the attention, so they are kept per head, [layers, Hq, R], and averaged over the heads once
it is known which are local and which global: one pass over the layers, and no map is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.signal import find_peaks
from torch import Tensor

from regaze.errors import BadParameterError, InputError, RecordingError, ShapeError
from regaze.toolkit.analysis.forward import AttentionProbe, run_forward, token_map_of
from regaze.toolkit.analysis.selection import check_sample, first_trace, select_rows
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.content_words import read_tokens
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True)
class Horizon:
    """What the signals count.

    Attributes:
        window: W, the distance at which WAAD clips; the paper's 10.
        low, high: a token's FAI is the mean over rows `low` to `high` tokens behind it. In its analysis the
            paper goes from the token to the end (0, None), for training from 10 to 100 (50 in version 1).
        skip: first keys of the text that do not count, rows renormalised over the others: heads that look at
            the first token alone reach farthest back and dilute the global ones. The paper's 0.
    """

    window: int = 10
    low: int = 0
    high: int | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        if (
            self.window < 1
            or self.low < 0
            or self.skip < 0
            or (self.high is not None and self.high < self.low)
        ):
            raise BadParameterError(f"window must be at least 1, 0 <= low <= high and 0 <= skip; got {self}")


#: The paper's analysis.
PAPER = Horizon()


class HeadSignals(NamedTuple):
    """What each head contributes, for the R tokens of a response.

    Attributes:
        distance: [..., R] mean distance back of each row. waad: [..., R] the same, clipped at the window.
        fai: [..., R] mean weight on each token in the later rows of its horizon; nan where there is none.
    """

    distance: Tensor
    waad: Tensor
    fai: Tensor


@dataclass(frozen=True, eq=False)
class Rhythm:
    """The rhythm of one response of R tokens.

    Attributes:
        layers: [S] numbers of the layers.
        heads: the signals of each head, [S, Hq, R].
        local, global_: [S, Hq] bool, the heads with the shortest and the longest mean distance.
        positions: [R] columns of the response's tokens. text: [R] their pieces of text, "" if not known.
    """

    layers: tuple[int, ...]
    heads: HeadSignals
    local: Tensor
    global_: Tensor
    positions: Tensor
    text: tuple[str, ...]

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
        """Numbers of the tokens after which WAAD jumps most: the ceil(q (R - 1)) largest changes."""
        return top_fraction(waad_changes(self.waad), q)

    def anchors(self, q: float = 0.4) -> Tensor:
        """Numbers of the tokens with most FAI: the ceil(q R') largest of the R' that have one."""
        return top_fraction(self.fai, q)


def rhythm(
    gaze: Gaze,
    inputs: Mapping[str, Any],
    *,
    layers: Sequence[int] | None = None,
    share: float = 0.3,
    horizon: Horizon = PAPER,
) -> list[Rhythm]:
    """The rhythm of each answer, from one forward of prompts and answers.

    Args:
        inputs: from `with_answers`.
        layers: numbers; None: all, as in the paper's analysis (`middle_layers` for its training).
        share: of all heads are local, and as many global. horizon: what counts.

    Raises:
        InputError: inputs without an answer.
    """
    tokens = token_map_of(gaze, inputs)
    output = tokens.mask(Role.OUTPUT)
    if not bool(output.any(1).all()):
        raise InputError("the rhythm is that of an answer: use with_answers(gaze, inputs, answers)")
    meter = _Meter(layers, horizon, output)
    with torch.no_grad():
        run_forward(gaze, inputs, meter)
    tokenizer, found = gaze.reader.tokenizer, []
    for sample, signals in enumerate(meter.results()):
        positions = output[sample].nonzero().flatten()
        ids = inputs["input_ids"][sample, positions].tolist()
        text = _pieces(tokenizer, ids) if tokenizer is not None else ("",) * len(ids)
        found.append(_rhythm(meter.chosen, signals, share, positions, text))
    return found


def recorded_rhythm(
    record: Record | Trace, *, share: float = 0.3, horizon: Horizon = PAPER, sample: int = 0
) -> Rhythm:
    """The same from what was recorded while the answer was generated, with slices="all".

    Rows are those of the answer's tokens that were fed again: of the last one nothing was recorded.

    Raises:
        RecordingError: not all columns, or no decode step was recorded.
    """
    trace = first_trace(record)
    if trace.slice_columns is not None:
        raise RecordingError('the rhythm needs all columns; use gaze.recording(slices="all", ...)')
    weights = trace.require("slices")[:, check_sample(trace, sample)]
    rows = select_rows(trace, "answer", sample)
    first = 0 if trace.tokens is None else int((~trace.tokens.mask(Role.PAD)[sample]).int().argmax())
    rows = rows[1:]  # the first is the prompt's own
    if not len(rows):
        raise RecordingError("no row of an answer's token was recorded: generate two tokens at the least")
    positions = trace.row_position[rows]
    signals = head_signals(weights[:, :, rows], positions, horizon, first=first)
    known = trace.text[sample] if trace.text is not None else ()
    text = tuple(known[place] if place < len(known) else "" for place in positions.tolist())
    return _rhythm(trace.layers, signals, share, positions, text)


def _pieces(tokenizer: Any, ids: list[int]) -> tuple[str, ...]:
    text, offsets = read_tokens(tokenizer, ids)
    return tuple(text[start:end] for start, end in offsets)


def _rhythm(
    layers: Sequence[int], signals: HeadSignals, share: float, positions: Tensor, text: tuple[str, ...]
) -> Rhythm:
    local, global_ = split_heads(signals.distance.mean(-1), share)
    return Rhythm(tuple(layers), signals, local, global_, positions, text)


# The definitions ----------------------------------------------------------------------------------------


def head_signals(
    weights: Tensor, positions: Tensor, horizon: Horizon = PAPER, *, first: int = 0
) -> HeadSignals:
    """The signals of attention rows.

    Args:
        weights: [..., R, N] rows of the response's tokens over all keys; rows sum to 1.
        positions: [R] columns of these tokens among the keys, increasing.
        horizon: what counts. first: the first column that is no padding.

    Raises:
        ShapeError: not one row for each position.
    """
    if weights.dim() < 2 or weights.shape[-2] != len(positions):
        raise ShapeError(f"weights must be [..., R, N] with R = {len(positions)}, got {list(weights.shape)}")
    sums = _Sums(weights.shape[:-2], positions, weights.shape[-1], horizon, first, weights.device)
    sums.add(weights, slice(0, len(positions)))
    return sums.signals()


class _Sums:
    """The sums behind `head_signals`, over blocks of a response's rows."""

    def __init__(
        self,
        shape: Sequence[int],
        positions: Tensor,
        keys: int,
        horizon: Horizon,
        first: int,
        device: torch.device,
    ):
        self.positions, self.horizon, self.skipped = positions.to(device), horizon, first + horizon.skip
        count = len(positions)
        self.distance, self.waad = (torch.zeros(*shape, count, device=device) for _ in range(2))
        self.received = torch.zeros(*shape, keys, device=device)

    def add(self, weights: Tensor, rows: slice) -> None:
        """Rows [..., r, K] with the numbers `rows` among the response's; K: the keys so far."""
        columns = torch.arange(weights.shape[-1], device=weights.device)
        if self.horizon.skip:
            weights = weights * (columns >= self.skipped)
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        back = (self.positions[rows, None] - columns).clamp_min(0)
        self.distance[..., rows] = (weights * back).sum(-1)
        self.waad[..., rows] = (weights * back.clamp_max(self.horizon.window)).sum(-1)
        self.received[..., : len(columns)] += (weights * self._in_horizon(columns, rows)).sum(-2)

    def signals(self) -> HeadSignals:
        counts = self._in_horizon(self.positions, slice(None)).sum(
            0
        )  # [R] rows that each token's mean is over
        received = self.received[..., self.positions]
        fai = torch.where(counts > 0, received / counts.clamp_min(1), torch.nan)
        return HeadSignals(*(tensor.cpu() for tensor in (self.distance, self.waad, fai)))

    def _in_horizon(self, columns: Tensor, rows: slice) -> Tensor:
        """[r, columns] bool: whether a row counts for a token's FAI."""
        behind = self.positions[rows, None] - columns
        far = behind > self.horizon.high if self.horizon.high is not None else torch.zeros_like(behind).bool()
        return (behind >= self.horizon.low) & ~far


def split_heads(distance: Tensor, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """The `share` of all heads, over all layers together, with the shortest and with the longest distance.

    Args:
        distance: [S, Hq]. Of equal ones the earlier counts as the shorter.

    Returns:
        Two [S, Hq] bool, floor(share * S * Hq) heads in each, one at the least.
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
    """Numbers of the ceil(q n) largest of the n values that are not nan, in increasing order.

    Of equal ones the earlier comes first.
    """
    if not 0.0 < q <= 1.0:
        raise BadParameterError(f"q is a fraction in (0, 1], got {q}")
    count = math.ceil(q * int((~values.isnan()).sum()) - 1e-9)
    order = values.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    return order[:count].sort().values


def peaks(values: Tensor, prominence: float = 1.0) -> Tensor:
    """Numbers of the maxima that stand out by `prominence` standard deviations; the paper names no detector.

    Args:
        values: [R] WAAD or FAI; nan counts as the least.
    """
    known = values[~values.isnan()]
    if len(known) < 3:
        return torch.zeros(0, dtype=torch.int64)
    filled = values.nan_to_num(nan=float(known.min())).double()
    found, _ = find_peaks(filled.numpy(), prominence=max(prominence * float(known.double().std()), 1e-12))
    return torch.from_numpy(found.astype("int64"))


def middle_layers(num_layers: int, count: int = 5) -> tuple[int, ...]:
    """Evenly spaced layers from a third to two thirds of the depth, which the paper trains with.

    36 layers give 12, 15, 18, 21, 24.
    """
    first, last = num_layers // 3, 2 * num_layers // 3
    if count < 2 or last - first + 1 < count:
        return tuple(range(first, min(last, first + count - 1) + 1))
    return tuple(round(first + number * (last - first) / (count - 1)) for number in range(count))


class _Meter(AttentionProbe):
    """Sums the signals of every answer in a batch, layer by layer."""

    def __init__(self, layers: Sequence[int] | None, horizon: Horizon, output: Tensor):
        super().__init__(layers)
        self.horizon, self.output = horizon, output
        self.found: dict[int, list[HeadSignals]] = {}

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.visible = context.visible

    def measure(self, layer: int, call: AttentionCall) -> None:
        heads, length = call.query.shape[1], self.output.shape[1]
        sums = []
        for sample in range(self.batch):
            first, positions = (
                int(self.visible[sample].int().argmax()),
                self.output[sample].nonzero().flatten(),
            )
            sums.append(_Sums((heads,), positions, length, self.horizon, first, call.query.device))
        for rows, weights in self.blocks(call):
            for sample, one in enumerate(sums):
                part = _within(one.positions, rows)
                one.add(weights[sample, :, one.positions[part] - rows.start], part)
        self.found[layer] = [one.signals() for one in sums]

    def results(self) -> list[HeadSignals]:
        """Per sample, [S, Hq, R]."""
        per_layer = [self.found[layer] for layer in self.chosen]
        return [
            HeadSignals(
                *(torch.stack(part) for part in zip(*(layer[sample] for layer in per_layer), strict=True))
            )
            for sample in range(self.batch)
        ]


def _within(positions: Tensor, rows: slice) -> slice:
    """Which of a response's tokens lie in a block of rows."""
    edges = torch.tensor([rows.start, rows.stop], device=positions.device)
    start, stop = torch.searchsorted(positions, edges).tolist()
    return slice(start, stop)
