"""What a record file must hold: the JSON header by type, and every tensor by dtype, shape and range.

Nothing is loaded before its declared shape is known to fit the header, and sizes in the header are never
larger than the tensors that belong to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from regaze.toolkit.prompts.token_map import Role

#: Version of the format, in the header.
FORMAT: Literal[2] = 2

Shape = tuple[int, ...]
Number = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(allow_inf_nan=False, ge=-1e4, le=1e4)]


def _ordered(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, upper, right, lower = box
    if right - left < 1e-4 or lower - upper < 1e-4:
        raise ValueError("the right and lower edge of a box come after the left and upper one")
    return box


Box = Annotated[tuple[Share, Share, Share, Share], AfterValidator(_ordered)]
#: (width, height) in pixels.
Pixels = Annotated[int, Field(ge=1, lt=2**31)]
Size = tuple[Pixels, Pixels]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class PictureHeader(_Checked):
    """A `Picture`."""

    size: Size
    seen: Size | None
    window: Box


class ViewHeader(_Checked):
    """A `View`; files of earlier versions have no `picture`."""

    grid: tuple[Number, Number]
    image: Number
    box: Box | None
    frame: Number | None
    picture: PictureHeader | None = None


class TraceHeader(_Checked):
    """What is no tensor in a `Trace`."""

    layers: list[Number]
    views: list[list[ViewHeader]] | None
    text: list[list[str]] | None
    interventions: list[dict[str, Any]]
    cross: TraceHeader | None


class FileHeader(_Checked):
    """The header of a file: that of the record, and its traces."""

    format: Literal[2]
    versions: dict[str, str]
    model: dict[str, str | None]
    wanted: dict[str, Any]
    traces: list[TraceHeader]


class SchemaError(ValueError):
    """A file differs from the format, in one line."""


def parse_header(text: str) -> FileHeader:
    """The header of a file. Raises SchemaError, which names the first wrong field."""
    found = re.search(r'"format"\s*:\s*(\d{1,9})\b', text)
    if found is not None and int(found[1]) != FORMAT:
        raise SchemaError(f"it has record format {found[1]}, this version reads {FORMAT}")
    try:
        return FileHeader.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the header"
        raise SchemaError(f"{place}: {first['msg']}") from None


#: Dtypes of tensors as safetensors names them.
_FLOAT, _INT, _IDS = ("F32",), ("I64",), ("I64", "I32")
_STATISTICS = {"entropy": _FLOAT, "top_weight": _FLOAT, "lse": _FLOAT, "top_column": _INT}
_TOKENS = {"tokens.roles": ("U8",), "tokens.image": ("I32",), "tokens.cell": ("I32",)}


def check_shapes(
    trace: TraceHeader, prefix: str, described: Mapping[str, tuple[str, Shape]], rows: Shape | None = None
) -> None:
    """Check dtypes and shapes of the tensors of a trace, and of its `cross`.

    Args:
        prefix: of their names. described: dtype and shape of every tensor in the file. rows: (B, N) of the
            trace that has this one as its `cross`.

    Raises:
        SchemaError: a tensor is missing, or has another dtype or shape.
    """
    check = _Shapes(prefix, described)
    if rows is None:
        batch, count = check("row_active", ("BOOL",), (None, None))
        check("row_position", _INT, (count,))
        check("row_step", _INT, (count,))
        check("input_ids", _IDS, (batch, None), optional=True)
        check("output_ids", _IDS, (None, None), optional=True)
        if not batch or not count:
            raise SchemaError(f"{prefix}row_active has no samples or no rows")
        rows = batch, count
    batch, count = rows
    size: tuple[int | None, ...] = (len(trace.layers), batch, check.heads(), count)
    for name, dtype in _STATISTICS.items():
        check(name, dtype, size, optional=True)
    check("masses", _FLOAT, (*size, len(Role)), optional=True)
    columns = check("slice_columns", _INT, (batch, None), optional=True)
    check("slices", _FLOAT, (*size, columns[1] if columns else None), optional=True)
    if trace.views is not None:
        length = check("tokens.roles", _TOKENS["tokens.roles"], (batch, None))[1]
        for name, dtype in _TOKENS.items():
            check(name, dtype, (batch, length))
        if len(trace.views) != batch:
            raise SchemaError(f"{prefix}views are of {len(trace.views)} samples instead of {batch}")
    if trace.text is not None and len(trace.text) != batch:
        raise SchemaError(f"{prefix}text is of {len(trace.text)} samples instead of {batch}")
    if trace.cross is not None:
        check_shapes(trace.cross, f"{prefix}cross.", described, rows)


class _Shapes:
    """Checks of the tensors whose names begin with a prefix."""

    def __init__(self, prefix: str, described: Mapping[str, tuple[str, Shape]]):
        self.prefix, self.described = prefix, described

    def __call__(
        self, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...], optional: bool = False
    ) -> Shape:
        """The shape of a tensor, () if it is absent; None in `shape` is any size."""
        found = self.described.get(self.prefix + name)
        if found is None:
            if optional:
                return ()
            raise SchemaError(f"tensor {self.prefix}{name} is missing")
        fits = len(found[1]) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, found[1], strict=True)
        )
        if found[0] not in dtypes or not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise SchemaError(
                f"tensor {self.prefix}{name} is {list(found[1])} {found[0]} instead of [{sizes}] {dtypes[0]}"
            )
        return found[1]

    def heads(self) -> int | None:
        """The number of heads, by the first statistic that is there."""
        for name in ("masses", *_STATISTICS, "slices"):
            shape = self.described.get(self.prefix + name, ("", ()))[1]
            if len(shape) > 2:
                return shape[2]
        return None


def check_values(trace: TraceHeader, prefix: str, tensor: Callable[[str], Tensor | None]) -> None:
    """Check the numbers that name steps, positions, columns, roles and cells; `tensor` gives one by its name.

    Raises:
        SchemaError: a number is out of range, or the cells of a view are not those of its grid.
    """

    def within(name: str, low: int, high: int) -> None:
        found = tensor(prefix + name)
        if found is None or not found.numel():
            return
        smallest, largest = int(found.min()), int(found.max())
        if smallest < low or largest >= high:
            raise SchemaError(
                f"tensor {prefix}{name} has numbers {smallest}..{largest}, not {low}..{high - 1}"
            )

    for name in ("row_position", "row_step", "top_column", "input_ids", "output_ids"):
        within(name, 0, 2**31)
    active = tensor(prefix + "row_active")
    if active is not None and int(active.view(torch.uint8).max()) > 1:
        raise SchemaError(f"tensor {prefix}row_active has values other than true and false")
    roles = tensor(prefix + "tokens.roles")
    length = 2**31 if roles is None else roles.shape[1]
    within("slice_columns", -1, length)
    within("tokens.roles", 0, len(Role))
    within("tokens.image", -1, 2**31 - 1)
    within("tokens.cell", -1, length)
    view, cell = tensor(prefix + "tokens.image"), tensor(prefix + "tokens.cell")
    if trace.views is not None and view is not None and cell is not None:
        for sample, views in enumerate(trace.views):
            _check_cells(views, view[sample], cell[sample], f"{prefix}views.{sample}")
    if trace.cross is not None:
        check_values(trace.cross, f"{prefix}cross.", tensor)


def _check_cells(views: list[ViewHeader], view: Tensor, cell: Tensor, place: str) -> None:
    """Every cell of a grid has one token."""
    if views and int(view.max()) >= len(views):
        raise SchemaError(f"{place} are {len(views)}, but tokens are of view {int(view.max())}")
    for number, header in enumerate(views):
        cells = cell[(view == number) & (cell >= 0)]
        rows, columns = header.grid
        if len(cells) != rows * columns or not torch.equal(
            cells.long().sort().values, torch.arange(len(cells))
        ):
            raise SchemaError(f"{place}.{number} has a grid of {rows} x {columns}, but {len(cells)} cells")
