"""`Record`: attention statistics of real generations, kept small, on the CPU, in fp32.

A record holds one `Trace` per generation (one prefill and its decode steps). Nothing in it is L x L: per
layer, head and recorded row it keeps the mass of each role, and on request the entropy, the strongest column,
the log-sum-exp and a slice of columns.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regaze.errors import BadParameterError, RecordingError, RegazeError
from regaze.toolkit.model import compat
from regaze.toolkit.prompts.token_map import TokenMap, View

FORMAT = 2
#: Statistics of a trace, named as in `Stats`.
STATISTICS = ("masses", "entropy", "top_weight", "top_column", "lse", "slices")


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
            image), "all", or a number: the last so many tokens of each prompt. Decode steps have one row.
        steps: step numbers (0 is the prefill); None for every step.
        edited: record the rows as edited; the default is the unedited row, which an intervention looks at.
    """

    masses: bool = True
    entropy: bool = False
    top1: bool = False
    lse: bool = False
    slices: Literal["image", "all"] | None = None
    layers: tuple[int, ...] | None = None
    rows: Literal["last", "text", "all"] | int = "last"
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
                try:
                    wanted[name] = tuple(sorted({int(number) for number in wanted[name]}))
                except (TypeError, ValueError):
                    raise RecordingError(f"{name} must be a list of numbers, got {wanted[name]!r}") from None
        result, count = cls(**wanted), compat.text_config(model).num_hidden_layers
        if result.slices not in (None, "image", "all"):
            raise RecordingError(f'slices must be "image", "all" or None, got {result.slices!r}')
        counted = isinstance(result.rows, int) and not isinstance(result.rows, bool) and result.rows >= 1
        if not counted and result.rows not in ("last", "text", "all"):
            raise RecordingError(f'rows must be "last", "text" or "all" or a number, got {result.rows!r}')
        outside = [layer for layer in result.layers or () if not 0 <= layer < count]
        if outside:
            raise RecordingError(
                f"layers {outside} do not exist: {type(model).__name__} has layers 0..{count - 1}"
            )
        if not (result.masses or result.entropy or result.top1 or result.lse or result.slices):
            raise RecordingError("nothing to record: ask for masses, entropy, top1, lse or slices")
        return result


@dataclass(frozen=True, eq=False, repr=False)
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
        text: per sample the pieces of text of the prompt's and the answer's tokens; None without a tokenizer.
        interventions: what was active, as `Intervention.to_dict()`.
        cross: the same rows in the cross-attention layers, whose keys (an image's, sound) are its `tokens`.
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
    cross: Trace | None = None

    def __repr__(self) -> str:
        held = {name: getattr(self, name) for name in STATISTICS if getattr(self, name) is not None}
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in held.items())
        return f"Trace(layers {list(self.layers)}, steps 0..{int(self.row_step.max())}: {shapes})"

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

    def row_of(self, token: int | str, sample: int = 0) -> int:
        """The row of an answer token (its number) or of a word, among the N recorded rows.

        A word is looked for in the answer, where the row that predicts its last token counts, and then in the
        prompt, where the row of its last token counts (record it with rows="text").

        Raises:
            BadParameterError: no such token, or the word's row was not recorded.
        """
        rows = self.answer_rows()
        if isinstance(token, int):
            if not 0 <= token < len(rows):
                raise BadParameterError(
                    f"answer token {token} was not recorded; the record has 0..{len(rows) - 1}"
                )
            return int(rows[token])
        found = _last_token_of(token, self.answer_text(sample))
        if found is not None:
            return int(rows[found])
        length = 0 if self.input_ids is None else self.input_ids.shape[1]
        found = _last_token_of(token, [] if self.text is None else self.text[sample][:length])
        if found is None:
            raise BadParameterError(f"the word {token!r} occurs neither in the answer nor in the question")
        here = ((self.row_position == found) & self.row_active[sample]).nonzero().flatten()
        if not len(here):
            raise BadParameterError(
                f'the row of {token!r} was not recorded; use gaze.recording(rows="text", ...)'
            )
        return int(here[0])

    def image_maps(self, sample: int = 0, view: int = 0) -> Tensor:
        """Slices as maps over the grid of a view (its number), [layers, Hq, N, rows, columns]."""
        if self.tokens is None or not self.tokens.grids[sample]:
            raise RecordingError("the record has no image grid, so its slices cannot be laid out as a map")
        slices, (rows, columns) = self.need("slices")[:, sample], self.tokens.grids[sample][view]
        wanted = self.tokens.image_cells(sample, view)
        if self.slice_columns is not None:  # slices hold image columns only: find each cell among them
            held = self.slice_columns[sample]
            wanted = torch.tensor([int((held == place).nonzero()[0]) for place in wanted])
        return slices[..., wanted].unflatten(-1, (rows, columns))


def _last_token_of(word: str, tokens: Sequence[str]) -> int | None:
    """Number of the token in which the last occurrence of `word`, as whole words in any case, ends."""
    ends = list(accumulate(len(token) for token in tokens))
    pattern = r"\s+".join(map(re.escape, word.split()))
    # A boundary is wanted only beside a letter or digit: "?" follows a word at once.
    before, after = (r"(?<!\w)" if word[:1].isalnum() else ""), (r"(?!\w)" if word[-1:].isalnum() else "")
    found = list(re.finditer(before + pattern + after, "".join(tokens), re.IGNORECASE)) if pattern else []
    return bisect_left(ends, found[-1].end()) if found else None


