"""Channels: weights of key columns; and column tensors that extend to any key length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.caching import cached_property
from regaze.errors import BadParameterError, ShapeError
from regaze.kernels.placement import Placeable


def describe(tensor: Tensor) -> str:
    """A tensor as an error message names it: "[2, 6, 5] float32"."""
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


class PaddedColumns:
    """A column tensor for any key length: padded with its neutral value, then only sliced."""

    named: Tensor
    neutral: Tensor

    def __init__(self, named: Tensor, neutral: Tensor):
        self.named, self.neutral = named, neutral
        self._padded = named

    def upto(self, length: int) -> Tensor:
        """The first `length` columns, a view; grows by doubling, so decoding copies O(log length) times."""
        padded = self._padded
        have = padded.shape[-1]
        if have < length:
            more = self.neutral.expand(*padded.shape[:-1], max(length, 2 * have) - have)
            if (
                self.named.requires_grad
            ):  # a stored copy would tie later calls to the autograd graph of this one
                return torch.cat([padded, more], -1).narrow(-1, 0, length)
            with torch.inference_mode(False):  # stored for later calls
                padded = self._padded = torch.cat([padded, more], -1)
        return padded.narrow(-1, 0, length)

    def refresh(self) -> None:
        """The named columns were written to."""
        if self._padded is not self.named:
            self._padded.narrow(-1, 0, self.named.shape[-1]).copy_(self.named)


@dataclass(frozen=True)
class Outstanding:
    """Keys of a group that a row weighs far above its mean are in another group, in that row and head.

    Attributes:
        group: of which keys stand out. into: the group that these are in instead.
        above: they weigh more than so many times the mean of the row's weights, those of 0 left out.
    """

    group: int
    into: int
    above: float

    def __post_init__(self) -> None:
        if self.group == self.into or self.group < 0 or self.into < 0:
            raise BadParameterError(
                f"outstanding keys go from one group into another, got {self.group} and {self.into}"
            )
        if not self.above >= 0:
            raise BadParameterError(f"`above` is a multiple of the mean weight, at least 0; got {self.above}")


@dataclass(frozen=True, eq=False)
class Channels(Placeable):
    """Column weights u_k[j] >= 0, by which attention masses are summed: one-hot groups, then free weights.

    Attributes:
        groups: [B or 1, n] uint8 group of each key, below `num_groups`; later keys are in group 0.
        num_groups: number G of groups.
        weights: [C, B or 1, n] float, further channels; 0 for later keys.
        outstanding: keys whose group depends on the row's weights.
    """

    groups: Tensor | None = None
    num_groups: int = 0
    weights: Tensor | None = None
    outstanding: Outstanding | None = None

    def __post_init__(self) -> None:
        groups, weights, out = self.groups, self.weights, self.outstanding
        if groups is None and weights is None:
            raise BadParameterError("Channels needs groups, weights or both")
        if groups is not None:
            self._check_groups(groups)
        if weights is not None and weights.dim() != 3:
            raise ShapeError(f"channel weights must be [C, B, n], got {describe(weights)}")
        if groups is not None and weights is not None and groups.shape != weights.shape[1:]:
            raise ShapeError(
                f"groups cover [B, n] = {list(groups.shape)} but weights {list(weights.shape[1:])}: "
                "use the same keys for both"
            )
        if out is not None and (groups is None or max(out.group, out.into) >= self.num_groups):
            raise BadParameterError(
                f"outstanding keys go from group {out.group} into {out.into}, but there are "
                f"{0 if groups is None else self.num_groups} groups"
            )

    def _check_groups(self, groups: Tensor) -> None:
        if groups.dim() != 2 or groups.dtype != torch.uint8:
            raise ShapeError(f"groups must be [B, n] uint8, got {describe(groups)}")
        if not 1 <= self.num_groups <= 255:
            raise BadParameterError(f"num_groups must be in 1..255, got {self.num_groups}")
        # Reading an accelerator's values would stall it; there such a key is in no group at all.
        if groups.device.type == "cpu" and groups.numel() and int(groups.max()) >= self.num_groups:
            raise BadParameterError(
                f"groups {describe(groups)} name group {int(groups.max())}, "
                f"but num_groups is {self.num_groups}"
            )

    @cached_property
    def _matrix(self) -> PaddedColumns:
        """[B, K, n] fp32, made for the paths that multiply with it; kernels read groups and weights.

        A row per u_k: masses are products along them, several times faster so on a CPU.
        """
        parts = []
        with torch.inference_mode(False), torch.enable_grad():  # stored for later calls
            if self.groups is not None:
                ids = torch.arange(self.num_groups, device=self.groups.device, dtype=torch.uint8)
                parts.append((self.groups[:, None] == ids[:, None]).float())
            if self.weights is not None:
                parts.append(self.weights.float().transpose(0, 1))
            matrix = torch.cat(parts, 1)
            neutral = matrix.new_zeros(matrix.shape[1], 1)
            if self.groups is not None:
                neutral[0].fill_(1.0)
        return PaddedColumns(matrix, neutral)

    @property
    def matrix(self) -> Tensor:
        """[B or 1, n, K] fp32: the weight of each named key in each channel."""
        return self._matrix.named.mT

    @property
    def _named(self) -> Tensor:
        """A tensor [..., B or 1, n]."""
        named = self.weights if self.groups is None else self.groups
        assert named is not None
        return named

    @property
    def count(self) -> int:
        """Number K = G + C of channels."""
        return (0 if self.groups is None else self.num_groups) + (
            0 if self.weights is None else len(self.weights)
        )

    @property
    def batch(self) -> int:
        return self._named.shape[-2]

    @property
    def length(self) -> int:
        """Number n of named keys."""
        return self._named.shape[-1]

    def masses(self, weights: Tensor) -> Tensor:
        """Mass of each channel in attention rows: [B, Hq, R, Lk] -> [B, Hq, R, K]."""
        batch, heads, rows, length = weights.shape
        u = self._upto(length, batch, weights.dtype)
        masses = torch.bmm(weights.reshape(batch, heads * rows, length), u.mT)
        masses = masses.view(batch, heads, rows, self.count)
        if (out := self.outstanding) is None:
            return masses
        stands_out, group = self._standing_out(weights, u), u[:, None, None, out.group]
        rest = (weights.masked_fill(stands_out, 0.0) * group).sum(-1)
        more = masses[..., out.into] + weights.masked_fill(~stands_out, 0.0).sum(-1)
        parts = list(masses.unbind(-1))
        parts[out.group], parts[out.into] = rest, more
        return torch.stack(parts, -1)

    def reweighted(self, weights: Tensor, coefficients: Tensor) -> Tensor:
        """Rows [B, Hq, R, Lk] times the factors of their keys, from coefficients [B, Hq, R, K]."""
        batch, _, _, length = weights.shape
        edited = weights * self.per_key(coefficients, length)
        if (out := self.outstanding) is None:
            return edited
        stands_out = self._standing_out(weights, self._upto(length, batch, weights.dtype))
        more = coefficients[..., out.into] - coefficients[..., out.group]
        return torch.where(stands_out, edited + weights * more[..., None], edited)

    def _standing_out(self, weights: Tensor, u: Tensor) -> Tensor:
        """[B, Hq, R, Lk] bool, the outstanding keys of rows; u [B, K, Lk]."""
        assert self.outstanding is not None
        count = (weights > 0).sum(-1, keepdim=True).clamp_min(1)
        mean = weights.sum(-1, keepdim=True) / count
        in_group = u[:, None, None, self.outstanding.group] > 0
        return (weights > self.outstanding.above * mean) & in_group

    def per_key(self, coefficients: Tensor, length: int) -> Tensor:
        """Factor of each key, sum_k coef_k u_k[j]: [B, Hq, R, K] -> [B, Hq, R, length]."""
        batch, heads, rows, count = coefficients.shape
        u = self._upto(length, batch, coefficients.dtype)
        factors = torch.bmm(coefficients.reshape(batch, heads * rows, count), u)
        return factors.view(batch, heads, rows, length)

    def mixed(self, mix: Tensor) -> PaddedColumns:
        """Mixtures of the channels as columns, for M of them [B or 1, M, n]: sum_k mix[m, k] u_k[j]."""
        return PaddedColumns(mix @ self._matrix.named, mix @ self._matrix.neutral)

    def _upto(self, length: int, batch: int, dtype: torch.dtype) -> Tensor:
        """[batch, K, length]."""
        u = self._matrix.upto(length)
        if u.dtype != dtype:
            u = u.to(dtype)
        return u if u.shape[0] == batch else u.expand(batch, -1, -1)
