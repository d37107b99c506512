"""Filling a `Record`: what takes part in the forwards of a `gaze.recording(...)` block."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from dataclasses import asdict
from itertools import pairwise
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from regaze.errors import RecordingError
from regaze.kernels import AttentionEdit, Channels, RowSelection, Stats, StatsRequest
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.record.record import FORMAT, STATISTICS, Record, Trace, Wanted
from regaze.version import __version__


class RecordingSession(Callback):
    """Takes part in the forwards of a `recording` block and fills its `Record`."""

    counts_steps: ClassVar[bool] = True
    records: ClassVar[bool] = True

    def __init__(self, wanted: Wanted, gaze: Any):
        self.wanted, self.gaze = wanted, gaze
        self.record = Record(_header(gaze, wanted))
        self._draft: _Draft | None = None

    def prepare(self, context: Context) -> None:
        self._close_draft()
        self._draft = _Draft(self.wanted, context)

    def on_step(self, context: Context, input_ids: Tensor | None) -> None:
        if self._draft is not None and context is self._draft.context:
            self._draft.begin_step(input_ids)
        elif context.step:
            raise RecordingError(
                "two generations are interleaved inside one recording; record them one after the other"
            )

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        assert self._draft is not None
        return self._draft.own.request(context.device, step) if self._wants(layer, step, context) else None

    def edit_cross(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        assert self._draft is not None
        return self._draft.cross.request(context.device, step) if self._wants(layer, step, context) else None

    def _wants(self, layer: int, step: int, context: Context) -> bool:
        layers, steps = self.wanted.layers, self.wanted.steps
        number = 0 if context.replaying else step
        return (layers is None or layer in layers) and (steps is None or number in steps)

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        if self._draft is not None:
            self._draft.own.add(layer, stats)

    def on_cross_stats(self, layer: int, stats: Stats, context: Context) -> None:
        if self._draft is not None:
            self._draft.cross.add(layer, stats)

    def note_answer(self, output_ids: Tensor) -> None:
        """The generated ids [B, T] of the generation that just ended, where the caller knows them.

        Beam search returns its best sequences in an order that is not that of the recorded rows: no use here.
        """
        if self._draft is not None and len(output_ids) == self._draft.context.user_batch:
            self._draft.answer = output_ids.cpu()

    def finish(self) -> None:
        """Close the last generation. Raises RecordingError when nothing ran."""
        self._close_draft()
        if not self.record.traces:
            raise RecordingError(
                "nothing was recorded: no prompt was run through the model inside gaze.recording(...)"
            )

    def _close_draft(self) -> None:
        draft, self._draft = self._draft, None
        if draft is not None:
            self.record.traces.append(draft.trace(self.gaze.reader.tokenizer))


class _Draft:
    """A trace being written: statistics stay on their device until the generation is over."""

    def __init__(self, wanted: Wanted, context: Context):
        self.wanted, self.context = wanted, context
        self.fed: list[Tensor] = []
        self.answer: Tensor | None = None
        self.rows: list[RowSelection] = []
        needs_roles = wanted.masses or wanted.slices == "image" or wanted.rows == "text"
        try:
            self.tokens: TokenMap | None = context.tokens
        except ValueError as error:
            if needs_roles:
                raise RecordingError(
                    f"masses, image slices and text rows need the roles of the tokens: {error}"
                ) from error
            self.tokens = None
        self.prefill = self._prefill_rows()
        self.own = _Layers(wanted, context, self.tokens, self.prefill)
        self._cross: _Layers | None = None
        if wanted.slices == "image" and self.own.columns is None and not context.has_cross_attention:
            raise RecordingError('slices="image" was asked for, but the prompt has no image')

    @property
    def cross(self) -> _Layers:
        """Of the cross-attention layers, whose keys are known when the first of them runs."""
        if self._cross is None:
            self._cross = _Layers(self.wanted, self.context, self.context.cross_tokens, self.prefill)
        return self._cross

    def _prefill_rows(self) -> RowSelection:
        length, last = self.context.prompt_length, self.wanted.rows
        if self.tokens is None:
            count = length if last == "all" else last if isinstance(last, int) else 1
            return RowSelection(torch.arange(max(0, length - count), length))
        real = ~self.tokens.mask(Role.PAD)
        if self.wanted.rows == "all":
            return RowSelection.where(real)
        if isinstance(last, int):
            return RowSelection.where(real & (real.flip(1).cumsum(1).flip(1) <= last))
        if self.wanted.rows == "text":
            rows = self.tokens.after_image()
            if not rows.any():
                raise RecordingError(
                    'rows="text" was asked for, but no text follows an image; use rows="all"'
                )
            return RowSelection.where(rows)
        return RowSelection.where(self.tokens.last())

    def begin_step(self, input_ids: Tensor | None) -> None:
        step = self.context.step
        if step and input_ids is not None:
            self.fed.append(input_ids)
        if self.wanted.steps is not None and step not in self.wanted.steps:
            return
        if step == 0:
            self.rows.append(self.prefill)
        else:
            count = 1 if input_ids is None else input_ids.shape[1]
            self.rows.append(RowSelection(torch.arange(count)))

    def trace(self, tokenizer: Any) -> Trace:
        """Everything on the CPU, stacked over layers and rows."""
        crossing = () if self._cross is None else tuple(self._cross.stats)
        missing = set(self.wanted.layers or ()) - {*self.own.stats, *crossing}
        if missing or not (self.own.stats or crossing):
            what = f"layers {sorted(missing)}" if missing else f"steps {self.wanted.steps}"
            raise RecordingError(f"{what} were asked for, but no attention ran there")
        position, step, active = self._row_index()
        user = slice(self.context.user_batch)
        input_ids = None if self.context.input_ids is None else self.context.input_ids[user].cpu()
        fed = torch.cat(self.fed, 1).cpu() if self.fed else None
        output_ids = self.answer if self.answer is not None else fed
        shared: dict[str, Any] = {
            "row_position": position,
            "row_step": step,
            "row_active": active,
            "input_ids": input_ids,
            "output_ids": output_ids,
            "text": _strings(tokenizer, input_ids, output_ids),
            "interventions": _described(self.context),
        }
        cross = None if self._cross is None else Trace(**self._cross.collected(), **shared)
        return Trace(**self.own.collected(), **shared, cross=cross)

    def _row_index(self) -> tuple[Tensor, Tensor, Tensor]:
        positions, steps, active = [], [], []
        batch, column = self.context.user_batch, self.context.prompt_length
        recorded = self.wanted.steps
        numbers = [s for s in range(self.context.step + 1) if recorded is None or s in recorded]
        for number, rows in zip(numbers, self.rows, strict=True):
            first = 0 if number == 0 else column + sum(f.shape[1] for f in self.fed[: number - 1])
            positions.append(rows.index + first)
            steps.append(torch.full_like(rows.index, number))
            all_rows = torch.ones(batch, len(rows.index), dtype=torch.bool)
            active.append(all_rows if rows.active is None else rows.active[:batch])
        return torch.cat(positions), torch.cat(steps), torch.cat(active, 1)


class _Layers:
    """What is asked of layers that look at the same keys, and what they gave.

    Args:
        keys: what the prompt's keys are, or None. prefill: the rows recorded there.
    """

    def __init__(self, wanted: Wanted, context: Context, keys: TokenMap | None, prefill: RowSelection):
        self.wanted, self.context, self.keys, self.prefill = wanted, context, keys, prefill
        self.stats: dict[int, list[Stats]] = defaultdict(list)
        self.columns = self._image_columns() if wanted.slices == "image" else None
        self._requests: dict[Any, AttentionEdit] = {}

    def _image_columns(self) -> Tensor | None:
        """[batch, n] of the keys that show an image, -1 where a sample has fewer; None without any."""
        assert self.keys is not None
        columns = [self.keys.columns(Role.IMAGE, sample) for sample in range(self.keys.batch)]
        if not any(len(c) for c in columns):
            return None
        return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=-1)

    def request(self, device: torch.device, step: int) -> AttentionEdit | None:
        """What to ask of a layer: the chosen rows at prefill, every row of the call afterwards."""
        key = (device, step == 0)
        if key not in self._requests:
            wanted, channels, rows = self.wanted, None, None
            if wanted.masses:
                assert self.keys is not None
                channels = Channels(groups=self.keys.roles.to(device), num_groups=len(Role))
            if step == 0:
                rows = self.prefill.to(device)
            request = StatsRequest(
                rows=rows,
                channels=channels,
                entropy=wanted.entropy,
                top1=wanted.top1,
                lse=wanted.lse,
                columns=None if self.columns is None else self.columns.to(device),
                full_rows=wanted.slices == "all",
                edited=wanted.edited,
            )
            self._requests[key] = AttentionEdit(stats=request)
        return self._requests[key]

    def add(self, layer: int, stats: Stats) -> None:
        """Keep the user's rows of what a layer did."""
        batch = self.context.user_batch
        stats = Stats(*(None if part is None else part[:batch] for part in stats))
        if self.context.replaying:  # the prompt's last row again: what the first token came from
            before = self.stats[layer][-1]
            pairs = zip(before, stats, strict=True)
            stats = Stats(
                *(a if a is None or b is None else torch.cat([a[:, :, :-1], b], 2) for a, b in pairs)
            )
            self.stats[layer][-1] = stats
        else:
            self.stats[layer].append(stats)

    def collected(self) -> dict[str, Any]:
        """The fields of a `Trace` that are of these layers."""
        layers, user = tuple(sorted(self.stats)), slice(self.context.user_batch)
        return {
            "layers": layers,
            "slice_columns": None if self.columns is None else self.columns[user],
            "tokens": None if self.keys is None else self.keys.rows(user),
            **{name: self._stack(name, layers) for name in STATISTICS},
        }

    def _stack(self, name: str, layers: tuple[int, ...]) -> Tensor | None:
        if not layers or getattr(self.stats[layers[0]][0], name) is None:
            return None
        per_layer = []
        for layer in layers:
            parts = [getattr(stats, name).detach().cpu() for stats in self.stats[layer]]
            if (
                name == "slices" and self.wanted.slices == "all"
            ):  # rows grow with the cache: pad to the last length
                width = max(part.shape[-1] for part in parts)
                parts = [torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts]
            per_layer.append(torch.cat(parts, 2))
        return torch.stack(per_layer)


