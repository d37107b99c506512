"""`Recorder`: the callback that fills a `Record` while a `gaze.recording(...)` block is open."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, islice
from typing import Any, ClassVar, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from regaze.errors import RecordingError
from regaze.kernels import AttentionEdit, Channels, RowSelection, Stats, StatsRequest
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.record.host_copies import to_host
from regaze.toolkit.record.options import RecordOptions
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.schema import FORMAT
from regaze.toolkit.record.trace import STATISTICS, Trace, token_texts
from regaze.version import __version__


class Recorder(Callback):
    """Requests the statistics of each forward and collects them, one trace per generation.

    Args:
        model: the wrapped model. tokenizer: gives the texts of tokens; None: no texts.
    """

    options: RecordOptions
    tokenizer: Any

    counts_steps: ClassVar[bool] = True
    records: ClassVar[bool] = True
    plans_ahead = True

    def __init__(self, options: RecordOptions, model: Any, tokenizer: Any):
        self.options, self.tokenizer = options, tokenizer
        self.fixed_edits = options.steps is None
        self.record: Record = Record(_header(model, options))
        self._open: _OpenTrace | None = None

    def prepare(self, context: Context) -> None:
        self._close_trace()
        self._open = _OpenTrace(self.options, context)

    def on_step(self, context: Context, input_ids: Tensor | None) -> None:
        if self._open is not None and context is self._open.context:
            self._open.begin_step(input_ids)
        elif context.step:
            raise RecordingError(
                "two generations are interleaved inside one recording; record them one after the other"
            )

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        assert self._open is not None
        return self._open.own.edit(step) if self._includes(layer, step, context) else None

    def edit_cross(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        assert self._open is not None
        return self._open.cross.edit(step) if self._includes(layer, step, context) else None

    def _includes(self, layer: int, step: int, context: Context) -> bool:
        layers, steps = self.options.layers, self.options.steps
        step = 0 if context.replaying else step
        return (layers is None or layer in layers) and (steps is None or step in steps)

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        if self._open is not None:
            self._open.own.add(layer, stats)

    def on_stats_of_layers(self, layers: Sequence[int], stats: Stats, context: Context) -> None:
        if self._open is not None:
            self._open.own.add(tuple(layers), stats)

    def on_cross_stats(self, layer: int, stats: Stats, context: Context) -> None:
        if self._open is not None:
            self._open.cross.add(layer, stats)

    def on_generate(self) -> None:
        if self._open is not None:
            self._open.begin_turn()

    def on_chosen(self, sequences: Tensor | None, ended: Tensor) -> None:
        if self._open is not None and len(ended) == self._open.context.user_batch:
            self._open.note_chosen(sequences, ended)

    def set_answer(self, output_ids: Tensor) -> None:
        """Set the ids [B, T] of the generation that has just ended.

        Ignored after beam search: its sequences are not in the order of the recorded rows.
        """
        if self._open is not None and len(output_ids) == self._open.context.user_batch:
            self._open.answer = output_ids.cpu()

    def finish(self) -> None:
        """Close the last trace. Raises RecordingError when nothing ran."""
        self._close_trace()
        if not self.record.traces:
            raise RecordingError(
                "nothing was recorded: no prompt was run through the model inside gaze.recording(...)"
            )

    def _close_trace(self) -> None:
        trace, self._open = self._open, None
        if trace is not None:
            self.record.traces.append(trace.close(self.tokenizer))


class _OpenTrace:
    """The trace of a generation that is running; its statistics stay on their device until it is closed.

    Attributes:
        own, cross: the statistics of the layers with self-attention and with cross-attention.
        answer: [B, T] ids of the answer, where the caller gives them.
    """

    def __init__(self, options: RecordOptions, context: Context):
        self.options, self.context = options, context
        self.answer: Tensor | None = None
        self._fed: list[Tensor] = []  # the ids of each decode step, and how many tokens it has
        self._counts: list[int] = []
        # Of each turn, by chosen token: the step before it, and whose answer has ended.
        self._ends: list[list[tuple[int, Tensor]]] = [[]]
        self._sequences: Tensor | None = None  # the newest, of `generate`
        self._rows: list[RowSelection] = []  # of each recorded step
        self._all_rows: dict[int, RowSelection] = {}  # by the number of tokens that a step feeds
        self._tokens = self._read_tokens()
        self._prefill = self._prefill_rows()
        self.own = _LayerStats(options, context, self._tokens, self._prefill)
        self._cross: _LayerStats | None = None
        if options.slices == "image" and self.own.columns is None and not context.has_cross_attention:
            raise RecordingError('slices="image" was asked for, but the prompt has no image')

    @property
    def cross(self) -> _LayerStats:
        """Made when the first layer with cross-attention runs: only then are its keys known."""
        if self._cross is None:
            self._cross = _LayerStats(self.options, self.context, self.context.cross_tokens, self._prefill)
        return self._cross

    def _read_tokens(self) -> TokenMap | None:
        options = self.options
        try:
            return self.context.tokens
        except ValueError as error:
            if options.masses or options.slices == "image" or options.rows == "text":
                raise RecordingError(
                    f"masses, image slices and text rows need the roles of the tokens: {error}"
                ) from error
            return None

    def _prefill_rows(self) -> RowSelection:
        length, chosen = self.context.prompt_length, self.options.rows
        if self._tokens is None:
            count = length if chosen == "all" else chosen if isinstance(chosen, int) else 1
            return RowSelection(torch.arange(max(0, length - count), length))
        real = ~self._tokens.mask(Role.PAD)
        if chosen == "all":
            return RowSelection.where(real)
        if isinstance(chosen, int):
            return RowSelection.where(real & (real.flip(1).cumsum(1).flip(1) <= chosen))
        if chosen == "text":
            rows = self._tokens.after_image()
            if not rows.any():
                raise RecordingError(
                    'rows="text" was asked for, but no text follows an image; use rows="all"'
                )
            return RowSelection.where(rows)
        return RowSelection.where(self._tokens.last())

    def begin_step(self, input_ids: Tensor | None) -> None:
        step, count = self.context.step, 1 if input_ids is None else input_ids.shape[1]
        if step:
            self._counts.append(count)
        if step and input_ids is not None:
            self._fed.append(input_ids)
        if self.options.steps is not None and step not in self.options.steps:
            return
        if step and count not in self._all_rows:
            self._all_rows[count] = RowSelection(torch.arange(count))
        self._rows.append(self._all_rows[count] if step else self._prefill)

    def begin_turn(self) -> None:
        """`generate` begins: where it goes on from this trace's cache, all rows are of use again."""
        if self._ends[-1]:
            self._ends.append([])

    def note_chosen(self, sequences: Tensor | None, ended: Tensor) -> None:
        """See `Callback.on_chosen`."""
        self._ends[-1].append((self.context.step, ended))
        self._sequences = sequences

    def close(self, tokenizer: Any) -> Trace:
        """The finished trace: everything on the CPU, stacked over layers and rows."""
        self._check_complete()
        position, step, active = self._row_index()
        kept = active.any(0)  # a row of no sample: padding that a branch needs, or a step after all ends
        active = active[:, kept]
        input_ids, output_ids = self._prompt_ids(), self._answer_ids()
        common: dict[str, Any] = {
            "row_position": position[kept] - self.context.hidden_columns,
            "row_step": step[kept],
            "row_active": active,
            "input_ids": input_ids,
            "output_ids": output_ids,
            "text": token_texts(tokenizer, input_ids, output_ids, self._answer_lengths()),
            "interventions": _described(self.context),
        }
        rows = _Rows(kept, active)
        cross = None if self._cross is None else Trace(**self._cross.collect(rows), **common)
        return Trace(**self.own.collect(rows), **common, cross=cross)

    def _prompt_ids(self) -> Tensor | None:
        ids = self.context.input_ids
        hidden = self.context.hidden_columns
        return None if ids is None else ids[: self.context.user_batch, hidden:].cpu()

    def _answer_ids(self) -> Tensor | None:
        """[B, T] ids of the answer: those that were given, else that were chosen, else that were fed."""
        if self.answer is not None:
            return self.answer
        if self._sequences is not None and len(self._ends) == 1:
            return self._sequences[:, -len(self._ends[0]) :].cpu()
        return torch.cat(self._fed, 1).cpu() if self._fed else None

    def _answer_lengths(self) -> list[int] | None:
        """Tokens of each sample's answer with its end; None where one `generate` has not said it."""
        if not self._ends[0] or len(self._ends) > 1:
            return None
        _, ended = self._ended()
        fed_alone = self.answer is None and self._sequences is None  # beams: their last token is not known
        return [min(len(ended), 1 + int((~sample).sum())) - fed_alone for sample in ended.T]

    def _ended(self) -> tuple[list[int], Tensor]:
        """The steps before chosen tokens, and whose answer is complete after them, [n, B] bool.

        Where a further turn begins, all go on: an entry beside the last one of the turn before.
        """
        steps: list[int] = []
        ended: list[Tensor] = []
        for turn in self._ends:
            if steps:
                steps.append(steps[-1])
                ended.append(torch.zeros_like(ended[-1][:1]))
            if turn:  # it has chosen a token
                steps += [step for step, _ in turn]
                ended.append(torch.stack([flags for _, flags in turn]).cpu().cummax(0).values)
        return steps, torch.cat(ended)

    def _check_complete(self) -> None:
        recorded = {*self.own.layers, *(() if self._cross is None else self._cross.layers)}
        missing = set(self.options.layers or ()) - recorded
        if missing or not recorded:
            what = f"layers {sorted(missing)}" if missing else f"steps {self.options.steps}"
            raise RecordingError(f"{what} were asked for, but no attention ran there")

    def _row_index(self) -> tuple[Tensor, Tensor, Tensor]:
        """Position [N] and step [N] of each row, and which samples have it [B, N]."""
        batch, steps, recorded = self.context.user_batch, self.context.step + 1, self.options.steps
        first = [0, *accumulate(self._counts, initial=self.context.prompt_length)]
        numbers = [number for number in range(steps) if recorded is None or number in recorded]
        counts = [len(rows.index) for rows in self._rows]
        step = torch.tensor(numbers).repeat_interleave(torch.tensor(counts))
        position = torch.cat([rows.index for rows in self._rows]) + torch.tensor(first)[step]
        active = torch.ones(batch, len(step), dtype=torch.bool)
        for rows, columns in zip(self._rows, active.split(counts, 1), strict=True):
            if rows.active is not None:
                columns.copy_(rows.active[:batch])
        if self._ends[0]:
            chosen, ended = self._ended()
            ended = torch.cat([torch.zeros_like(ended[:1]), ended])
            before = torch.searchsorted(torch.tensor(chosen), step)
            active = active & ~ended[before].T
        return position, step, active


