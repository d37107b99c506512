"""Which model it is, whatever it is called: a hash of weights, configuration and processor as they are in
memory.

A name says little: folders are overwritten, hub revisions move, adapters are merged, weights are patched in
place. Reading every weight once costs seconds for a model of 7 B parameters.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regaze.eval.run.requests import digest
from regaze.toolkit.model import compat

#: Values kept of each weight beside the sum of its bits, which does not see their order.
_SAMPLES = 1024
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(gaze: Any, name: str) -> str:
    """Hash of a wrapped model; of its name alone where there is no transformers model inside."""
    model = getattr(gaze, "model", None)
    if not isinstance(model, PreTrainedModel):
        return digest(["model", name])
    configurations = [model.config, getattr(model, "generation_config", None)]
    return digest(
        [
            type(model).__name__,
            [_plain(each.to_dict()) for each in configurations if each is not None],
            compat.current_attention(model),
            model.device.type,
            _processor(gaze.processor),
            [_weight(name, tensor) for name, tensor in model.state_dict().items()],
        ]
    )


def describe(gaze: Any, name: str) -> dict[str, Any]:
    """What results say of a model: name, hash, class, dtype, devices."""
    model = getattr(gaze, "model", None)
    described: dict[str, Any] = {"name": name, "fingerprint": fingerprint(gaze, name)}
    if isinstance(model, PreTrainedModel):
        devices = sorted({str(parameter.device) for parameter in model.parameters()})
        described |= {
            "class": type(model).__name__,
            "revision": getattr(model.config, "_commit_hash", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": compat.current_attention(model),
            "devices": devices,
        }
    return described


def _weight(name: str, tensor: Tensor) -> list[Any]:
    """Name, dtype, shape, the sum of its bits read as whole numbers, and some of these."""
    about: list[Any] = [name, str(tensor.dtype), list(tensor.shape)]
    if tensor.is_meta or not tensor.numel():  # offloaded: its bits are not here to be read
        return about
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    try:
        bits = tensor.detach().reshape(-1).view(_WHOLE[tensor.element_size()])
    except (RuntimeError, NotImplementedError, KeyError):  # packed by a quantiser: all there is, is a print
        return [*about, repr(tensor)]
    some = bits[:: max(1, len(bits) // _SAMPLES)].cpu()
    return [*about, int(bits.sum(dtype=torch.int64)), digest(some.tolist())]


def _processor(processor: Any) -> Any:
    """What turns a question into tokens and pixels."""
    if processor is None:
        return None
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text: Any = [type(tokenizer).__name__, len(tokenizer)]
    if backend is not None:  # padding and truncation are those of the last call, and no part of it
        known = json.loads(backend.to_str())
        text = digest({key: known[key] for key in known if key not in ("padding", "truncation")})
    images = getattr(processor, "image_processor", None)
    return [
        type(processor).__name__,
        getattr(processor, "chat_template", None),
        text,
        None if images is None else _plain(images.to_dict()),
    ]


def _plain(configuration: dict[str, Any]) -> Any:
    """As JSON values, without what does not change an answer."""
    kept = {key: value for key, value in configuration.items() if key != "_name_or_path"}
    return json.loads(json.dumps(kept, sort_keys=True, default=str))
