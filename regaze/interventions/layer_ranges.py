"""Layer ranges: as published for one depth, scaled to another, checked against a model."""

from __future__ import annotations

import operator

from regaze.errors import BadParameterError

#: First and last layer, 0-based, both inclusive.
LayerRange = tuple[int, int]


def scaled(first: int, last: int, of: int, to: int) -> LayerRange:
    """The layers of a model of depth `to` that stand where `first`..`last` stand in one of depth `of`.

    A layer l covers the part [l/of, (l+1)/of) of the depth; both ends of the range are rounded to the nearest
    layer, and at least one layer is left. With `of` equal to `to` nothing changes.
    """
    start = (2 * first * to + of) // (2 * of)
    end = (2 * (last + 1) * to + of) // (2 * of)
    start = min(start, to - 1)
    return start, max(start, end - 1)


def checked_range(layers: LayerRange | None, name: str = "layers") -> LayerRange | None:
    """A range given as a parameter, as a pair of ints; None stays None.

    Raises:
        BadParameterError: not two layer numbers in order.
    """
    if layers is None:
        return None
    try:
        first, last = (operator.index(layer) for layer in layers)
    except (TypeError, ValueError):
        first, last = 1, 0
    if not 0 <= first <= last:
        raise BadParameterError(
            f"{name} must be the first and the last layer, 0-based and both included, such as (9, 14); "
            f"got {layers!r}"
        )
    return first, last


def layer_range(layers: LayerRange | None, published: LayerRange, of: int, num_layers: int) -> LayerRange:
    """The range to use in a model: the given one, or the published one of a model of depth `of`, scaled.

    Raises:
        BadParameterError: the model has no such layers.
    """
    if layers is None:
        return scaled(*published, of, num_layers)
    if layers[1] >= num_layers:
        raise BadParameterError(
            f"layers {layers[0]}..{layers[1]} do not exist: the model has layers 0..{num_layers - 1}"
        )
    return layers