class _Rows(NamedTuple):
    """What a finished trace holds of the recorded rows.

    Attributes:
        kept: [M] bool, the N of all M recorded rows. active: [B, N], which of them each sample has.
    """

    kept: Tensor
    active: Tensor


class _LayerStats:
    """The statistics of layers that attend to the same keys.

    Args:
        keys: the roles of the prompt's keys, or None. prefill: the rows to record there.
    """

    def __init__(
        self, options: RecordOptions, context: Context, keys: TokenMap | None, prefill: RowSelection
    ):
        self.options, self.context, self.keys = options, context, keys
        # By step: the statistics of a layer [B, ...] or, by several, of these together [layers, B, ...].
        self._steps: dict[int, dict[int | tuple[int, ...], Stats]] = defaultdict(dict)
        self.columns = self._image_columns() if options.slices == "image" else None
        answer = self._request()
        self._edits = answer.about(prefill).as_edit, answer.as_edit

    def _image_columns(self) -> Tensor | None:
        """[batch, n] columns of image tokens, -1 where a sample has fewer; None without any."""
        assert self.keys is not None
        columns = [self.keys.columns(Role.IMAGE, sample) for sample in range(self.keys.batch)]
        if not any(len(c) for c in columns):
            return None
        return pad_sequence(columns, batch_first=True, padding_value=-1)

    def edit(self, step: int) -> AttentionEdit:
        """The request to a layer: of the chosen rows at prefill, of every row afterwards."""
        return self._edits[min(step, 1)]

    def _request(self) -> StatsRequest:
        """What is requested of each row."""
        options, channels = self.options, None
        if options.masses:
            assert self.keys is not None
            channels = Channels(groups=self.keys.roles, num_groups=len(Role))
        return StatsRequest(
            channels=channels,
            entropy=options.entropy,
            top1=options.top1,
            lse=options.lse,
            columns=self.columns,
            full_rows=options.slices == "all",
            edited=options.edited,
        )

    def add(self, where: int | tuple[int, ...], stats: Stats) -> None:
        """Add the statistics of a layer, or of several, at a step; of these, the user's rows of the batch."""
        context = self.context
        step, batch = 0 if context.replaying else context.step, context.user_batch
        if batch != context.batch:
            own = slice(batch) if isinstance(where, int) else (slice(None), slice(batch))
            stats = Stats(*(None if part is None else part[own] for part in stats))
        if not context.replaying:
            self._steps[step][where] = stats
            return
        # The prompt's last row ran once more: it replaces the last row of the prefill. Layers that were
        # measured together then need not be the same as now.
        prompt = _by_layer(self._steps[step])
        for layer, last in _by_layer({where: stats}).items():
            pairs = zip(prompt[layer], last, strict=True)
            prompt[layer] = Stats(
                *(a if a is None or b is None else torch.cat([a[:, :, :-1], b], 2) for a, b in pairs)
            )
        self._steps[step] = prompt

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that were recorded."""
        found = (where for step in self._steps.values() for where in step)
        return tuple(sorted({layer for where in found for layer in _numbers(where)}))

    def collect(self, rows: _Rows) -> dict[str, Any]:
        """The fields of a `Trace` that belong to these layers."""
        layers, user = self.layers, slice(self.context.user_batch)
        hidden = self.context.hidden_columns  # padding that the user's prompts do not have
        columns = None if self.columns is None else (self.columns[user] - hidden).clamp_min(-1)
        return {
            "layers": layers,
            "slice_columns": columns,
            "tokens": None if self.keys is None else self.keys.rows(user, hidden),
            **{name: self._joined(name, parts, layers, rows) for name, parts in self._fetched().items()},
        }

    def _fetched(self) -> dict[str, list[_Parts]]:
        """Each requested statistic on the CPU: for every step, its parts."""
        steps = list(self._steps.values())
        example = next(iter(steps[0].values())) if steps else Stats()
        names = [name for name in STATISTICS if getattr(example, name) is not None]
        parts = [getattr(stats, name) for name in names for step in steps for stats in step.values()]
        fetched = iter(to_host(parts))
        return {
            name: [dict(zip(step, islice(fetched, len(step)), strict=True)) for step in steps]
            for name in names
        }

    def _joined(self, name: str, steps: list[_Parts], layers: tuple[int, ...], rows: _Rows) -> Tensor:
        """A statistic over layers and rows, [layers, B, Hq, N, ...]; 0 where a sample has no such row."""
        hidden = self.context.hidden_columns
        if whole_rows := name == "slices" and self.options.slices == "all":
            steps = _of_one_width(steps)
        joined = torch.cat([_stacked(parts, layers) for parts in steps], 3)[:, :, :, rows.kept]
        if whole_rows:
            joined = joined[..., hidden:]
        if name == "top_column":
            joined = (joined - hidden).clamp_min(0)
        if rows.active.all():
            return joined
        missing = ~rows.active[None, :, None]
        return joined.masked_fill(missing if joined.dim() == 4 else missing[..., None], 0)


#: A statistic at a step, by layer or by the layers that it is about.
_Parts = dict[int | tuple[int, ...], Tensor]


def _numbers(where: int | tuple[int, ...]) -> tuple[int, ...]:
    return (where,) if isinstance(where, int) else where


def _by_layer(parts: Mapping[int | tuple[int, ...], Stats]) -> dict[int | tuple[int, ...], Stats]:
    """The same with a layer for each key: what was measured together is taken apart."""
    found: dict[int | tuple[int, ...], Stats] = {}
    for where, stats in parts.items():
        if isinstance(where, int):
            found[where] = stats
            continue
        for place, layer in enumerate(where):
            found[layer] = Stats(*(None if part is None else part[place] for part in stats))
    return found


def _stacked(parts: _Parts, layers: tuple[int, ...]) -> Tensor:
    """The statistic of a step, [layers, ...]."""
    if len(parts) == 1 and layers in parts:
        return parts[layers]
    by_layer: dict[int, Tensor] = {}
    for where, part in parts.items():
        by_layer |= {where: part} if isinstance(where, int) else zip(where, part, strict=True)
    return torch.stack([by_layer[layer] for layer in layers])


def _of_one_width(steps: list[_Parts]) -> list[_Parts]:
    """Rows [..., Lk] with zeros after their last key: they grow with the cache, and caches differ in size."""
    width = max(part.shape[-1] for parts in steps for part in parts.values())
    pad = torch.nn.functional.pad
    return [
        {where: pad(part, (0, width - part.shape[-1])) for where, part in parts.items()} for parts in steps
    ]


def _described(context: Context) -> tuple[dict[str, Any], ...]:
    """The active interventions as plain JSON, the same before and after saving."""
    described = [callback.to_dict() for callback in context.callbacks if hasattr(callback, "to_dict")]
    return tuple(json.loads(json.dumps(described)))


def _header(model: Any, options: RecordOptions) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "versions": {
            "regaze": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "model": {"type": model.config.model_type, "name": compat.model_name(model)},
        "wanted": asdict(options),
    }
