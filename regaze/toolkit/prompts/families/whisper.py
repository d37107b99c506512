"""Whisper: the decoder cross-attends to the frames of an audio encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from regaze.toolkit.prompts.families.base import Family
from regaze.toolkit.prompts.token_map import Role, TokenMap, View


class Whisper(Family):
    """Whisper. The keys of its cross-attention are the encoder's frames of 20 ms, a grid of one row.

    They have the role IMAGE, like the input that a model is asked about in other families.
    """

    name = "whisper"
    model_types = ("whisper",)

    def cross_tokens(self, inputs: Mapping[str, Any], batch: int, keys: int) -> TokenMap:
        roles = torch.full((batch, keys), int(Role.IMAGE), dtype=torch.uint8)
        cells = torch.arange(keys, dtype=torch.int32).expand(batch, keys).contiguous()
        return TokenMap(roles, torch.zeros_like(cells), cells, ((View((1, keys)),),) * batch)
