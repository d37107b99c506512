"""Whether the attention of an engine is one that regaze adds to, on the machine that it runs on."""

from __future__ import annotations

import os
from typing import Any

import torch

from regaze.serving.common.release import READABLE


def without_edits(config: Any) -> str | None:
    """Why the attention that a `VllmConfig` leads to runs without edits; None: it has them."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        attention = config.attention_config
        named = [attention.backend, *attention.backend_per_kind.values()]
        if all(backend is not None and backend.name == "CUSTOM" for backend in named):
            return None
        return (
            'its attention is not that of regaze: start it with attention_backend="CUSTOM" '
            "(--attention-backend CUSTOM)"
        )
    if current_platform.get_cpu_architecture().name != "X86":
        return "the pages of its cache are laid out for this processor; regaze reads those of x86"
    if packs_tiles(config.model_config.dtype) and not reads_pages():
        return (
            "its AMX kernels pack keys in tiles, which regaze does not read: start it with "
            f"{READABLE}=1 in its environment, for kernels that do not"
        )
    return None


def packs_tiles(dtype: torch.dtype) -> bool:
    """Whether vLLM uses AMX kernels on this CPU where it has the choice."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()  # noqa: SLF001 (what vLLM asks)


def reads_pages() -> bool:
    """Whether whoever starts the engine gives kernels up whose pages regaze cannot read."""
    return os.environ.get(READABLE, "0") not in ("", "0")
