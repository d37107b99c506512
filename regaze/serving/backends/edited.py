"""What edited backends of vLLM share, whichever attention they add to."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from regaze.serving.worker.acts import LayerCall
from regaze.serving.worker.edits import EngineEdits


class Edited:
    """Base before vLLM's own implementation: plain attention for all rows, then the edited ones once more.

    Attributes:
        edits: those of the runner, once its model is loaded. number: of the layer.
    """

    edits: EngineEdits | None = None
    number: int = -1
    scale: float
    sinks: Tensor | None
    logits_soft_cap: float
    attn_type: str

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        plain: Any = super()
        parts = layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
        out: Tensor = plain.forward(*parts)
        if self.edits is None or attn_metadata is None or self.attn_type != "decoder":
            return out
        try:
            if self.edits.rows(attn_metadata):
                options = {
                    "scaling": self.scale,
                    "softcap": self.logits_soft_cap or None,
                    "sinks": self.sinks,
                }
                table = attn_metadata.block_table
                call = LayerCall(self.number, query, output, *self.pages(kv_cache), table, options)
                self.edits.edit(call, attn_metadata)
        except Exception as error:  # plain requests need nothing of it
            self.edits.give_up(error)
        return out

    def pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [P, Hkv, page, D] and values of a cache [P, Hkv, page, 2 * D], in which they lie in turn."""
        width = kv_cache.shape[-1] // 2
        return kv_cache[..., :width], kv_cache[..., width:]
