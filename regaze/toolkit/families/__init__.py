"""Model families: one small file each, registered here and nowhere else."""

from __future__ import annotations

from typing import Any

from regaze.toolkit.families.base import Family, Layout, Media, Piece
from regaze.toolkit.families.generic import Guessed, Unknown, image_id
from regaze.toolkit.families.llava import Llava
from regaze.toolkit.families.qwen_vl import QwenVL

FAMILIES: tuple[type[Family], ...] = (
    Llava,
    QwenVL,
)


def family_of(config: Any) -> Family:
    """The family of a model configuration; text-only models need no entry."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family(config)
    if image_id(config) is not None:
        return Guessed(config)
    return Unknown(config) if getattr(config, "vision_config", None) is not None else Family(config)


__all__ = ["FAMILIES", "Family", "Guessed", "Layout", "Media", "Piece", "Unknown", "family_of"]
