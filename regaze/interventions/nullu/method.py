"""Nullu: null space projection of MLP outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.facts import Facts
from regaze.interventions.fitting import FittedIntervention
from regaze.interventions.layer_ranges import LayerRange, resolve_range
from regaze.interventions.nullu.fit import NulluFit
from regaze.kernels import Placeable
from regaze.toolkit.model import compat
from regaze.toolkit.model.context import Context


@dataclass(frozen=True, eq=False)
class Subspace(Placeable):
    """What is removed in one layer: orthonormal rows [k, D], and their share of the MLP's bias [k]."""

    basis: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Nullu(FittedIntervention):
    """Remove from MLP outputs the directions along which true and invented captions differ most.

    Source: Yang et al., "Nullu: Mitigating Object Hallucinations in Large Vision-Language Models via
    HalluSpace Projection" (arXiv:2412.13817). The paper multiplies the last matrix of the MLP by I - V V^T.
    Here its output y becomes y - V (V^T (y - bias)), which is the same and leaves the weights alone,
    quantised ones too. See `NulluFit` for V.
    """

    name: ClassVar[str] = "nullu"
    summary: ClassVar[str] = "remove from MLP outputs what tells invented captions from true ones"
    source: ClassVar[str] = "arXiv:2412.13817"
    edits: ClassVar[str] = "MLP outputs of the upper half of the layers, at prefill and every step"
    cost: ClassVar[str] = "one forward; fitted once per model with two forwards per pair"
    facts: ClassVar[Facts] = Facts(
        edits=("MLP outputs",), cost="one forward", graphs="broken", needs=("fit",)
    )
    release: ClassVar[str] = (
        "Ziwei-Zheng/Nullu, MIT. The projection is rounded to the model's dtype before the product, and the "
        "last layer's is fitted after the final norm; its option to edit the up projections does nothing. "
        "Here the product is fp32, and the residual stream is read before the norm."
    )
    fit: ClassVar[type[NulluFit]] = NulluFit

    rank: NonNegativeInt = field(
        default=4, metadata={"help": "k, directions that are removed per layer (0: none)"}
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last layer; default: 16 to 31 of 32, scaled"}
    )

    @property
    def is_identity(self) -> bool:
        return self.rank == 0

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "edited"

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        basis = self.checked(context)["basis"]
        if basis.shape[1] < self.rank:
            raise BadParameterError(
                f"'nullu': the directions are of rank {basis.shape[1]}, not {self.rank}: set rank, or fit "
                f"with --set rank={self.rank}"
            )
        first, last = resolve_range(self.layers, (16, 31), 32, context.num_layers)
        layers = compat.decoder_layers(context.model)
        context.state(self)["layers"] = {
            number: _subspace(basis[number, : self.rank], layers[number]) for number in range(first, last + 1)
        }

    def edit_mlp(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        subspace = context.state(self).get("layers", {}).get(layer)
        if subspace is None:
            return hidden
        placed = subspace.to(hidden.device)
        return remove(hidden, placed.basis, placed.bias)


def remove(hidden: Tensor, basis: Tensor, bias: Tensor | None = None) -> Tensor:
    """`hidden` [..., D] without its part in the span of orthonormal rows [k, D].

    Args:
        bias: [k], the coefficients of what stays: those of the MLP's bias.
    """
    x = hidden.float()
    coefficients = x @ basis.mT
    if bias is not None:
        coefficients = coefficients - bias
    return (x - coefficients @ basis).to(hidden.dtype)


def _subspace(basis: Tensor, layer: Any) -> Subspace:
    """What is removed from the MLP of a layer; a bias of its last matrix stays."""
    bias = getattr(getattr(compat.mlp_of(layer), "down_proj", None), "bias", None)
    if not isinstance(bias, Tensor):
        return Subspace(basis, torch.zeros(len(basis)))
    with torch.no_grad():
        return Subspace(basis, basis @ bias.float().to(basis.device))
