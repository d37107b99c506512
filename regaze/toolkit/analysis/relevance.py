"""Relevance of keys for a prediction: attention times its positive gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.errors import BadParameterError, ShapeError, UnsupportedModelError
from regaze.toolkit.analysis.answers import Inputs, token_map_of
from regaze.toolkit.analysis.flow import Flow
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
    """How much each key raises, through attention, the score of the token that a row predicts.

    Source: Chefer, Gur and Wolf, "Generic Attention-model Explainability" (arXiv:2103.15679). With A^l the
    attention of a layer and y the score, C^l = mean over heads of A^l * max(0, dy/dA^l). Through the layers
    R <- R + C^l R from R = I. A row of R is a vector, multiplied from the last layer to the first, in the
    order of the backward pass. Without `propagate` it is the mean over layers of the row's own C^l (GradCAM).

    The model runs once and keeps its activations, as in training. Each row takes one backward pass, in which
    weights and gradients exist for one block of rows at a time (`regaze.kernels` with its torch backend).

    Args:
        inputs: from `gaze.inputs`, or `with_answers` for rows of an answer.
        rows, columns, layers: as for `rollout`; rows are those that predict.
        targets: [B, R] ids (or classes of an image classifier) whose score is explained; default: the token
            that follows the row in the prompt or answer, or the model's likeliest token after the last row.
        score: the target's "logit" or "log_prob".
        propagate: follow the relevance through all layers; False: each layer's own effect.

    Returns:
        `Flow`. With `propagate` a row's own key starts at 1.

    Raises:
        BadParameterError, InputError: rows, columns or layers that do not exist. ShapeError: targets of
        another shape. UnsupportedModelError: a model without logits.
    """
    if score not in ("logit", "log_prob"):
        raise BadParameterError(f'score must be "logit" or "log_prob", got {score!r}')
    tokens = token_map_of(gaze, inputs)
    index, keys, probe = row_index(tokens, rows), key_index(tokens, columns), _GraphProbe(layers)
    if targets is not None and targets.shape != index.shape:
        raise ShapeError(f"targets must be [B, R] = {list(index.shape)} ids, got {list(targets.shape)}")
    with torch.inference_mode(False), torch.enable_grad():
        output = run_forward(
            gaze, _outside_inference(inputs), probe, logits=tokens.length - int(index[index >= 0].min())
        )
        logits = _row_logits(gaze, output, index, tokens.length)
        scores = _scores(logits, index, _targets(logits, inputs, index, tokens, targets), score)
        relevances = []
        for number in range(index.shape[1]):
            last = number + 1 == index.shape[1]
            gradients = torch.autograd.grad(scores[:, number].sum(), probe.outputs, retain_graph=not last)
            relevances.append(probe.row(index[:, number], gradients, propagate))
    values = torch.stack(relevances, 1).gather(2, keys.clamp_min(0)[:, None].expand(-1, index.shape[1], -1))
    return Flow(values * (index >= 0)[..., None] * (keys >= 0)[:, None], index, keys, tokens)


def _outside_inference(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same arguments with copies of tensors made in inference mode, which autograd cannot use."""
    copies = {
        name: value.clone()
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.is_inference()
    }
    return Inputs({**inputs, **copies}, inputs.tokens) if isinstance(inputs, Inputs) else {**inputs, **copies}


def _row_logits(gaze: Gaze, output: Any, index: Tensor, length: int) -> Tensor:
    """Logits [B, R, V] fp32 of the rows `index` [B, R] of `length` tokens.

    An image classifier has the same logits for all rows.
    """
    logits: Tensor | None = getattr(output, "logits", None)
    if logits is None:
        raise UnsupportedModelError(
            f"{type(gaze.model).__name__} has no logits whose rise could be explained"
        )
    if logits.dim() == 2:
        return logits[:, None].expand(-1, index.shape[1], -1).float()
    # The model computed the logits of its last positions only.
    places = (index - (length - logits.shape[1])).clamp_min(0).to(logits.device)
    return logits.gather(1, places[..., None].expand(-1, -1, logits.shape[2])).float()


def _targets(
    logits: Tensor, inputs: Mapping[str, Any], index: Tensor, tokens: TokenMap, targets: Tensor | None
) -> Tensor:
    """The targets [B, R]; by default the token after each row, or the likeliest one if there is none."""
    if targets is not None:
        return targets
    likeliest = logits.argmax(-1).cpu()
    if inputs.get("input_ids") is None:
        return likeliest
    following = (index + 1).clamp(0, tokens.length - 1)
    exists = (index + 1 < tokens.length) & (tokens.roles.gather(1, following) != int(Role.PAD))
    return torch.where(exists, inputs["input_ids"].cpu().gather(1, following), likeliest)


def _scores(logits: Tensor, index: Tensor, targets: Tensor, score: str) -> Tensor:
    """Scores of the targets [B, R]; 0 without a gradient where a sample has fewer rows."""
    rows = logits if score == "logit" else logits.log_softmax(-1)
    chosen = rows.gather(2, targets.to(rows.device)[..., None])[..., 0]
    return chosen * (index >= 0).to(rows.device)


class _GraphProbe(AttentionProbe):
    """Keeps the attention calls of a forward, and makes sure that gradients reach each of them."""

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
        if not call.output.requires_grad:  # in a frozen model nothing before the first layer requires one
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
        """The product `row` C of a layer: [B, L] -> [B, L]."""
        result = torch.zeros_like(row)
        for rows in call.blocks():
            weights = call.weights(rows)[: self.batch]
            slope = call.weight_gradient(rows, gradient)[: self.batch, ..., : weights.shape[-1]]
            positive = (weights * slope.clamp_min(0)).mean(1)
            result[:, : weights.shape[-1]] += (row[:, None, rows] @ positive)[:, 0]
        return result
