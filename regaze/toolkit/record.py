"""`Record`: attention statistics of real generations, kept small, on the CPU, in fp32.

A record holds one `Trace` per generation (one prefill and its decode steps). Nothing in it is L x L: per
layer, head and recorded row it keeps the mass of each role, and on request the entropy, the strongest column,
the log-sum-exp and a slice of columns.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from regaze.errors import RecordingError
from regaze.kernels import AttentionEdit, Channels, Rows, Stats, StatsRequest
from regaze.toolkit import compat
from regaze.toolkit.context import Context
from regaze.toolkit.tokens import Role, TokenMap

FORMAT = 1
_TENSORS = ("masses", "entropy", "top_weight", "top_column", "lse", "slices")


@dataclass(frozen=True)
class Wanted:
    """What to record.

    Attributes:
        masses: attention mass by role (needs roles).
        entropy: entropy of the row in nats.
        top1: strongest column and its weight.
        lse: log-sum-exp of the scores.
        slices: the weights of the image columns ("image"), of all columns ("all"), or None.
        layers: layer numbers; None for every layer.
        rows: prefill rows: "last" (the one that predicts the first answer token), "text" (all text after the
            image), "all". Decode steps have one row.
        steps: step numbers (0 is the prefill); None for every step.
        edited: record the rows as edited; the default is the unedited row, which an intervention looks at.
    """

    masses: bool = True
    entropy: bool = False
    top1: bool = False
    lse: bool = False
    slices: Literal["image", "all"] | None = None
    layers: tuple[int, ...] | None = None
    rows: Literal["last", "text", "all"] = "last"
    steps: tuple[int, ...] | None = None
    edited: bool = False

    @classmethod
    def checked(cls, model: Any, **wanted: Any) -> Wanted:
        """Build and validate against the model. Raises RecordingError for what cannot be recorded."""
        unknown = set(wanted) - set(cls.__dataclass_fields__)
        if unknown:
            raise RecordingError(
                f"cannot record {', '.join(sorted(unknown))}; "
                f"choose from {', '.join(cls.__dataclass_fields__)}"
            )
        for name in ("layers", "steps"):
            if wanted.get(name) is not None:
                wanted[name] = tuple(sorted({int(number) for number in wanted[name]}))
        result, count = cls(**wanted), compat.text_config(model).num_hidden_layers
        if result.slices not in (None, "image", "all"):
            raise RecordingError(f'slices must be "image", "all" or None, got {result.slices!r}')
        if result.rows not in ("last", "text", "all"):
            raise RecordingError(f'rows must be "last", "text" or "all", got {result.rows!r}')
        outside = [layer for layer in result.layers or () if not 0 <= layer < count]
        if outside:
            raise RecordingError(
                f"layers {outside} do not exist: {type(model).__name__} has layers 0..{count - 1}"
            )
        if not (result.masses or result.entropy or result.top1 or result.lse or result.slices):
            raise RecordingError("nothing to record: ask for masses, entropy, top1, lse or slices")
        return result


@dataclass(frozen=True, eq=False)
class Trace:
    """What was recorded of one generation. N counts rows: the prefill rows, then one per decode step.

    Attributes:
        layers: the layers recorded, in order; the first dimension of every statistic.
        masses: [layers, B, Hq, N, 7] by `Role`. entropy, lse, top_weight, top_column: [layers, B, Hq, N].
        slices: [layers, B, Hq, N, n] weights of `slice_columns` [B, n] (-1: a sample with fewer), or of all
            columns.
        row_position: [N] column of the token whose row it is. row_step: [N] its step. row_active: [B, N]
            whether the sample has it.
        input_ids: [B, L] of the prompt. output_ids: [B, T] of the answer as far as it is known.
        tokens: roles of the prompt, or None when they are not known.
        text: per sample the strings of the prompt's and the answer's tokens, or None without a tokenizer.
        interventions: what was active, as `Intervention.to_dict()`.
    """

    layers: tuple[int, ...]
    row_position: Tensor
    row_step: Tensor
    row_active: Tensor
    masses: Tensor | None = None
    entropy: Tensor | None = None
    top_weight: Tensor | None = None
    top_column: Tensor | None = None
    lse: Tensor | None = None
    slices: Tensor | None = None
    slice_columns: Tensor | None = None
    input_ids: Tensor | None = None
    output_ids: Tensor | None = None
    tokens: TokenMap | None = None
    text: tuple[tuple[str, ...], ...] | None = None
    interventions: tuple[dict[str, Any], ...] = ()

    def need(self, name: str) -> Tensor:
        """A statistic, or RecordingError saying how to record it."""
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            how = (
                'slices="image"'
                if name == "slices"
                else "top1=True"
                if name.startswith("top")
                else f"{name}=True"
            )
            raise RecordingError(f"{name} was not recorded; use gaze.recording({how}, ...)")
        return tensor

    def answer_rows(self) -> Tensor:
        """[T] rows that predict the answer's tokens 0, 1, ...: the last prefill row and each decode row."""
        last = int((self.row_step == 0).nonzero()[-1]) if bool((self.row_step == 0).any()) else 0
        return torch.arange(last, len(self.row_step))

    def answer_text(self, sample: int = 0) -> list[str]:
        """Strings of the answer's tokens, one per answer row ("" where the record does not know it)."""
        count, length = len(self.answer_rows()), self.input_ids.shape[1] if self.input_ids is not None else 0
        known = list(self.text[sample][length:]) if self.text is not None else []
        return (known + [""] * count)[:count]

    def image_maps(self, sample: int = 0, image: int = 0) -> Tensor:
        """Slices as maps over an image's grid, [layers, Hq, N, rows, columns]."""
        if self.tokens is None or not self.tokens.grids[sample]:
            raise RecordingError("the record has no image grid, so its slices cannot be laid out as a map")
        slices, (rows, columns) = self.need("slices")[:, sample], self.tokens.grids[sample][image]
        wanted = self.tokens.image_cells(sample, image)
        if self.slice_columns is not None:  # slices hold image columns only: find each cell among them
            held = self.slice_columns[sample]
            wanted = torch.tensor([int((held == place).nonzero()[0]) for place in wanted])
        return slices[..., wanted].unflatten(-1, (rows, columns))


