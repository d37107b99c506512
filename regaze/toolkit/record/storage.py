"""The file of a record: a safetensors file with one tensor per field, whose metadata is a JSON header.

The tensors of trace i are named "i.masses", "i.tokens.roles", "i.cross.masses" and so on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regaze.errors import RecordingError
from regaze.toolkit.prompts.token_map import TokenMap, View
from regaze.toolkit.record.trace import STATISTICS, Trace

#: Version of the format, in the header.
FORMAT = 2
#: Fields of a trace that are tensors: those of its own layers, and those that its `cross` has in common.
_OWN = (*STATISTICS, "slice_columns")
_COMMON = ("row_position", "row_step", "row_active", "input_ids", "output_ids")
#: Tensors of a `TokenMap`: the name in the file, and the field.
_TOKENS = {"roles": "roles", "image": "view", "cell": "cell"}


def write(path: str | Path, header: dict[str, Any], traces: Sequence[Trace]) -> None:
    """Write a file. Raises RecordingError where it cannot be written."""
    tensors: dict[str, Tensor] = {}
    described = [_describe(trace, f"{number}.", tensors) for number, trace in enumerate(traces)]
    try:
        save_file(tensors, str(path), {"regaze": json.dumps({**header, "traces": described})})
    except (OSError, SafetensorError) as error:
        raise RecordingError(f"cannot write the record to {str(path)!r}: {error}") from None


def read(path: str | Path) -> tuple[dict[str, Any], list[Trace]]:
    """Header and traces of a file. Raises RecordingError where it is not a record of this format."""
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
    described = header.pop("traces")
    return header, [_trace(entry, f"{number}.", tensors) for number, entry in enumerate(described)]


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
    description: dict[str, Any],
    prefix: str,
    tensors: dict[str, Tensor],
    common: dict[str, Tensor] | None = None,
) -> Trace:
    """The trace that `_describe` described; a `cross` is given the tensors in `common`."""
    if common is None:
        common = {name: tensors[prefix + name] for name in _COMMON if prefix + name in tensors}
    tokens = None
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
        cross=None if cross is None else _trace(cross, f"{prefix}cross.", tensors, common),
        **common,
        **{name: tensors[prefix + name] for name in _OWN if prefix + name in tensors},
    )


def _view(description: dict[str, Any]) -> View:
    box = description["box"]
    return View(
        tuple(description["grid"]),
        description["image"],
        None if box is None else tuple(box),
        description["frame"],
    )