@dataclass(eq=False, repr=False)
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
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise RecordingError(f"there is no trace {index}: the record has {len(self)}, numbered from 0")
        return self.traces[index]

    def __iter__(self) -> Iterator[Trace]:
        return iter(self.traces)

    def __repr__(self) -> str:
        count = f"{len(self.traces)} trace" + ("" if len(self.traces) == 1 else "s")
        return "\n".join([f"Record: {count}", *(f"  {trace!r}" for trace in self.traces)])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file whose metadata is the JSON header.

        Raises:
            RecordingError: the file cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        traces = [_packed(trace, f"{number}.", tensors) for number, trace in enumerate(self.traces)]
        header = {"regaze": json.dumps({**self.header, "traces": traces})}
        try:
            save_file(tensors, str(path), header)
        except (OSError, SafetensorError) as error:
            raise RecordingError(f"cannot write the record to {str(path)!r}: {error}") from None

    def to_html(
        self,
        path: str | Path | None = None,
        *,
        images: Sequence[Any] | None = None,
        edited: Record | None = None,
        trace: int = 0,
        sample: int = 0,
        title: str | None = None,
        limit: int | None = None,
    ) -> str:
        """A page of one sample, to explore in a browser: a whole HTML file that needs nothing else.

        Args:
            path: where to write it, too.
            images: the pictures as the model saw them (`gaze.seen(image)`), one per image of the sample;
                without them the maps are drawn on nothing.
            edited: a record of the same tokens, rows and layers under an intervention, to compare with
                (`regaze.toolkit.viewer.look` makes both).
            trace: which generation. sample: which row of its batch.
            title: default: the question.
            limit: bytes of the page, 8,000,000 by default; docs/viewer.md says what is left out beyond it.

        Raises:
            RecordingError: neither slices nor masses were recorded. InputError: `path` cannot be written.
                BadParameterError, InputError: as `regaze.toolkit.viewer.build`.
        """
        from regaze.toolkit import viewer  # imports this module

        given = {"images": images, "title": title, "sample": sample, "limit": limit or viewer.LIMIT}
        page = viewer.of_records(self, edited, trace, **given)
        if path is not None:
            page.save(path)
        return page.html

    def _repr_html_(self) -> str | None:
        """The first sample's page in a frame, for notebooks; None (the plain repr) where there is no page."""
        from regaze.toolkit import viewer

        try:
            return viewer.of_records(self, limit=viewer.NOTEBOOK_LIMIT)._repr_html_()
        except RegazeError:
            return None

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
            [_unpacked(trace, f"{number}.", tensors) for number, trace in enumerate(header["traces"])],
        )


def _view(description: dict[str, Any]) -> View:
    box = description["box"]
    return View(
        tuple(description["grid"]),
        description["image"],
        None if box is None else tuple(box),
        description["frame"],
    )


#: Tensors of a trace that are of its layers, and those that it shares with its `cross`.
_OWN = (*STATISTICS, "slice_columns")
_SHARED = ("row_position", "row_step", "row_active", "input_ids", "output_ids")
#: Tensors of a `TokenMap`: the name in the file, and the attribute.
_TOKENS = {"roles": "roles", "image": "view", "cell": "cell"}


def _packed(
    trace: Trace, prefix: str, tensors: dict[str, Tensor], names: tuple[str, ...] = _OWN + _SHARED
) -> dict[str, Any]:
    """A trace as plain JSON; its tensors are put into `tensors` under names that begin with `prefix`."""
    for name in names:
        tensor = getattr(trace, name)
        if tensor is not None:
            tensors[prefix + name] = tensor.contiguous()
    views = None
    if trace.tokens is not None:
        for name, attribute in _TOKENS.items():
            tensors[f"{prefix}tokens.{name}"] = getattr(trace.tokens, attribute).contiguous()
        views = [[asdict(view) for view in sample] for sample in trace.tokens.views]
    return {
        "layers": trace.layers,
        "views": views,
        "text": trace.text,
        "interventions": trace.interventions,
        "cross": None if trace.cross is None else _packed(trace.cross, f"{prefix}cross.", tensors, _OWN),
    }


def _unpacked(
    description: dict[str, Any],
    prefix: str,
    tensors: dict[str, Tensor],
    shared: dict[str, Tensor] | None = None,
) -> Trace:
    """The trace that `_packed` packed; that of cross-attention is given what it shares."""
    tokens = None
    if shared is None:
        shared = {name: tensors[prefix + name] for name in _SHARED if prefix + name in tensors}
    if description["views"] is not None:
        views = tuple(tuple(_view(view) for view in sample) for sample in description["views"])
        parts = {attribute: tensors[f"{prefix}tokens.{name}"] for name, attribute in _TOKENS.items()}
        tokens = TokenMap(**parts, views=views)
    text, cross = description["text"], description["cross"]
    return Trace(
        layers=tuple(description["layers"]),
        tokens=tokens,
        text=None if text is None else tuple(tuple(sample) for sample in text),
        interventions=tuple(description["interventions"]),
        cross=None if cross is None else _unpacked(cross, f"{prefix}cross.", tensors, shared),
        **shared,
        **{name: tensors[prefix + name] for name in _OWN if prefix + name in tensors},
    )