def _described(context: Context) -> tuple[dict[str, Any], ...]:
    """The active interventions as plain JSON, the same before and after a file."""
    described = [p.to_dict() for p in context.callbacks if hasattr(p, "to_dict")]
    return tuple(json.loads(json.dumps(described)))


def _strings(
    tokenizer: Any, input_ids: Tensor | None, output_ids: Tensor | None
) -> tuple[tuple[str, ...], ...] | None:
    if tokenizer is None or input_ids is None:
        return None
    ids = input_ids if output_ids is None else torch.cat([input_ids, output_ids], 1)
    return tuple(tuple(_pieces(tokenizer, row)) for row in ids.tolist())


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token with the space before it, which decoding a token by itself may drop."""
    alone = tokenizer.batch_decode([[token] for token in ids])
    pairs = tokenizer.batch_decode([list(pair) for pair in pairwise(ids)])
    rest = [
        pair[len(first) :] if pair.startswith(first) else piece
        for first, pair, piece in zip(alone, pairs, alone[1:], strict=False)
    ]
    return alone[:1] + rest


def _header(gaze: Any, wanted: Wanted) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "versions": {
            "regaze": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "model": {"type": gaze.model.config.model_type, "name": compat.model_name(gaze.model)},
        "wanted": asdict(wanted),
    }
