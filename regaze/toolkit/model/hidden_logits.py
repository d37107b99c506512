"""Logits read from the residual stream of any layer, the way the model reads its last one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regaze.errors import UnsupportedModelError
from regaze.toolkit.model import compat


class LogitReader:
    """The final norm, output matrix, scale and soft cap of a model, looked up once.

    Raises:
        UnsupportedModelError: the model has no output matrix.
    """

    def __init__(self, model: PreTrainedModel):
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no output matrix that regaze can find, so its layers cannot be "
                "read as words"
            )
        self._name, self._head = type(model).__name__, head
        self._norm = compat.final_norm(model)
        self._scale = compat.logit_scale(model)

    def read(self, hidden: Tensor, normalise: bool = True) -> Tensor:
        """Residual stream [..., D] to logits [..., V], in the dtype of the output matrix.

        The stream that leaves the last layer gives the model's own logits.

        Args:
            normalise: apply the final norm; False skips it, as some early exits do.

        Raises:
            UnsupportedModelError: the model has no final norm.
        """
        if normalise:
            if self._norm is None:
                raise UnsupportedModelError(
                    f"{self._name} has no final norm that regaze can find, so its layers cannot be read as "
                    "words"
                )
            hidden = self._norm(moved_to(hidden, self._norm))
        hidden = moved_to(hidden, self._head)
        if self._head.weight.is_floating_point():  # quantised weights keep the dtype of their input
            hidden = hidden.to(self._head.weight.dtype)
        logits: Tensor = self._head(hidden)
        factor, divisor, cap = self._scale
        if factor is not None:
            logits = logits * factor
        if divisor is not None:
            logits = logits / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap


def moved_to(hidden: Tensor, module: nn.Module) -> Tensor:
    """`hidden` on the device of a module's weights; accelerate moves it itself where these are offloaded."""
    weight = next(module.parameters(), None)
    return hidden if weight is None or weight.device.type == "meta" else hidden.to(weight.device)
