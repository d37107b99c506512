"""`load`: a model and its processor from the hub, a folder, or the bundled demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from regaze.demo.shipped import MODEL_DIR
from regaze.errors import BadParameterError, ModelNotFoundError


def load(name_or_path: str, *, trust_remote_code: bool = False, **kwargs: Any) -> tuple[PreTrainedModel, Any]:
    """Load a vision-language or language model, ready to generate.

    Args:
        name_or_path: "demo" for the bundled model (in fp32 unless `dtype` says otherwise), a hub id, or a
            folder.
        trust_remote_code: run code that comes with the model.
        kwargs: passed to `from_pretrained` of the model (dtype, device_map, quantization_config, revision).

    Returns:
        The model in eval mode and its processor (for a text model: its tokenizer).

    Raises:
        ModelNotFoundError: transformers cannot find or read the model.
        BadParameterError: the model does not take one of `kwargs`.
    """
    source = _source(name_or_path)
    if name_or_path == "demo":
        # It ships in bf16, which does not speed up small matrices on a CPU.
        kwargs.setdefault("dtype", torch.float32)
    shared: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        **{k: kwargs[k] for k in ("revision", "token") if k in kwargs},
    }
    with _refusing(name_or_path, kwargs):
        config = AutoConfig.from_pretrained(source, **shared)
        model_class, processor_class = classes_for(config)
        processor = processor_class.from_pretrained(source, **shared)
        model = model_class.from_pretrained(source, trust_remote_code=trust_remote_code, **kwargs)
    return model.eval(), processor


def load_without_weights(
    name_or_path: str, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, Any]:
    """As `load`, with the model on the "meta" device; the processor is None where there is none.

    Raises:
        ModelNotFoundError: transformers finds no configuration, or cannot build a model from it.
    """
    source, shared = _source(name_or_path), {"trust_remote_code": trust_remote_code}
    with _refusing(name_or_path, {}):
        config = AutoConfig.from_pretrained(source, **shared)
        model_class, processor_class = classes_for(config)
        with torch.device("meta"):
            model = model_class.from_config(config, **shared)
    try:
        processor = processor_class.from_pretrained(source, **shared)
    except Exception:  # a folder with a configuration alone; code that needs the processor says so
        processor = None
    return model.eval(), processor


def classes_for(config: PreTrainedConfig) -> tuple[Any, Any]:
    """The auto classes of a configuration's model and of its processor."""
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText, AutoProcessor
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        return AutoModelForSpeechSeq2Seq, AutoProcessor
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "vision_config", None) is None:
        return AutoModelForCausalLM, AutoTokenizer
    return AutoModelForImageTextToText, AutoProcessor  # remote code, which the mapping does not know


def _source(name_or_path: str) -> str:
    return str(MODEL_DIR) if name_or_path == "demo" else name_or_path


@contextmanager
def _refusing(name_or_path: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Turn what transformers raises for missing models and wrong options into our errors."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelNotFoundError(
            f'cannot load model {name_or_path!r} ("demo", a hub id or a folder is expected): {_reason(error)}'
        ) from error
    except TypeError as error:  # from_pretrained hands what it does not know to the model's constructor
        given = ", ".join(kwargs) or "no options"
        raise BadParameterError(
            f"cannot load model {name_or_path!r} with {given}: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """First line of the message of transformers, which can be long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
