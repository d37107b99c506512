"""vLLM's attention on the CPU, with regaze after it for the rows of edited requests."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from regaze.serving.backends.edited import Edited
from regaze.serving.backends.platforms import reads_pages


class EditedCPUImpl(Edited, CPUAttentionBackendImpl):
    def pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """The "vec" kernels keep the keys of a page transposed: all of it is [D, page] and then [page, D]."""
        count, heads, size, width = kv_cache.shape
        keys = kv_cache.view(count, heads, 2, width // 2, size)[:, :, 0].transpose(2, 3)
        return keys, kv_cache.view(count, heads, 2, size, width // 2)[:, :, 1]


class EditedCPUBuilder(CPUAttentionMetadataBuilder):
    """Also sees to kernels whose pages can be read, where that is wanted.

    AMX kernels (bfloat16) pack their pages in tiles; regaze reads those of the vector kernels, which are
    slower. An engine that nobody starts for edits keeps what vLLM chose.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER
    isa: str

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if self.isa == "amx" and reads_pages():
            self.isa = "vec"
            self._set_isa_to_layers(layer_names)


class EditedCPUBackend(CPUAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[Any]:
        return EditedCPUImpl

    @staticmethod
    def get_builder_cls() -> type[Any]:
        return EditedCPUBuilder
