"""The flow of attention through all layers: rollout with residual, and VL-SAM's regularised flow.

Both are products of one matrix per layer. They are accumulated while the model runs, from the first layer to
the last, for the chosen keys only. Memory holds [B, L, n], the flow from every token to n keys so far, and
one block of rows of a layer; an [L, L] matrix exists only if all keys are chosen, never per layer or head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.display import Tabular, short_repr
from regaze.errors import BadParameterError, InputError
from regaze.kernels import Placeable
from regaze.toolkit.analysis.answers import token_map_of
from regaze.toolkit.analysis.forward import (
    AttentionProbe,
    KeyChoice,
    RowChoice,
    key_index,
    row_index,
    run_forward,
)
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import TokenMap
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True, eq=False)
class Flow(Tabular):
    """The flow from each of R rows to n keys, on the CPU.

    Attributes:
        values: [B, R, n] fp32; 0 where a sample has fewer rows or keys.
        rows: [B, R] positions of the rows. columns: [B, n] positions of the keys. Both are -1 where a sample
            has fewer.
        tokens: roles of the prompt.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    tokens: TokenMap

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per sample, row and key that there is."""
        real = (self.rows >= 0)[..., None] & (self.columns >= 0)[:, None]
        sample, row, key = real.nonzero(as_tuple=True)
        return {
            "sample": sample.tolist(),
            "row": self.rows[sample, row].tolist(),
            "column": self.columns[sample, key].tolist(),
            "flow": self.values[real].tolist(),
        }

    def image_map(self, row: int = -1, sample: int = 0, image: int = 0) -> Tensor:
        """The flow of one of the R rows as a map over an image, [rows, columns].

        Raises:
            InputError: the image has no grid, or its tokens are not among the keys.
        """
        cells, keys = self.tokens.image_cells(sample, image), self.columns[sample]
        real = keys >= 0
        key_at = torch.full((self.tokens.length,), -1)
        key_at[keys[real]] = torch.arange(len(keys))[real]
        place = key_at[cells]
        if bool((place < 0).any()):
            raise InputError('not all of the image is among the keys; ask for columns="image"')
        return self.values[sample, row, place].unflatten(0, self.tokens.grids[sample][image])


def rollout(
    gaze: Gaze,
    inputs: Mapping[str, Any],
    *,
    rows: RowChoice = "last",
    columns: KeyChoice = "image",
    heads: Literal["mean", "max", "min"] | Sequence[int] = "mean",
    residual: float = 0.5,
    layers: Sequence[int] | None = None,
) -> Flow:
    """Attention rollout: the share of each key in each row after all layers, if only attention mixed tokens.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (arXiv:2005.00928). With A^l the
    attention of layer l fused over heads, R = M^L ... M^2 M^1 for M^l = residual I + (1 - residual) A^l; rows
    are scaled to sum 1. Inside `gaze.using(...)` the edited attention is multiplied.

    Args:
        inputs: from `gaze.inputs`, or `with_answers` for rows of an answer.
        rows, columns: which flow to return, see `RowChoice` and `KeyChoice`.
        heads: "mean" (as in the paper), "max" or "min" over heads, or numbers of heads to average.
        residual: weight of the residual connection; 0.5 in the paper.
        layers: numbers of the layers to multiply; None: all.

    Returns:
        `Flow` whose values over all keys sum to 1 in each row.

    Raises:
        BadParameterError, InputError: rows, columns, heads or layers that do not exist.
    """
    if not 0.0 <= residual <= 1.0:
        raise BadParameterError(f"residual is a share in [0, 1], got {residual}")
    tokens = token_map_of(gaze, inputs)
    probe = _RolloutProbe(key_index(tokens, columns), heads, residual, layers)
    return _flow(gaze, inputs, probe, row_index(tokens, rows), tokens)


def attention_flow(
    gaze: Gaze,
    inputs: Mapping[str, Any],
    *,
    rows: RowChoice = "last",
    columns: KeyChoice = "image",
    regularise: Literal["once", "each", "never"] = "once",
    weigh_heads: bool = True,
    layers: Sequence[int] | None = None,
) -> Flow:
    """The regularised attention flow of VL-SAM, from which it prompts a segmenter.

    Source: "Training-Free Open-Ended Object Detection and Segmentation via Attention as Prompts"
    (arXiv:2410.05963). Head h of layer l has the weight W = mean_i max_j S_ij; S'^l = mean_h W_h S_h;
    F^l = (I + S'^l)(I + F^(l-1)), F^0 = 0. Key j of N is multiplied by (j + 1) / N, as causal flows drift to
    the first keys. The paper does not say whether this happens in each layer or once after the last.

    Args:
        rows, columns, layers: as for `rollout`.
        regularise: "once": after the last layer; "each": on S' of every layer; "never".
        weigh_heads: False gives all heads the weight 1 (the paper's ablation).

    Returns:
        `Flow` whose values are F times 2^-layers, which keeps them finite; only proportions are meaningful.

    Raises:
        BadParameterError, InputError: as for `rollout`.
    """
    if regularise not in ("once", "each", "never"):
        raise BadParameterError(f'regularise must be "once", "each" or "never", got {regularise!r}')
    tokens = token_map_of(gaze, inputs)
    probe = _RegularisedProbe(key_index(tokens, columns), regularise, weigh_heads, layers)
    return _flow(gaze, inputs, probe, row_index(tokens, rows), tokens)


def _flow(gaze: Gaze, inputs: Mapping[str, Any], probe: _FlowProbe, index: Tensor, tokens: TokenMap) -> Flow:
    with torch.no_grad():
        run_forward(gaze, inputs, probe)
    state = probe.result()
    values = state.gather(1, index.clamp_min(0)[..., None].expand(-1, -1, state.shape[2]).to(state.device))
    return Flow((values.cpu() * (index >= 0)[..., None]), index, probe.columns, tokens)


@dataclass(frozen=True, eq=False)
class _Prompt(Placeable):
    """What layers read of the prompts.

    Attributes:
        columns: [B, n] the chosen keys. visible: [B, L] bool. place: [B, L] (j + 1) / N of each token.
    """

    columns: Tensor
    visible: Tensor
    place: Tensor


class _FlowProbe(AttentionProbe):
    """The flow from every token to the chosen keys, [B, L, n], updated by each layer."""

    def __init__(self, columns: Tensor, layers: Sequence[int] | None):
        super().__init__(layers)
        self.columns = columns

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        visible = context.visible
        places = visible.cumsum(1).float() / visible.sum(1, keepdim=True)
        self.prompt = _Prompt(self.columns, visible, places)
        self.state = torch.zeros(*visible.shape, self.columns.shape[1], device=context.device)

    def result(self) -> Tensor:
        return self.state

    def add_keys(self, amount: float) -> None:
        """Add `amount` times the identity to the state: the flow from each key to itself."""
        index = self.prompt.to(self.state.device).columns[:, None]
        self.state.scatter_add_(1, index.clamp_min(0), amount * (index >= 0).float())

    def multiply(self, call: AttentionCall, matrix: Callable[[Tensor, int], Tensor]) -> None:
        """Multiply the state by an [L, L] matrix that depends on the weights, a block of rows at a time.

        Blocks come from the last to the first. In a causal layer the product can then overwrite the state:
        a row reads only rows before it, which are not yet written.

        Args:
            matrix: maps the weights [B, Hq, R, K] of a block and the number of its first row to [B, R, K].
        """
        state = self.state.to(call.query.device)
        self.state = state if call.causal else torch.empty_like(state)
        for rows, weights in self.blocks(call):
            part = matrix(weights, rows.start)
            self.state[:, rows] = part @ state[:, : part.shape[-1]]


class _RolloutProbe(_FlowProbe):
    def __init__(
        self, columns: Tensor, heads: str | Sequence[int], residual: float, layers: Sequence[int] | None
    ):
        super().__init__(columns, layers)
        if isinstance(heads, str) and heads not in ("mean", "max", "min"):
            raise BadParameterError(f'heads must be "mean", "max", "min" or numbers, got {heads!r}')
        self.heads, self.residual = heads, residual

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.add_keys(1.0)
        if not isinstance(self.heads, str):
            outside = [head for head in self.heads if not 0 <= head < context.num_heads]
            if outside or not len(self.heads):
                raise BadParameterError(
                    f"heads {outside} do not exist: the model has heads 0..{context.num_heads - 1}"
                )

    def measure(self, layer: int, call: AttentionCall) -> None:
        self.multiply(call, self._matrix)

    def _matrix(self, weights: Tensor, first: int) -> Tensor:
        if not isinstance(self.heads, str):
            fused = torch.stack([weights[:, head] for head in self.heads]).mean(0)
        elif self.heads == "mean":
            fused = weights.mean(1)
        else:
            fused = weights.amax(1) if self.heads == "max" else weights.amin(1)
        # "max", "min" and attention sinks of the model leave rows that do not sum to 1.
        matrix = _normalise(fused) * (1 - self.residual)
        matrix.diagonal(first, 1, 2).add_(self.residual)
        return _normalise(matrix)


class _RegularisedProbe(_FlowProbe):
    def __init__(self, columns: Tensor, regularise: str, weigh_heads: bool, layers: Sequence[int] | None):
        super().__init__(columns, layers)
        self.regularise, self.weigh_heads, self.num_done = regularise, weigh_heads, 0

    def measure(self, layer: int, call: AttentionCall) -> None:
        # The state is F 2^-layers: (I + F) 2^-layers is multiplied by (I + S') / 2.
        self.add_keys(0.5**self.num_done)
        self.num_done += 1
        weights = self._head_weights(call) if self.weigh_heads else None
        place = self.prompt.to(call.query.device).place

        def matrix(attention: Tensor, first: int) -> Tensor:
            if weights is not None:
                attention = attention * weights[..., None, None]
            part = attention.mean(1) / 2
            if self.regularise == "each":
                part = part * place[:, None, : part.shape[-1]]
            part.diagonal(first, 1, 2).add_(0.5)
            return part

        self.multiply(call, matrix)

    def _head_weights(self, call: AttentionCall) -> Tensor:
        """W, the mean over rows of the largest weight, [B, Hq]."""
        visible = self.prompt.to(call.query.device).visible
        total = torch.zeros(self.batch, call.query.shape[1], device=call.query.device)
        for rows, weights in self.blocks(call):
            total += (weights.amax(-1) * visible[:, None, rows]).sum(-1)
        return total / visible.sum(1, keepdim=True)

    def result(self) -> Tensor:
        if self.regularise != "once":
            return self.state
        prompt = self.prompt.to(self.state.device)
        return self.state * prompt.place.gather(1, prompt.columns.clamp_min(0))[:, None]


def _normalise(rows: Tensor) -> Tensor:
    """Rows [..., K] scaled to sum 1; rows of zeros stay zero."""
    return rows / rows.sum(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
