"""vLLM's Triton attention, with regaze after it for the rows of edited requests. It has never run."""

from __future__ import annotations

from typing import Any, ClassVar

from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from regaze.serving.backends.edited import Edited


class EditedTritonImpl(Edited, TritonAttentionImpl):
    """All of it is in the two bases."""


class EditedTritonBuilder(TritonAttentionMetadataBuilder):
    #: Graphs are captured in pieces, between which attention runs as Python.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER


class EditedTritonBackend(TritonAttentionBackend):
    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[Any]:
        return EditedTritonImpl

    @staticmethod
    def get_builder_cls() -> type[Any]:
        return EditedTritonBuilder
