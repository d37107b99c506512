"""What a file of directions must hold: a JSON header by type, and every tensor by dtype, shape and values.

Nothing is loaded before its declared shape is known to fit the header and the limits.
"""

from __future__ import annotations

import json
import math
import os
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regaze.errors import InputError
from regaze.reading import LARGE_BYTES, StrPath, byte_limit
from regaze.writing import replacing

FORMAT: Literal["regaze directions"] = "regaze directions"
VERSION: Literal[1] = 1

_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Size = Annotated[int, Field(ge=1, lt=2**31)]
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,63}$")]
_Text = Annotated[str, Field(max_length=100_000)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class ModelHeader(_Checked):
    """The model that the vectors were fitted on; `hash` is of its configuration and weights."""

    name: _Text
    hash: _Text
    layers: _Size
    width: _Size


class DataHeader(_Checked):
    """The pairs that were used; `images` are their names in order, so that a benchmark can tell its own."""

    source: _Text
    sha256: _Text
    pairs: _Count
    images: Annotated[list[_Text], Field(max_length=1_000_000)]


class TensorHeader(_Checked):
    """A tensor of the file.

    kind: "vectors" (the last dimension is a direction), "basis" (orthonormal rows [..., k, D]) or "scores"
    (how the vectors came about; they move nothing).
    """

    kind: Literal["vectors", "basis", "scores"]
    shape: Annotated[list[_Size], Field(min_length=1, max_length=4)]


class Header(_Checked):
    """The JSON header of a file; other entries are figures of the fit."""

    format: Literal["regaze directions"]
    version: Literal[1]
    method: _Name
    model: ModelHeader
    data: DataHeader
    settings: dict[_Name, Any]
    prompt: _Text
    dtype: _Text
    versions: dict[str, _Text]
    report: dict[str, Any]
    tensors: Annotated[dict[_Name, TensorHeader], Field(min_length=1, max_length=16)]


def write(path: StrPath, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a file in one step. Raises InputError where it cannot be written."""
    path = os.fspath(path)
    checked = Header.model_validate_json(json.dumps(header))
    try:
        with replacing(path) as partial:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                str(partial),
                {"regaze": checked.model_dump_json()},
            )
    except SafetensorError as error:
        raise InputError(f"{path} cannot be written: {_one_line(error)}") from None


def read(path: StrPath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file.

    Raises:
        InputError: the file cannot be read, is damaged or too large, or holds no directions.
    """
    path = os.fspath(path)
    name = f"directions file {path!r}"
    try:
        if not os.path.isfile(path):  # a pipe or a device has no end
            raise InputError(f"{name} is not there: fit one with `regaze fit`")
        if os.path.getsize(path) > byte_limit(LARGE_BYTES):
            raise InputError(f"{name} has more than {byte_limit(LARGE_BYTES)} bytes")
        with safe_open(path, "pt") as file:
            return _read(file)
    except InputError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the header"
        raise InputError(f"{name} is damaged: {_one_line(place)}: {_one_line(first['msg'])}") from None
    except (SafetensorError, OSError, RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is not a safetensors file: {_one_line(error)}") from None
    except ValueError as error:
        raise InputError(f"{name} is damaged: {_one_line(error)}") from None


def _read(file: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of an open file. Raises ValueError for what is none of ours."""
    metadata = file.metadata() or {}
    if "regaze" not in metadata:
        raise ValueError("its metadata has no entry 'regaze', so it is no file of directions")
    header = Header.model_validate_json(metadata["regaze"])
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if set(slices) != set(header.tensors):
        raise ValueError(f"it holds the tensors {sorted(slices)} instead of {sorted(header.tensors)}")
    for name, part in slices.items():
        want, have = header.tensors[name].shape, list(part.get_shape())
        if part.get_dtype() != "F32" or have != want:
            raise ValueError(f"tensor {name} is {have} {part.get_dtype()} instead of {want} F32")
        if math.prod(want) > byte_limit(LARGE_BYTES) // 4:
            raise ValueError(f"tensor {name} has {math.prod(want)} numbers")
    tensors = {name: file.get_tensor(name) for name in slices}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name} has numbers that are not finite")
        if header.tensors[name].kind == "basis":
            _check_basis(name, tensor)
    return header.model_dump(), tensors


def _check_basis(name: str, basis: Tensor) -> None:
    """Raise ValueError unless the rows [..., k, D] are orthonormal, or 0 at the end of a layer."""
    if basis.dim() < 2:
        raise ValueError(f"tensor {name} is no basis: it has one dimension")
    products = basis.double() @ basis.double().mT
    kept = products.diagonal(dim1=-2, dim2=-1).round()
    if not torch.allclose(products, torch.diag_embed(kept.clamp(0, 1)), atol=1e-4):
        raise ValueError(f"tensor {name} has rows that are not orthonormal")


def _one_line(error: object) -> str:
    """What an error says, without control characters and endless values of the file."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"
