"""The backend of a GPU, by what vLLM has there for the rows that are not edited.

FlashAttention where the GPU and this vLLM have it. It takes neither float32 nor every size of a head: such
models need Triton's attention, by REGAZE_SERVING_ATTENTION=triton in the environment of the engine.
"""

from __future__ import annotations

import os
from typing import Any

from regaze.errors import BadParameterError

CHOICE = "REGAZE_SERVING_ATTENTION"  #: the environment variable


def edited_backend() -> type[Any]:
    """The backend that CUSTOM stands for.

    Raises:
        BadParameterError: the environment variable names neither.
    """
    chosen = os.environ.get(CHOICE, "") or ("flash" if _has_flash_attention() else "triton")
    if chosen == "flash":
        from regaze.serving.backends.flash import EditedFlashBackend

        return EditedFlashBackend
    if chosen == "triton":
        from regaze.serving.backends.triton import EditedTritonBackend

        return EditedTritonBackend
    raise BadParameterError(f"{CHOICE} is 'flash' or 'triton', got {chosen!r}")


def _has_flash_attention() -> bool:
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.fa_utils import is_flash_attn_varlen_func_available

    return current_platform.has_device_capability(80) and is_flash_attn_varlen_func_available()


def __getattr__(name: str) -> Any:
    """`EditedBackend`, the name by which it is registered, chosen when vLLM asks for it."""
    if name == "EditedBackend":
        return edited_backend()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
