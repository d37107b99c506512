"""Whisper: an encoder hears, and the decoder's cross-attention looks at what it heard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from regaze.toolkit.prompts.families.base import Family
from regaze.toolkit.prompts.token_map import Role, TokenMap, View


class Whisper(Family):
    """The keys of cross-attention are the encoder's frames, 20 ms each, in a grid of one row.

    They have the role IMAGE, as what a model is asked about has in other families.
    """

    name = "whisper"
    model_types = ("whisper",)

    def cross_tokens(self, inputs: Mapping[str, Any], batch: int, keys: int) -> TokenMap:
        roles = torch.full((batch, keys), int(Role.IMAGE), dtype=torch.uint8)
        cells = torch.arange(keys, dtype=torch.int32).expand(batch, keys).contiguous()
        return TokenMap(roles, torch.zeros_like(cells), cells, ((View((1, keys)),),) * batch)
