"""A second stream of hidden states, which leaves a model in one layer and comes back in a later one.

Whole contexts of a prompt are branches, rows of the same forward (`stack`). A stream that skips most layers
is less than that: it has no keys and values, and each of its tokens is computed by itself, at the end of a
forward, from what the layers have shown: heads' outputs (`Callback.on_attention`) and hidden states
(`Context.captured_hidden`). Its logits combine with the model's own as those of branches do.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from regaze.errors import UnsupportedModelError
from regaze.toolkit.model import compat
from regaze.toolkit.model.hidden_logits import moved_to


class SideStream:
    """The parts of a model that a second stream goes through, looked up once.

    Args:
        leaves: the layer whose attention's output the stream is. returns: the one whose MLP it runs through.

    Raises:
        UnsupportedModelError: a layer is built in a way that regaze does not know; nothing else would tell
            whether the stream got what the layer does to a token.
    """

    def __init__(self, model: PreTrainedModel, leaves: int, returns: int):
        layer = compat.decoder_layers(model)[returns]
        halves, norm = compat.layer_halves(layer), compat.final_norm(model)
        if halves is None or norm is None:
            raise UnsupportedModelError(
                f"a second stream cannot run through a {type(layer).__name__} of {type(model).__name__}: "
                "regaze knows layers that are built as those of Llama, Gemma 2 or Granite"
            )
        projection = compat.straight_projection(model, leaves)
        if projection is None:
            raise UnsupportedModelError(
                f"a second stream cannot leave layer {leaves} of {type(model).__name__}: what its heads give "
                "is gated or normalised before the output projection, or goes another way"
            )
        self._halves, self._norm, self._projection = halves, norm, projection

    def project(self, heads: Tensor) -> Tensor:
        """The attention's output of what its heads give: [B, T, Hq, Dv] -> [B, T, D]."""
        projected: Tensor = self._projection(moved_to(heads.flatten(2), self._projection))
        return projected

    def enter(self, hidden: Tensor) -> Tensor:
        """The norm before the attention of the layer where the stream returns: [B, T, D] -> [B, T, D]."""
        normed: Tensor = self._halves.attention_norm(moved_to(hidden, self._halves.attention_norm))
        return normed

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """The MLP half of that layer, with its residual: [B, T, D] -> [B, T, D]."""
        return self._halves.feed_forward(moved_to(hidden, self._halves.norm))

    def normalise(self, hidden: Tensor) -> Tensor:
        """The model's final norm: [B, T, D] -> [B, T, D]."""
        normed: Tensor = self._norm(moved_to(hidden, self._norm))
        return normed
