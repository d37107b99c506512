"""Vision towers used alone: tiny random models of each kind."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModel

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 42,
    "patch_size": 14,
    "initializer_range": 0.2,
}
#: What comes before the patches of each tower.
TOWERS = {
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
    "aimv2_vision_model": 0,
    "internvl_vision": 1,
    "vit": 1,
    "deit": 2,
    "vit_msn": 1,
    "beit": 1,
    "ijepa": 0,
    "dinov2": 1,
    "dinov2_with_registers": 5,
    "dinov3_vit": 4,
}


def tower(name: str):
    torch.manual_seed(0)
    changes = {"num_register_tokens": 3} if name == "dinov3_vit" else {}
    return AutoModel.from_config(AutoConfig.for_model(name, **SMALL, **changes)).eval()
