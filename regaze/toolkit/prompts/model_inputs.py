"""`ModelInputs`: a processor's outputs that show themselves in a line, not as pages of numbers."""

from __future__ import annotations

from torch import Tensor
from transformers import BatchFeature

from regaze.display import Displayed, Summary, brief


class ModelInputs(Displayed, BatchFeature):
    """A `BatchFeature` of transformers with a short `repr` and, in notebooks, a table of its tensors."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={brief(value)}" for name, value in self.items())
        return f"ModelInputs({shown})"

    def _summary(self) -> Summary:
        tensors = [value if isinstance(value, Tensor) else None for value in self.values()]
        columns = {
            "name": list(self.keys()),
            "shape": [
                brief(value) if tensor is None else list(tensor.shape)
                for value, tensor in zip(self.values(), tensors, strict=True)
            ],
            "dtype": ["" if each is None else str(each.dtype).removeprefix("torch.") for each in tensors],
            "device": ["" if each is None else str(each.device) for each in tensors],
        }
        return Summary("ModelInputs", columns)
