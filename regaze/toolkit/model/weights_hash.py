"""A hash of a model as it is in memory: whatever was measured on it belongs to these weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def hash_of(*parts: Any) -> str:
    """Hash of JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_hash(model: PreTrainedModel) -> str:
    """Hash of a model's configuration and weights; of each weight the sum of its bits counts."""
    config = {
        k: v for k, v in model.config.to_dict().items() if k not in ("transformers_version", "_name_or_path")
    }
    # Integer sums: a floating-point sum depends on the number of threads.
    sums = [
        (name, int(_bits(p).sum(dtype=torch.int64))) for name, p in model.named_parameters() if not p.is_meta
    ]
    return hash_of(json.loads(json.dumps(config, default=str)), sums)


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(sizes[tensor.element_size()])
