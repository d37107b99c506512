"""`load`: a model and its processor from the hub, a folder, or the bundled demo."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from regaze.errors import BadParameterError, ModelNotFoundError


def load(name_or_path: str, *, trust_remote_code: bool = False, **kwargs: Any) -> tuple[PreTrainedModel, Any]:
    """Load a vision-language or language model, ready to generate.

    Args:
        name_or_path: "demo" for the bundled model (in fp32 unless `dtype` says otherwise), a hub id, or a
            folder.
        trust_remote_code: run code that comes with the model; off unless asked for.
        kwargs: passed to `from_pretrained` of the model (dtype, device_map, quantization_config, revision).

    Returns:
        The model in eval mode and its processor (for a text model: its tokenizer).

    Raises:
        ModelNotFoundError: transformers cannot find or read the model.
        BadParameterError: the model does not take one of `kwargs`.
    """
    source = name_or_path
    if source == "demo":
        from regaze.demo import MODEL_DIR

        source = str(MODEL_DIR)
        # It ships in bf16, which small matrices on a CPU do not profit from.
        kwargs.setdefault("dtype", torch.float32)
    shared: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        **{k: kwargs[k] for k in ("revision", "token") if k in kwargs},
    }
    try:
        config = AutoConfig.from_pretrained(source, **shared)
        is_multimodal = getattr(config, "vision_config", None) is not None
        model_class = AutoModelForImageTextToText if is_multimodal else AutoModelForCausalLM
        processor_class = AutoProcessor if is_multimodal else AutoTokenizer
        processor = processor_class.from_pretrained(source, **shared)
        model = model_class.from_pretrained(source, trust_remote_code=trust_remote_code, **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelNotFoundError(
            f'cannot load model {name_or_path!r} ("demo", a hub id or a folder is expected): {_reason(error)}'
        ) from error
    except TypeError as error:  # from_pretrained hands what it does not know to the model's constructor
        given = ", ".join(kwargs) or "no options"
        raise BadParameterError(
            f"cannot load model {name_or_path!r} with {given}: {_reason(error)}"
        ) from error
    return model.eval(), processor


def _reason(error: Exception) -> str:
    """First line of what transformers says, which can be long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
