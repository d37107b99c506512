"""`load`: a model and its processor from the hub, a folder, or of those that the package ships."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
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

from regaze.bed import assembly as bed
from regaze.demo.shipped import MODEL_DIR, MODEL_NAMES
from regaze.errors import BadParameterError, InputError, ModelNotFoundError, RegazeError
from regaze.names import either, near_names
from regaze.reading import kind_of, parse_json, read_text
from regaze.toolkit.model.compat import GenerativeModel

#: Files of a folder that decide what is built.
_SMALL_FILES = frozenset({"config.json", "generation_config.json", "processor_config.json"})
_MAX_LAYERS = 10_000
#: Arguments that say where the files are, for configuration and processor, too.
_SHARED = ("revision", "token", "subfolder", "local_files_only")


def load(name_or_path: str, *, trust_remote_code: bool = False, **kwargs: Any) -> tuple[GenerativeModel, Any]:
    """Load a vision-language or language model, ready to generate.

    Args:
        name_or_path: "demo" for the bundled model, "bed" for the test bed (both in fp32 unless `dtype` says
            otherwise), a hub id, or a folder.
        trust_remote_code: run code that comes with the model.
        kwargs: passed to `from_pretrained` of the model (dtype, device_map, quantization_config, revision).
            The bed takes `base` besides, a folder or hub id of its language model, and `weights`, the folder
            of another training; see `regaze.bed.assembly.assemble`.

    Returns:
        The model in eval mode and its processor (for a text model: its tokenizer).

    Raises:
        ModelNotFoundError: transformers cannot find or read the model.
        BadParameterError: the model does not take one of `kwargs`.
    """
    if name_or_path == "bed":
        with _refusing(name_or_path, kwargs):
            assembled: tuple[Any, Any] = bed.assemble(**kwargs)
        return assembled
    source = model_source(name_or_path)
    if name_or_path == "demo":
        # It ships in bf16, which does not speed up small matrices on a CPU.
        kwargs.setdefault("dtype", torch.float32)
    shared: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        **{name: kwargs[name] for name in _SHARED if name in kwargs},
    }
    with _refusing(name_or_path, kwargs):
        config = AutoConfig.from_pretrained(source, **shared)
        model_class, processor_class = classes_for(config)
        processor = processor_class.from_pretrained(source, **shared)
        model = model_class.from_pretrained(source, trust_remote_code=trust_remote_code, **kwargs)
    return model.eval(), processor


def default_device() -> str:
    """The device that models run on where nobody says so: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def load_without_weights(
    name_or_path: str, *, trust_remote_code: bool = False, **kwargs: Any
) -> tuple[PreTrainedModel, Any]:
    """As `load`, with the model on the "meta" device; the processor is None where there is none.

    Args:
        name_or_path, trust_remote_code: as of `load`.
        kwargs: where the files are: revision, token, subfolder, local_files_only.

    Raises:
        ModelNotFoundError: transformers finds no configuration, or cannot build a model from it.
    """
    source, shared = model_source(name_or_path), {"trust_remote_code": trust_remote_code, **kwargs}
    with _refusing(name_or_path, {}):
        config = AutoConfig.from_pretrained(source, **shared)
        model_class, processor_class = classes_for(config)
        with torch.device("meta"):
            model = model_class.from_config(config, trust_remote_code=trust_remote_code)
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


def model_source(name_or_path: str) -> str:
    """What transformers finds a model by: a folder, or a hub id, of a model in the cache as spelt there."""
    if name_or_path in MODEL_NAMES:
        return str(bed.MODEL_DIR if name_or_path == "bed" else MODEL_DIR)
    if os.path.exists(name_or_path):
        return name_or_path
    spelt = {
        name.casefold(): name for name in cached_models()
    }  # ids of the hub have no capitals of their own
    return spelt.get(name_or_path.casefold(), name_or_path)


def cached_models() -> list[str]:
    """The ids of the models that the hub's cache holds, in alphabetical order."""
    folders = Path(HF_HUB_CACHE).glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


@contextmanager
def _refusing(name_or_path: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Turn what transformers raises for missing or damaged models and wrong options into our errors."""
    try:
        _check_files(model_source(name_or_path))
        yield
    except RegazeError:
        raise
    except Exception as error:  # of a damaged file it may be any
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is not None and unknown[1] in kwargs:
            raise BadParameterError(
                f"cannot load model {name_or_path!r} with {unknown[1]}: {_reason(error)}"
            ) from error
        near = list(map(repr, near_names(name_or_path, [*MODEL_NAMES, *cached_models()])))
        raise ModelNotFoundError(
            f'cannot load model {name_or_path!r} ("demo", "bed", a hub id or a folder is expected): '
            + _reason(error)
            + (f" Did you mean {either(near)}?" if near else "")
        ) from error


def _check_files(source: str) -> None:
    """Raise InputError for a model's folder with files that cannot be read, or that would take for ever."""
    if not os.path.isdir(source):
        return
    for path in sorted(Path(source).iterdir()):
        kind = None if path.is_dir() else kind_of(path.stat().st_mode)
        if kind is not None:
            raise InputError(f"{path} cannot be read: it is {kind}")
        if path.name in _SMALL_FILES:
            content = parse_json(read_text(path), path)
            for name, value in _numbers(content):
                if "layer" in name and value > _MAX_LAYERS:
                    raise InputError(f"{path}: {name} is {value}, but no model has over {_MAX_LAYERS} layers")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in a JSON value, with the names that they have."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _numbers(entry, key)
    elif isinstance(value, list):
        for entry in value:
            yield from _numbers(entry, name)
    elif isinstance(value, int):
        yield name, value


def _reason(error: Exception) -> str:
    """First line of the message of transformers, which can be long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
