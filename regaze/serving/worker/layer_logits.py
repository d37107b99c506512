"""Logits read from the residual stream of any layer of an engine's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regaze.errors import UnsupportedModelError
from regaze.serving.worker.heads import Heads
from regaze.toolkit.model.compat import FINAL_NORMS


class EngineLogits:
    """As `LogitReader` under transformers, for a model of vLLM.

    Args:
        model: vLLM's. attention: the number of the layer of each attention module.
        heads: of this process, where several share them; None: all.

    Attributes:
        tied: input and output embeddings are one matrix.

    Raises:
        UnsupportedModelError: its last norm was not found.
    """

    def __init__(self, model: Any, attention: Mapping[nn.Module, int], heads: Heads | None = None):
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        owner = _owner_of_layers(model, attention)
        norms = (getattr(owner, name, None) for name in FINAL_NORMS)
        found = next((norm for norm in norms if isinstance(norm, nn.Module)), None)
        if found is None:
            raise UnsupportedModelError(f"vLLM's {type(owner).__name__} has no final norm that regaze finds")
        self._norm, self._model, self._heads = found, model, heads
        tables = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
        self.tied: bool = len({id(table.weight) for table in tables}) == 1

    def read(self, hidden: Tensor, normalise: bool = True) -> Tensor:
        """Residual stream [..., D] to logits [..., V]."""
        rows = hidden.flatten(0, -2).to(next(self._norm.parameters()).dtype)
        if self._heads is not None:
            self._heads.meet()  # each worker has a part of the output matrix
        logits: Tensor = self._model.compute_logits(self._norm(rows) if normalise else rows)
        return logits.view(*hidden.shape[:-1], logits.shape[-1])


def _owner_of_layers(model: nn.Module, attention: Mapping[nn.Module, int]) -> nn.Module:
    """The module that has the list of decoder layers, by where their attention modules are."""
    for name, module in model.named_modules():
        if module in attention:
            parts = name.split(".")
            number = parts.index(str(attention[module]))
            return model.get_submodule(".".join(parts[: number - 1]))
    raise UnsupportedModelError("its attention layers are no parts of it")
