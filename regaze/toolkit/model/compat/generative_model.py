"""`GenerativeModel`: a model with `generate`, which transformers mixes into the classes of models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

if TYPE_CHECKING:

    class GenerativeModel(PreTrainedModel):
        """For type checkers, which take `generate` of a bare PreTrainedModel for a tensor or a module."""

        def generate(self, *args: Any, **kwargs: Any) -> Any: ...

else:
    GenerativeModel = PreTrainedModel
