"""One map of an image that a model sees as several views: tiles put together, and an overview."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from regaze.errors import BadParameterError, RecordingError
from regaze.toolkit.analysis.selection import check_choice
from regaze.toolkit.prompts.picture import WHOLE, Shares, within
from regaze.toolkit.prompts.token_map import TokenMap, View, boxes_on

#: What a map of an image in several views shows. "sum": at each point the weights of all tokens that show it,
#: whatever their view, added up; "mean": their mean; "tiles" or "overview": those of the tiles, or of the
#: view of the whole image, alone; "apart": both, side by side. Where an image has no tiles, or no overview,
#: these three show what there is.
Views = Literal["sum", "mean", "tiles", "overview", "apart"]

#: Samples per cell, along each side, where views with different grids are drawn into one map.
_OVERSAMPLING = 4
#: How far a view may fall short of the whole image on each side, as a share of it, and still be an overview.
_WHOLE = 0.02


class Part(NamedTuple):
    """A view, and a number for each of its cells, [rows, columns]."""

    view: View
    cells: np.ndarray


class Panel(NamedTuple):
    """The views that one map shows, and what their numbers are called."""

    parts: list[Part]
    label: str


def read_parts(
    tokens: TokenMap | None, sample: int, image: int, cells_of: Callable[[int], np.ndarray]
) -> list[Part]:
    """The views that show a known part of an image, with the numbers that `cells_of` has of each.

    Args:
        cells_of: from the number of a view to [rows, columns].

    Raises:
        RecordingError: the places of the image's tokens are not known. BadParameterError: no such image.
    """
    views = () if tokens is None else tokens.views[sample]
    if not views:
        raise RecordingError("the record has no image grid, so its slices cannot be laid out as a map")
    image = check_choice("image", image, range(1 + max(view.image for view in views)))
    placed = [
        (place, view)
        for place, view in enumerate(views)
        if view.image == image and view.box is not None and all(view.grid)
    ]
    if not placed:
        raise RecordingError(
            f"it is not known which part of image {image} each of its tokens shows, so there is no map; "
            "masses by role need none"
        )
    return [Part(view, cells_of(place)) for place, view in placed]


def panels_of(parts: list[Part], views: Views, what: str) -> list[Panel]:
    """The maps of an image, one or two.

    Args:
        what: the name of the numbers.

    Raises:
        BadParameterError: another word than those of `Views`.
    """
    if views not in get_args(Views):
        raise BadParameterError(f"views must be one of {', '.join(get_args(Views))}, got {views!r}")
    tiles, overview = _divided(parts)
    both = bool(tiles) and overview is not None
    if both and views in ("tiles", "overview", "apart"):
        assert overview is not None
        found = {
            "tiles": Panel(tiles, f"{what}\ntiles"),
            "overview": Panel([overview], f"{what}\noverview"),
        }
        return list(found.values()) if views == "apart" else [found[views]]
    if len(parts) > 1:
        what = f"{what}\n{'mean' if views == 'mean' else 'sum'} of {len(parts)} views"
    return [Panel(parts, what)]


def _divided(parts: list[Part]) -> tuple[list[Part], Part | None]:
    """The tiles of an image, and the view that shows it as a whole: the coarsest, where several do."""
    if any(part.view.frame is not None for part in parts):
        return parts, None
    whole = [part for part in parts if _is_whole(_box_of_seen(part.view))]
    if not whole:
        return parts, None
    overview = min(whole, key=lambda part: part.cells.size)
    return [part for part in parts if part is not overview], overview


def _is_whole(box: Shares) -> bool:
    return max(box[0], box[1], 1 - box[2], 1 - box[3]) <= _WHOLE


def map_on(parts: Sequence[Part], image: Image.Image, *, mean: bool = False) -> tuple[np.ndarray, Shares]:
    """A map of an image, and the part of the picture `image` that it shows.

    Raises:
        InputError: a picture of another shape than that of the record.
    """
    boxes = [box or WHOLE for box in boxes_on([part.view for part in parts], image)]
    if len(parts) == 1:
        return parts[0].cells, boxes[0]
    return _joined(boxes, [part.cells for part in parts], mean), WHOLE


def map_of_seen(parts: Sequence[Part], *, mean: bool = False) -> np.ndarray:
    """A map of what the model receives of an image, [rows, columns]."""
    return _joined([_box_of_seen(part.view) for part in parts], [part.cells for part in parts], mean)


def _box_of_seen(view: View) -> Shares:
    """The part of what the model receives of an image that a view shows."""
    box = view.box or WHOLE
    return box if view.picture is None else within(box, view.picture.window)


def _joined(boxes: Sequence[Shares], grids: Sequence[np.ndarray], mean: bool) -> np.ndarray:
    """Grids drawn into their boxes and added up, or averaged; parts outside the image are cut off."""
    if list(boxes) == [WHOLE]:
        return grids[0]
    fine = [0, 0]
    for (left, upper, right, lower), grid in zip(boxes, grids, strict=True):
        for axis, share in ((0, lower - upper), (1, right - left)):
            fine[axis] = max(fine[axis], round(_OVERSAMPLING * grid.shape[axis] / share))
    total, count = np.zeros(fine, dtype=np.float32), np.zeros(fine, dtype=np.float32)
    for (left, upper, right, lower), grid in zip(boxes, grids, strict=True):
        rows = _cells_at(fine[0], upper, lower, grid.shape[0])
        columns = _cells_at(fine[1], left, right, grid.shape[1])
        here = np.ix_(rows >= 0, columns >= 0)
        total[here] += grid[np.ix_(rows[rows >= 0], columns[columns >= 0])]
        count[here] += 1
    return total / np.maximum(count, 1) if mean else total


def _cells_at(count: int, first: float, last: float, cells: int) -> np.ndarray:
    """[count] index of the cell at each of `count` evenly spaced points; -1: outside `first` to `last`."""
    places = (np.arange(count) + 0.5) / count
    index = np.floor((places - first) / (last - first) * cells).astype(int)
    return np.where((index >= 0) & (index < cells), index, -1)
