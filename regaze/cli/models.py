"""From --model, --model-arg, --device and --dtype to a wrapped model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from regaze.arguments import parse_typed, parse_untyped, split_assignments
from regaze.cli import console
from regaze.cli.groups import LoadingOptions, ModelOptions
from regaze.errors import BadParameterError, InputError
from regaze.names import find_name
from regaze.toolkit import Gaze, load, wrap
from regaze.toolkit.load import default_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: What --model-arg takes: arguments of `from_pretrained` that can be written on a command line, and the bed's
#: own.
_ARGUMENTS: dict[str, Any] = {
    "revision": str,
    "subfolder": str,
    "variant": str,
    "dtype": Literal["float32", "bfloat16", "float16"],
    "attn_implementation": str,
    "device_map": str | dict[str, int | str],
    "max_memory": dict[str, str],
    "offload_folder": str,
    "load_in_4bit": bool,
    "load_in_8bit": bool,
    "local_files_only": bool,
    "trust_remote_code": bool,
    "base": str,
    "weights": str,
}
#: Those of them that say where the files are, for everything that is loaded from there.
_PLACES = ("revision", "subfolder", "local_files_only", "trust_remote_code")


def load_model(
    name: str,
    device: str | None,
    dtype: str | None,
    seed: int | None = None,
    arguments: Sequence[str] | None = None,
    template: Sequence[str] | None = None,
) -> Gaze:
    """Load and wrap a model, without output from libraries.

    Args:
        seed: of the random numbers that are drawn afterwards.
        arguments: texts NAME=VALUE, see `model_arguments`.
        template: texts NAME=VALUE, variables of the chat template.

    Raises:
        InputError: a device that is not there, an unknown dtype, a quantisation whose library is missing.
        ModelNotFoundError: transformers cannot load the model.
        UnknownParameterError, BadParameterError: see `model_arguments`.
    """
    options = loading_options(model_arguments(arguments), device, dtype)
    template_args = template_arguments(template)
    quiet_libraries()
    with console.status(f"loading {name}"):
        gaze = wrap(*load(name, **options), template_args=template_args)
    if seed is not None:
        torch.manual_seed(seed)
    return gaze


def load_chosen(options: ModelOptions, seed: int | None = None) -> Gaze:
    """`load_model` with the options of a command."""
    return load_named(options.model, options, seed)


def load_named(name: str, how: LoadingOptions, seed: int | None = None) -> Gaze:
    """`load_model` of a model that a command has as its argument."""
    return load_model(name, how.device, how.dtype, seed, how.model_arg, how.template_arg)


def model_arguments(texts: Sequence[str] | None) -> dict[str, Any]:
    """The values of --model-arg by name, each of the type that `from_pretrained` takes.

    Raises:
        UnknownParameterError: an argument that cannot be given here.
        BadParameterError: a text without "=", or a value of another type.
    """
    return parse_typed(split_assignments(texts or (), "--model-arg"), _ARGUMENTS, "--model-arg ")


def template_arguments(texts: Sequence[str] | None) -> dict[str, Any]:
    """The values of --template-arg by name. Raises BadParameterError for a text without "="."""
    given = split_assignments(texts or (), "--template-arg")
    return {key: parse_untyped(text) for key, text in given.items()}


def places(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of the arguments those that also a tokenizer or a configuration alone is loaded with."""
    return {name: arguments[name] for name in _PLACES if name in arguments}


def loading_options(arguments: Mapping[str, Any], device: str | None, dtype: str | None) -> dict[str, Any]:
    """Keyword arguments of `regaze.load`. Raises InputError and BadParameterError, see `load_model`."""
    for option, given, name in (("--device", device, "device_map"), ("--dtype", dtype, "dtype")):
        if given is not None and name in arguments:
            raise BadParameterError(f"--model-arg {name}: {option} says it, too; give one of the two")
    options = {"device_map": arguments.get("device_map") or _device(device), **arguments}
    if (chosen := arguments.get("dtype", dtype)) is not None:
        options["dtype"] = _dtype(chosen)
    four, eight = (options.pop(f"load_in_{bits}bit", False) for bits in (4, 8))
    if four or eight:
        options["quantization_config"] = _quantised(four, eight, options.get("dtype", torch.bfloat16))
    if "max_memory" in options:  # numbers of devices are numbers there, and texts in JSON
        options["max_memory"] = {
            int(key) if key.isdecimal() else key: value for key, value in options["max_memory"].items()
        }
    return options


def _quantised(four: bool, eight: bool, dtype: torch.dtype) -> BitsAndBytesConfig:
    if four and eight:
        raise BadParameterError("--model-arg load_in_4bit and load_in_8bit: give one of the two")
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"--model-arg load_in_{4 if four else 8}bit: bitsandbytes is not installed; "
            "pip install 'regaze[quantization]'"
        )
    return BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=eight, bnb_4bit_compute_dtype=dtype)


def quiet_libraries() -> None:
    """No loading bars, retries or advice from libraries; their errors are still raised."""
    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate)(\.|$)")


def _device(name: str | None) -> str:
    if name is None:
        return default_device()
    name = name.lower()
    if name == "auto":
        return name
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try cpu") from error
    return name


def _dtype(name: str) -> torch.dtype:
    found = find_name(name, DTYPES)
    if found is None:
        raise InputError(f"dtype {name!r}: expected float32, bfloat16 or float16")
    return DTYPES[found]
