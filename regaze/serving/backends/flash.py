"""FlashAttention, with regaze after it for the rows of edited requests. It has never run on a GPU."""

from __future__ import annotations

from typing import Any, ClassVar

from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from regaze.serving.backends.edited import Edited


class EditedFlashImpl(Edited, FlashAttentionImpl):
    """All of it is in the two bases."""


class EditedFlashBuilder(FlashAttentionMetadataBuilder):
    #: Graphs are captured in pieces, between which attention runs as Python.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER


class EditedFlashBackend(FlashAttentionBackend):
    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[Any]:
        return EditedFlashImpl

    @staticmethod
    def get_builder_cls() -> type[Any]:
        return EditedFlashBuilder