@dataclass(eq=False)
class Record(Sequence[Trace]):
    """The traces of a `recording` block, in order, and where they came from.

    Attributes:
        traces: one per generation. header: versions, model and what was wanted.
    """

    header: dict[str, Any]
    traces: list[Trace] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, index: Any) -> Any:
        if not self.traces:
            raise RecordingError(
                "nothing is recorded yet: run the model inside the block and read the record after it"
            )
        return self.traces[index]

    def __iter__(self) -> Iterator[Trace]:
        return iter(self.traces)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file whose metadata is the JSON header."""
        tensors: dict[str, Tensor] = {}
        descriptions = []
        for number, trace in enumerate(self.traces):
            for name in (
                *_TENSORS,
                "slice_columns",
                "row_position",
                "row_step",
                "row_active",
                "input_ids",
                "output_ids",
            ):
                tensor = getattr(trace, name)
                if tensor is not None:
                    tensors[f"{number}.{name}"] = tensor.contiguous()
            if trace.tokens is not None:
                for name in ("roles", "image", "cell"):
                    tensors[f"{number}.tokens.{name}"] = getattr(trace.tokens, name).contiguous()
            grids = None if trace.tokens is None else trace.tokens.grids
            descriptions.append(
                {
                    "layers": trace.layers,
                    "grids": grids,
                    "text": trace.text,
                    "interventions": trace.interventions,
                }
            )
        save_file(tensors, str(path), {"regaze": json.dumps({**self.header, "traces": descriptions})})

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a file written by `save`. Raises RecordingError when it is not one."""
        try:
            with safe_open(str(path), "pt") as file:
                header = json.loads((file.metadata() or {})["regaze"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            raise RecordingError(f"{str(path)!r} is not a regaze record: {error}") from None
        except Exception as error:  # safetensors' own error type has no public base
            raise RecordingError(f"{str(path)!r} is not a safetensors file: {error}") from None
        if header.get("format") != FORMAT:
            raise RecordingError(
                f"{str(path)!r} has record format {header.get('format')}, this version reads {FORMAT}"
            )
        return cls(
            {k: v for k, v in header.items() if k != "traces"},
            [_trace(number, description, tensors) for number, description in enumerate(header["traces"])],
        )


def _trace(number: int, description: dict[str, Any], tensors: dict[str, Tensor]) -> Trace:
    prefix = f"{number}."
    own = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    tokens = None
    if "tokens.roles" in own:
        grids = tuple(tuple((r, c) for r, c in sample) for sample in description["grids"])
        roles, image, cell = (own.pop(f"tokens.{name}") for name in ("roles", "image", "cell"))
        tokens = TokenMap(roles, image, cell, grids)
    text = None if description["text"] is None else tuple(tuple(sample) for sample in description["text"])
    return Trace(
        layers=tuple(description["layers"]),
        tokens=tokens,
        text=text,
        interventions=tuple(description["interventions"]),
        **own,
    )


class RecordingSession:
    """Takes part in the forwards of a `recording` block and fills its `Record`."""

    uses_hidden_states: ClassVar[bool] = False

    def __init__(self, wanted: Wanted, gaze: Any):
        self.wanted, self.gaze = wanted, gaze
        self.record = Record(_header(gaze, wanted))
        self._draft: _Draft | None = None

    def prepare(self, context: Context) -> None:
        self._close_draft()
        self._draft = _Draft(self.wanted, context)

    def begin_step(self, context: Context, input_ids: Tensor | None) -> None:
        if self._draft is not None and context is self._draft.context:
            self._draft.begin_step(input_ids)
        elif context.step:
            raise RecordingError(
                "two generations are interleaved inside one recording; record them one after the other"
            )

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        wanted = self.wanted
        if (wanted.layers is not None and layer not in wanted.layers) or (
            wanted.steps is not None and step not in wanted.steps
        ):
            return None
        assert self._draft is not None
        return self._draft.request(context.device, step)

    def deliver(self, layer: int, stats: Stats) -> None:
        if self._draft is not None:
            self._draft.stats[layer].append(stats)

    def note_answer(self, output_ids: Tensor) -> None:
        """The generated ids [B, T] of the generation that just ended, where the caller knows them."""
        if self._draft is not None:
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
        self.stats: dict[int, list[Stats]] = defaultdict(list)
        self.fed: list[Tensor] = []
        self.answer: Tensor | None = None
        self.rows: list[Rows] = []
        self._requests: dict[Any, AttentionEdit] = {}
        needs_roles = wanted.masses or wanted.slices == "image" or wanted.rows == "text"
        try:
            self.tokens: TokenMap | None = context.tokens
        except ValueError as error:
            if needs_roles:
                raise RecordingError(
                    f"masses, image slices and text rows need the roles of the tokens: {error}"
                ) from error
            self.tokens = None
        self.columns = self._image_columns() if wanted.slices == "image" else None
        self.prefill = self._prefill_rows()

    def _image_columns(self) -> Tensor:
        assert self.tokens is not None
        columns = [self.tokens.columns(Role.IMAGE, sample) for sample in range(self.tokens.batch)]
        if not any(len(c) for c in columns):
            raise RecordingError('slices="image" was asked for, but the prompt has no image')
        return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=-1)

    def _prefill_rows(self) -> Rows:
        length, batch = self.context.prompt_length, self.context.batch
        if self.tokens is None:
            return Rows(torch.arange(length) if self.wanted.rows == "all" else torch.tensor([length - 1]))
        real = ~self.tokens.mask(Role.PAD)
        if self.wanted.rows == "all":
            return Rows.where(real)
        if self.wanted.rows == "text":
            rows = self.tokens.after_image()
            if not rows.any():
                raise RecordingError(
                    'rows="text" was asked for, but no text follows an image; use rows="all"'
                )
            return Rows.where(rows)
        last = torch.zeros(batch, length, dtype=torch.bool)
        last[torch.arange(batch), length - 1 - real.flip(1).int().argmax(1)] = True
        return Rows.where(last)

    def request(self, device: torch.device, step: int) -> AttentionEdit:
        """What to ask of a layer: the chosen rows at prefill, every row of the call afterwards."""
        key = (device, step == 0)
        if key not in self._requests:
            wanted, channels, rows = self.wanted, None, None
            if wanted.masses:
                assert self.tokens is not None
                channels = Channels(groups=self.tokens.roles.to(device), num_groups=len(Role))
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
            self.rows.append(Rows(torch.arange(count)))

    def trace(self, tokenizer: Any) -> Trace:
        """Everything on the CPU, stacked over layers and rows."""
        layers = tuple(sorted(self.stats))
        missing = set(self.wanted.layers or ()) - set(layers)
        if missing or not layers:
            what = f"layers {sorted(missing)}" if missing else f"steps {self.wanted.steps}"
            raise RecordingError(f"{what} were asked for, but no attention ran there")
        position, step, active = self._row_index()
        statistics = {name: self._stack(name, layers) for name in _TENSORS}
        fed = torch.cat(self.fed, 1).cpu() if self.fed else None
        output_ids = self.answer if self.answer is not None else fed
        return Trace(
            layers=layers,
            row_position=position,
            row_step=step,
            row_active=active,
            slice_columns=self.columns,
            input_ids=None if self.context.input_ids is None else self.context.input_ids.cpu(),
            output_ids=output_ids,
            tokens=self.tokens,
            text=_strings(tokenizer, self.context.input_ids, output_ids),
            interventions=_described(self.context),
            **statistics,
        )

    def _stack(self, name: str, layers: tuple[int, ...]) -> Tensor | None:
        if getattr(self.stats[layers[0]][0], name) is None:
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

    def _row_index(self) -> tuple[Tensor, Tensor, Tensor]:
        positions, steps, active = [], [], []
        batch, column = self.context.batch, self.context.prompt_length
        recorded = self.wanted.steps
        numbers = [s for s in range(self.context.step + 1) if recorded is None or s in recorded]
        for number, rows in zip(numbers, self.rows, strict=True):
            first = 0 if number == 0 else column + sum(f.shape[1] for f in self.fed[: number - 1])
            positions.append(rows.index + first)
            steps.append(torch.full_like(rows.index, number))
            all_rows = torch.ones(batch, len(rows.index), dtype=torch.bool)
            active.append(all_rows if rows.active is None else rows.active)
        return torch.cat(positions), torch.cat(steps), torch.cat(active, 1)


def _described(context: Context) -> tuple[dict[str, Any], ...]:
    """The active interventions as plain JSON, the same before and after a file."""
    described = [p.to_dict() for p in context.participants if hasattr(p, "to_dict")]
    return tuple(json.loads(json.dumps(described)))


def _strings(
    tokenizer: Any, input_ids: Tensor | None, output_ids: Tensor | None
) -> tuple[tuple[str, ...], ...] | None:
    if tokenizer is None or input_ids is None:
        return None
    ids = input_ids.cpu() if output_ids is None else torch.cat([input_ids.cpu(), output_ids], 1)
    return tuple(tuple(tokenizer.batch_decode([[token] for token in row])) for row in ids.tolist())


def _header(gaze: Any, wanted: Wanted) -> dict[str, Any]:
    import regaze  # the version lives at the top of the package

    return {
        "format": FORMAT,
        "versions": {
            "regaze": regaze.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "model": {"type": gaze.model.config.model_type, "name": gaze.model.config._name_or_path},
        "wanted": asdict(wanted),
    }
