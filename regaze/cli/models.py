"""From --model, --device and --dtype to a wrapped model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from regaze.cli import console
from regaze.errors import InputError
from regaze.toolkit import Gaze, load, wrap
from regaze.toolkit.load import default_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(name: str, device: str | None, dtype: str | None, seed: int | None = None) -> Gaze:
    """Load and wrap a model, without output from libraries.

    Args:
        seed: of the random numbers that are drawn afterwards.

    Raises:
        InputError: a device that is not there, an unknown dtype.
        ModelNotFoundError: transformers cannot load the model.
    """
    options: dict[str, Any] = {"device_map": _device(device)}
    if dtype is not None:
        options["dtype"] = _dtype(dtype)
    quiet_libraries()
    with console.status(f"loading {name}"):
        gaze = wrap(*load(name, **options))
    if seed is not None:
        torch.manual_seed(seed)
    return gaze


def quiet_libraries() -> None:
    """No loading bars, retries or advice from libraries; their errors are still raised."""
    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate)(\.|$)")


def _device(name: str | None) -> str:
    if name is None:
        return default_device()
    if name == "auto":
        return name
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try cpu") from error
    return name


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(f"dtype {name!r}: expected float32, bfloat16 or float16")
    return DTYPES[name]
