"""The file of a record: a safetensors file with one tensor per field, whose metadata is a JSON header.

The tensors of trace i are named "i.masses", "i.tokens.roles", "i.cross.masses" and so on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regaze.errors import InputError, RecordingError
from regaze.reading import MAX_BYTES, StrPath, byte_limit, open_regular
from regaze.toolkit.prompts.picture import Picture
from regaze.toolkit.prompts.token_map import TokenMap, View
from regaze.toolkit.record.schema import (
    SchemaError,
    TraceHeader,
    ViewHeader,
    check_shapes,
    check_values,
    parse_header,
)
from regaze.toolkit.record.trace import STATISTICS, Trace
from regaze.writing import replacing

#: Bytes of a file, which are about those of its tensors in memory.
RECORD_BYTES = 4 * 2**30
#: Fields of a trace that are tensors: those of its own layers, and those that its `cross` has in common.
_OWN = (*STATISTICS, "slice_columns")
_COMMON = ("row_position", "row_step", "row_active", "input_ids", "output_ids")
#: Tensors of a `TokenMap`: the name in the file, and the field.
_TOKENS = {"roles": "roles", "image": "view", "cell": "cell"}


def write(path: StrPath, header: dict[str, Any], traces: Sequence[Trace]) -> None:
    """Write a file. Raises RecordingError where it cannot be written."""
    path = os.fspath(path)
    tensors: dict[str, Tensor] = {}
    described = [_describe(trace, f"{number}.", tensors) for number, trace in enumerate(traces)]
    try:
        with replacing(path) as partial:
            save_file(tensors, str(partial), {"regaze": json.dumps({**header, "traces": described})})
    except (InputError, SafetensorError) as error:
        raise RecordingError(f"cannot write the record to {path!r}: {error}") from None


def read(path: StrPath) -> tuple[dict[str, Any], list[Trace]]:
    """Header and traces of a file, checked by `schema`.

    Raises:
        RecordingError: the file cannot be read, is damaged, or is no record of this format.
    """
    path = os.fspath(path)
    name = repr(path)
    try:
        if not os.path.isfile(path):  # a pipe or a device has no end
            raise RecordingError(f"{name} is not a file")
        _check_size(path)
        with safe_open(path, "pt") as file:
            return _read(file)
    except (SafetensorError, OSError, RuntimeError, UnicodeDecodeError) as error:
        raise RecordingError(f"{name} is not a safetensors file: {_one_line(error)}") from None
    except InputError as error:
        raise RecordingError(_one_line(error)) from None
    except ValueError as error:
        raise RecordingError(f"{name} is not a regaze record: {_one_line(error)}") from None


def _check_size(path: str) -> None:
    """Raise RecordingError for more bytes of tensors or header than may be held, before anything is."""
    with open_regular(path) as file:
        header = int.from_bytes(file.read(8), "little")
    sizes = (("", os.path.getsize(path), RECORD_BYTES), (" in its header", header, MAX_BYTES))
    for what, size, limit in sizes:
        allowed = byte_limit(limit)
        if size > allowed:
            raise RecordingError(
                f"{path!r} has more than {allowed} bytes{what}; set REGAZE_MAX_BYTES to read more"
            )


def _one_line(error: Exception) -> str:
    """What an error says, without control characters and endless values of the file."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"


def _read(file: Any) -> tuple[dict[str, Any], list[Trace]]:
    """Header and traces of an open file. Raises ValueError for what is no record."""
    metadata = file.metadata() or {}
    if "regaze" not in metadata:
        raise SchemaError("its metadata has no entry 'regaze'")
    header = parse_header(metadata["regaze"])
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    described = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    for number, trace in enumerate(header.traces):
        check_shapes(trace, f"{number}.", described)
    tensors = {name: file.get_tensor(name) for name in slices}
    for number, trace in enumerate(header.traces):
        check_values(trace, f"{number}.", tensors.get)
    traces = [_trace(trace, f"{number}.", tensors) for number, trace in enumerate(header.traces)]
    return header.model_dump(exclude={"traces"}), traces


def _describe(
    trace: Trace, prefix: str, tensors: dict[str, Tensor], names: tuple[str, ...] = _OWN + _COMMON
) -> dict[str, Any]:
    """A trace as plain JSON; its tensors are added to `tensors` under names that begin with `prefix`."""
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
        "cross": None if trace.cross is None else _describe(trace.cross, f"{prefix}cross.", tensors, _OWN),
    }


def _trace(
    header: TraceHeader, prefix: str, tensors: dict[str, Tensor], common: dict[str, Tensor] | None = None
) -> Trace:
    """The trace that `_describe` described; a `cross` is given the tensors in `common`."""
    if common is None:
        common = {name: tensors[prefix + name] for name in _COMMON if prefix + name in tensors}
    tokens = None
    if header.views is not None:
        views = tuple(tuple(_view(view) for view in sample) for sample in header.views)
        parts = {attribute: tensors[f"{prefix}tokens.{name}"] for name, attribute in _TOKENS.items()}
        tokens = TokenMap(**parts, views=views)
    return Trace(
        layers=tuple(header.layers),
        tokens=tokens,
        text=None if header.text is None else tuple(map(tuple, header.text)),
        interventions=tuple(header.interventions),
        cross=None if header.cross is None else _trace(header.cross, f"{prefix}cross.", tensors, common),
        **common,
        **{name: tensors[prefix + name] for name in _OWN if prefix + name in tensors},
    )


def _view(header: ViewHeader) -> View:
    known = header.picture
    picture = None if known is None else Picture(known.size, known.seen, known.window)
    return View(header.grid, header.image, header.box, header.frame, picture)
