"""Granite 4 Vision: LLaVA-NeXT's layout, with several patches a token."""

from __future__ import annotations

from fractions import Fraction

from regaze.toolkit.prompts.families.llava_next import LlavaNext


class Granite4Vision(LlavaNext):
    """Image tokens have no embedding of their own: features are added to theirs in several layers."""

    name = "granite4-vision"
    model_types = ("granite4_vision",)

    @property
    def _side(self) -> int:
        return int(super()._side * Fraction(self.config.downsample_rate or 1))
