"""The fingerprint of a model: a hash of weights, configuration and processor as they are in memory.

A model's name is not enough: folders are overwritten, hub revisions move, adapters are merged, weights are
patched in place. Reading every weight once takes seconds for a model with 7 B parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regaze.eval.run.requests import digest
from regaze.reading import hash_file
from regaze.serving.common.release import installed_release
from regaze.serving.frontend.offline import OfflineEngine
from regaze.toolkit.load import model_source
from regaze.toolkit.model import compat

#: Options of an engine that decide how much it does at once, and no answer.
_SPEED = {
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "cpu_offload_gb"),
    *("max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "enable_chunked_prefill"),
    *("block_size", "disable_log_stats", "max_model_len", "limit_mm_per_prompt"),
}
#: Of a file of weights.
_MAX_BYTES = 2**40
#: Values of each weight that are hashed besides the sum of its bits, which does not depend on their order.
_SAMPLES = 1024
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def model_fingerprint(gaze: Any, name: str) -> str:
    """Hash of a wrapped model; of the name alone where there is no transformers model inside."""
    model = getattr(gaze, "model", None)
    if not isinstance(model, PreTrainedModel):
        return digest(["model", name])
    configurations = [model.config, getattr(model, "generation_config", None)]
    return digest(
        [
            type(model).__name__,
            [_json_values(each.to_dict()) for each in configurations if each is not None],
            compat.current_attention(model),
            model.device.type,
            _processor_state(gaze.processor),
            *([template_args] if (template_args := gaze.reader.template_args) else []),
            [_weight_state(name, tensor) for name, tensor in model.state_dict().items()],
        ]
    )


def describe_model(gaze: Any, name: str) -> dict[str, Any]:
    """The model as results.json describes it: name, fingerprint, class, dtype, devices; the bed's base."""
    model = getattr(gaze, "model", None)
    description: dict[str, Any] = {"name": name, "fingerprint": model_fingerprint(gaze, name)}
    if isinstance(model, PreTrainedModel):
        devices = sorted({str(parameter.device) for parameter in model.parameters()})
        description |= {
            "class": type(model).__name__,
            "revision": getattr(model.config, "_commit_hash", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": compat.current_attention(model),
            "devices": devices,
        }
        if base := getattr(compat.text_config(model), "bed_base", None):
            description["base"] = base
        if gaze.reader.template_args:
            description["template_args"] = gaze.reader.template_args
    return description


def describe_engine(engine: OfflineEngine, name: str) -> dict[str, Any]:
    """The same of an engine of vLLM: its release and options, and the files of the model, count.

    Options that say how fast it runs are left out of the fingerprint.
    """
    gaze, options = engine.gaze, engine.arguments
    about = {
        "name": "vllm",
        "version": installed_release(),
        "options": options,
        "environment": engine.environment,
    }
    decisive = {key: value for key, value in options.items() if key not in _SPEED}
    parts = [
        *("vllm", installed_release(), engine.dtype, "cuda" if torch.cuda.is_available() else "cpu"),
        json.loads(json.dumps(decisive, sort_keys=True, default=str)),
        engine.environment,
        _processor_state(gaze.processor),
        gaze.reader.template_args,
        _files_state(model_source(engine.model), gaze.model.config),
    ]
    return {
        "name": name,
        "fingerprint": digest(parts),
        "class": type(gaze.model).__name__,
        "revision": getattr(gaze.model.config, "_commit_hash", None),
        "dtype": engine.dtype,
        "engine": about,
        **({"template_args": gaze.reader.template_args} if gaze.reader.template_args else {}),
    }


def _files_state(source: str, config: Any) -> Any:
    """What the files of a model are known by: the commit of a hub's model, else hashes of their bytes."""
    if not Path(source).is_dir():
        return [source, getattr(config, "_commit_hash", None)]
    files = sorted(path for path in Path(source).iterdir() if path.is_file() and path.name[0] != ".")
    return [[path.name, hash_file(path, max_bytes=_MAX_BYTES)] for path in files]


def _weight_state(name: str, tensor: Tensor) -> list[Any]:
    """Name, dtype, shape, the sum of the bits read as integers, and a hash of some of these integers."""
    state: list[Any] = [name, str(tensor.dtype), list(tensor.shape)]
    if tensor.is_meta or not tensor.numel():  # offloaded: there are no bits to read
        return state
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    try:
        bits = tensor.detach().reshape(-1).view(_INTEGERS[tensor.element_size()])
    except (RuntimeError, NotImplementedError, KeyError):  # packed by a quantiser: only its text can be read
        return [*state, repr(tensor)]
    samples = bits[:: max(1, len(bits) // _SAMPLES)].cpu()
    return [*state, int(bits.sum(dtype=torch.int64)), digest(samples.tolist())]


def _processor_state(processor: Any) -> Any:
    """Everything that turns a question into tokens and pixels."""
    if processor is None:
        return None
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text: Any = [type(tokenizer).__name__, len(tokenizer)]
    if backend is not None:  # padding and truncation only hold the arguments of the last call
        state = json.loads(backend.to_str())
        text = digest({key: state[key] for key in state if key not in ("padding", "truncation")})
    images = getattr(processor, "image_processor", None)
    return [
        type(processor).__name__,
        getattr(processor, "chat_template", None),
        text,
        None if images is None else _json_values(images.to_dict()),
    ]


def _json_values(configuration: dict[str, Any]) -> Any:
    """As JSON values, without the path, which does not change an answer; NaN and infinities by name."""
    values = {key: value for key, value in configuration.items() if key != "_name_or_path"}
    return json.loads(json.dumps(values, sort_keys=True, default=str), parse_constant=str)
