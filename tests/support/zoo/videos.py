"""Tiny models of the zoo with the video processors and templates that they have in reality."""

from __future__ import annotations

from typing import Any

from zoo import llava_like, qwen
from zoo.without_torchvision import video_processor

import regaze

_SMALL = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16}
_SQUARE = {"size": {"height": 56, "width": 56}, "do_center_crop": False}
_VISION = "<|vision_start|><|video_pad|><|vision_end|>"
#: name -> (folder of its module, class, settings, what stands for a video in a prompt)
FAMILIES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLVideoProcessor", {"size": _SMALL}, _VISION),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLVideoProcessor", {"size": _SMALL}, "<|video_pad|>"),
    "video_llava": ("video_llava", "VideoLlavaVideoProcessor", _SQUARE, "<video>\n"),
    "llava_next_video": ("llava_next_video", "LlavaNextVideoVideoProcessor", _SQUARE, "<video>\n"),
}
_IMAGE = "{% if part['type'] == 'image' %}"


def gaze_with_videos(name: str) -> regaze.Gaze:
    """A handle on a tiny random model that takes videos."""
    entries = {entry.name: entry for entry in (*qwen.ENTRIES, *llava_like.ENTRIES)}
    model, processor = entries[name].build()
    module, cls, settings, text = FAMILIES[name]
    path = f"transformers.models.{module}.video_processing_{module}"
    processor.video_processor = video_processor(path, cls, **settings)
    before = "{% if part['type'] == 'video' %}" + text + "{% elif part['type'] == 'image' %}"
    processor.chat_template = processor.chat_template.replace(_IMAGE, before)
    return regaze.wrap(model, processor)
