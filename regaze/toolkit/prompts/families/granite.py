"""Granite 4 Vision: LLaVA-NeXT's layout, with several patches per token."""

from __future__ import annotations

from fractions import Fraction

from regaze.toolkit.prompts.families.llava_next import LlavaNext


class Granite4Vision(LlavaNext):
    """Granite 4 Vision. Image features are added to the hidden states of several layers."""

    name = "granite4-vision"
    model_types = ("granite4_vision",)

    @property
    def _side(self) -> int:
        return int(super()._side * Fraction(self.config.downsample_rate or 1))
