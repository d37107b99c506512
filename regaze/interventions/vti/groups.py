"""Which features of a vision tower have a direction together."""

from __future__ import annotations

from torch import Tensor


def grouped_rows(states: Tensor, as_released: bool = False) -> Tensor:
    """Hidden states [layers, T, D] as T groups of features, [T, layers, D]: those of one token each.

    The release groups by a reshape without a transpose: `layers` consecutive tokens of mostly one layer.
    """
    layers, tokens, width = states.shape
    return states.reshape(tokens, layers, width) if as_released else states.transpose(0, 1).contiguous()


def ungrouped(groups: Tensor, as_released: bool = False) -> Tensor:
    """The inverse of `grouped_rows`: [T, layers, D] -> [layers, T, D]."""
    tokens, layers, width = groups.shape
    return groups.reshape(layers, tokens, width) if as_released else groups.transpose(0, 1).contiguous()
