"""Attention weighted by what it does to an output: relevance by positive gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.errors import BadParameterError, ShapeError, UnsupportedModelError
from regaze.toolkit.analysis.flow import Flow
from regaze.toolkit.analysis.forward import (
    AttentionProbe,
    Inputs,
    KeyChoice,
    RowChoice,
    key_index,
    row_index,
    run_forward,
    token_map_of,
)
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.wrap import Gaze


def relevance(
    gaze: Gaze,
    inputs: Mapping[str, Any],
    *,
    rows: RowChoice = "last",
    columns: KeyChoice = "image",
    targets: Tensor | None = None,
    score: Literal["logit", "log_prob"] = "logit",
    propagate: bool = True,
    layers: Sequence[int] | None = None,
) -> Flow:
    """Which keys raise the score of the token that a row predicts, through attention.

    Source: Chefer, Gur and Wolf, "Generic Attention-model Explainability" (arXiv:2103.15679). With A^l the
    attention of a layer and y the score, C^l = mean over heads of A^l * max(0, dy/dA^l). Through the layers
    R <- R + C^l R from R = I; a row of R is a vector that is multiplied from the top layer down, as its
    gradients arrive. Without `propagate` it is the mean over layers of the row's own C^l (GradCAM).

    The model runs once and keeps its activations, as in training; each row is a backward pass, in which
    weights and gradients of one block of rows exist at a time (`regaze.kernels` on its torch backend).

    Args:
        inputs: from `gaze.inputs`, or `with_answers` for rows of an answer.
        rows, columns, layers: as for `rollout`; rows are those that predict.
        targets: [B, R] ids (or an image classifier's classes) whose score is explained; default: what
            follows the row in the prompt or answer, else what the model prefers.
        score: of a target, its "logit" or its "log_prob".

    Returns:
        `Flow`. With `propagate` a row's own key begins with 1.

    Raises:
        BadParameterError, InputError: rows, columns or layers that do not exist. ShapeError: other targets.
        UnsupportedModelError: a model without logits.
    """
    if score not in ("logit", "log_prob"):
        raise BadParameterError(f'score must be "logit" or "log_prob", got {score!r}')
    tokens = token_map_of(gaze, inputs)
    index, keys, watch = row_index(tokens, rows), key_index(tokens, columns), _Graph(layers)
    if targets is not None and targets.shape != index.shape:
        raise ShapeError(f"targets must be [B, R] = {list(index.shape)} ids, got {list(targets.shape)}")
    with torch.inference_mode(False), torch.enable_grad():
        output = run_forward(
            gaze, _outside_inference(inputs), watch, logits=tokens.length - int(index[index >= 0].min())
        )
        logits = _rows(gaze, output, index, tokens.length)
        scores = _scores(logits, index, _following(logits, inputs, index, tokens, targets), score)
        found = []
        for number in range(index.shape[1]):
            last = number + 1 == index.shape[1]
            gradients = torch.autograd.grad(scores[:, number].sum(), watch.outputs, retain_graph=not last)
            found.append(watch.row(index[:, number], gradients, propagate))
    values = torch.stack(found, 1).gather(2, keys.clamp_min(0)[:, None].expand(-1, index.shape[1], -1))
    return Flow(values * (index >= 0)[..., None] * (keys >= 0)[:, None], index, keys, tokens)


def _outside_inference(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same arguments without tensors made in inference mode, which take part in no gradient."""
    copies = {
        name: value.clone()
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.is_inference()
    }
    return Inputs({**inputs, **copies}, inputs.tokens) if isinstance(inputs, Inputs) else {**inputs, **copies}


def _rows(gaze: Gaze, output: Any, index: Tensor, length: int) -> Tensor:
    """Logits [B, R, V] fp32 of the rows `index` [B, R] of `length`; an image classifier has one for all."""
    logits: Tensor | None = getattr(output, "logits", None)
    if logits is None:
        raise UnsupportedModelError(
            f"{type(gaze.model).__name__} has no logits whose rise could be explained"
        )
    if logits.dim() == 2:
        return logits[:, None].expand(-1, index.shape[1], -1).float()
    places = (
        (index - (length - logits.shape[1])).clamp_min(0).to(logits.device)
    )  # the last ones alone are there
    return logits.gather(1, places[..., None].expand(-1, -1, logits.shape[2])).float()


def _following(
    logits: Tensor, inputs: Mapping[str, Any], index: Tensor, tokens: TokenMap, targets: Tensor | None
) -> Tensor:
    """The targets [B, R], by default the token behind each row, or what the model prefers without one."""
    if targets is not None:
        return targets
    preferred = logits.argmax(-1).cpu()
    if inputs.get("input_ids") is None:
        return preferred
    behind = (index + 1).clamp(0, tokens.length - 1)
    there = (index + 1 < tokens.length) & (tokens.roles.gather(1, behind) != int(Role.PAD))
    return torch.where(there, inputs["input_ids"].cpu().gather(1, behind), preferred)


def _scores(logits: Tensor, index: Tensor, targets: Tensor, score: str) -> Tensor:
    """Scores of the targets [B, R]; of the rows that a sample lacks, 0 without a gradient."""
    rows = logits if score == "logit" else logits.log_softmax(-1)
    found = rows.gather(2, targets.to(rows.device)[..., None])[..., 0]
    return found * (index >= 0).to(rows.device)


class _Graph(AttentionProbe):
    """Keeps the calls of a forward and makes sure that gradients reach each of them."""

    def __init__(self, layers: Sequence[int] | None):
        super().__init__(layers)
        self.calls: list[AttentionCall] = []

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.length = context.prompt_length

    @property
    def outputs(self) -> list[Tensor]:
        return [call.output for call in self.calls]

    def measure(self, layer: int, call: AttentionCall) -> None:
        if not call.output.requires_grad:  # nothing below the first layer needs a gradient in a frozen model
            call.output.requires_grad_()
        self.calls.append(call)

    def row(self, position: Tensor, gradients: Sequence[Tensor], propagate: bool) -> Tensor:
        """Relevance of all keys for the row at `position` [B], [B, L] on the CPU."""
        own = torch.zeros(self.batch, self.length)
        own[torch.arange(self.batch), (position + self.before).clamp_min(0)] = 1.0
        total = own.clone() if propagate else torch.zeros_like(own)
        for call, gradient in zip(reversed(self.calls), reversed(gradients), strict=True):
            row = total if propagate else own
            total = total + self._through(call, gradient, row.to(call.query.device)).to(total.device)
        return (total if propagate else total / len(self.calls))[:, self.before :]

    def _through(self, call: AttentionCall, gradient: Tensor, row: Tensor) -> Tensor:
        """row C of a layer: [B, L] -> [B, L]."""
        result = torch.zeros_like(row)
        for rows in call.blocks():
            weights = call.weights(rows)[: self.batch]
            slope = call.weight_gradient(rows, gradient)[: self.batch, ..., : weights.shape[-1]]
            positive = (weights * slope.clamp_min(0)).mean(1)
            result[:, : weights.shape[-1]] += (row[:, None, rows] @ positive)[:, 0]
        return result
