"""Layer ranges: as published for one depth, scaled to another, checked against a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt

from regaze.arguments import parse_indices
from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.toolkit.model.context import Context


def _in_order(layers: tuple[int, int]) -> tuple[int, int]:
    if layers[0] > layers[1]:
        raise ValueError("the first layer comes after the last one")
    return layers


def _from_text(given: Any) -> Any:
    """The ends of "9-14"; a list as the tuple that it stands for in JSON."""
    if not isinstance(given, str):
        return tuple(given) if isinstance(given, list) else given
    if "," in given:  # no text is meant, but what is between the commas
        return given
    layers = parse_indices(given)
    return layers[0], layers[-1]


#: First and last layer, 0-based, both inclusive; as a text, "9-14".
LayerRange = Annotated[
    tuple[NonNegativeInt, NonNegativeInt],
    BeforeValidator(_from_text),
    AfterValidator(_in_order),
    Field(description="the first and the last layer, 0-based and both included, such as (9, 14) or 9-14"),
]


def scaled_range(first: int, last: int, depth: int, new_depth: int) -> LayerRange:
    """The layers at the same relative depth in a model with `new_depth` layers instead of `depth`.

    Layer l covers the part [l / depth, (l + 1) / depth) of the model. Both ends of the range are rounded to
    the nearest layer, and at least one layer is left. Equal depths change nothing.
    """
    start = (2 * first * new_depth + depth) // (2 * depth)
    end = (2 * (last + 1) * new_depth + depth) // (2 * depth)
    start = min(start, new_depth - 1)
    return start, max(start, end - 1)


def resolve_range(given: LayerRange | None, published: LayerRange, depth: int, num_layers: int) -> LayerRange:
    """The range for a model: the given one, or the one published for `depth` layers, scaled.

    Raises:
        BadParameterError: the model does not have the given layers.
    """
    if given is None:
        return scaled_range(*published, depth, num_layers)
    if given[1] >= num_layers:
        raise BadParameterError(
            f"layers {given[0]}..{given[1]} do not exist: the model has layers 0..{num_layers - 1}"
        )
    return given


def attention_range(
    context: Context, given: LayerRange | None, published: LayerRange, depth: int = 32
) -> LayerRange:
    """As `resolve_range`, of a method that acts on attention, which hybrid models have in some layers only.

    Raises:
        BadParameterError: the model does not have the given layers.
        UnsupportedModelError: none of the layers has attention, so that the method would do nothing.
    """
    layers = resolve_range(given, published, depth, context.num_layers)
    require_attention(context, range(layers[0], layers[1] + 1))
    return layers


def require_attention(context: Context, layers: Sequence[int]) -> None:
    """Raise UnsupportedModelError where none of the layers has attention: the method would do nothing."""
    attending = context.self_layers | context.cross_layers
    if attending.isdisjoint(layers):
        those = f"layers {layers[0]}..{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
        raise UnsupportedModelError(
            f"there is no attention in {those} of this model, so the method would do nothing; choose from "
            f"the layers that have it: {', '.join(map(str, sorted(attending)))}"
        )
