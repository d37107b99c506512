"""Model families: one small file each, registered here and nowhere else."""

from __future__ import annotations

from typing import Any

from regaze.toolkit.prompts.families.aria import Aria
from regaze.toolkit.prompts.families.base import Family, Layout, MediaInputs, config_image_token_id
from regaze.toolkit.prompts.families.blip import Blip2, InstructBlip
from regaze.toolkit.prompts.families.cross_attention import Florence2, Mllama
from regaze.toolkit.prompts.families.discrete_tokens import Chameleon, Emu3
from regaze.toolkit.prompts.families.gemma import Gemma3, Gemma4, PaliGemma
from regaze.toolkit.prompts.families.granite import Granite4Vision
from regaze.toolkit.prompts.families.idefics import Idefics2, Idefics3
from regaze.toolkit.prompts.families.kimi import KimiK25, PaddleOcrVL
from regaze.toolkit.prompts.families.kosmos import Kosmos2, Kosmos2_5
from regaze.toolkit.prompts.families.lfm2_vl import Lfm2Vl
from regaze.toolkit.prompts.families.llama4 import Llama4
from regaze.toolkit.prompts.families.llava import FastVLM, Llava, VideoLlava
from regaze.toolkit.prompts.families.llava_next import LlavaNext, LlavaNextVideo, LlavaOnevision
from regaze.toolkit.prompts.families.minicpmv import MiniCPMV
from regaze.toolkit.prompts.families.molmo2 import Molmo2
from regaze.toolkit.prompts.families.ovis2 import Ovis2
from regaze.toolkit.prompts.families.phi4 import Phi4
from regaze.toolkit.prompts.families.pixtral import Apertus, LightOnOcr, Pixtral
from regaze.toolkit.prompts.families.qwen_vl import Glm4v, HyV4, QwenOmni, QwenVL, VideoLlama3
from regaze.toolkit.prompts.families.tiles import Cohere, GotOcr2, InternVL, PerceptionLM
from regaze.toolkit.prompts.families.unknown import GuessedFamily, UnknownFamily
from regaze.toolkit.prompts.families.whisper import Whisper

FAMILIES: tuple[type[Family], ...] = (
    Apertus,
    Aria,
    Blip2,
    Chameleon,
    Cohere,
    Emu3,
    FastVLM,
    Florence2,
    Gemma3,
    Gemma4,
    Glm4v,
    GotOcr2,
    Granite4Vision,
    HyV4,
    Idefics2,
    Idefics3,
    InstructBlip,
    InternVL,
    KimiK25,
    Kosmos2,
    Kosmos2_5,
    Lfm2Vl,
    LightOnOcr,
    Llama4,
    Pixtral,  # before Llava: it takes LLaVA's configurations with a Pixtral tower
    Llava,
    LlavaNext,
    LlavaNextVideo,
    LlavaOnevision,
    MiniCPMV,
    Mllama,
    Molmo2,
    Ovis2,
    PaddleOcrVL,
    PaliGemma,
    PerceptionLM,
    Phi4,
    QwenOmni,
    QwenVL,
    VideoLlama3,
    VideoLlava,
    Whisper,
)


def family_of(config: Any) -> Family:
    """The family of a model configuration; text-only models need no entry."""
    for family in FAMILIES:
        if family.matches(config):
            return family(config)
    if config_image_token_id(config) is not None:
        return GuessedFamily(config)
    return UnknownFamily(config) if getattr(config, "vision_config", None) is not None else Family(config)


__all__ = ["FAMILIES", "Family", "GuessedFamily", "Layout", "MediaInputs", "UnknownFamily", "family_of"]
