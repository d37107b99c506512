"""Model families: one small file each, registered here and nowhere else."""

from __future__ import annotations

from typing import Any

from regaze.toolkit.families.base import Family, UnknownVisionFamily
from regaze.toolkit.families.llava import Llava

FAMILIES: tuple[type[Family], ...] = (Llava,)


def family_of(config: Any) -> Family:
    """The family of a model configuration; text-only models need no entry."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family(config)
    has_vision = getattr(config, "vision_config", None) is not None
    return UnknownVisionFamily(config) if has_vision else Family(config)


__all__ = ["FAMILIES", "Family", "UnknownVisionFamily", "family_of"]
