"""The demo model as a folder that vLLM reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from regaze.demo.shipped import MODEL_DIR
from regaze.reading import StrPath
from regaze.writing import make_folder, replacing

#: vLLM is given a folder, and of the bed there is none before it is loaded.
NO_BED = "vLLM reads folders, and the bed is put together when it is loaded: transformers runs it"
#: Files beside the weights.
_COPIED = (".json", ".jinja")


def export_demo(folder: StrPath) -> Path:
    """Write the demo model into `folder` with the names of weights that vLLM looks for.

    Transformers saves the vision tower without `vision_model.`, and all parts below one `model.`; vLLM 0.32
    knows the names of the published LLaVA checkpoints.
    """
    target = make_folder(folder)
    weights = {known_name(name): tensor.clone() for name, tensor in load_file(MODEL_DIR / _WEIGHTS).items()}
    for file in sorted(MODEL_DIR.iterdir()):
        if file.suffix in _COPIED:
            with replacing(target / file.name) as partial:
                shutil.copyfile(file, partial)
    with replacing(target / _WEIGHTS) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
    return target


_WEIGHTS = "model.safetensors"


def known_name(name: str) -> str:
    """The name of a weight in published LLaVA checkpoints."""
    name = name.removeprefix("model.")
    for part, inner in (("vision_tower.", "vision_model."), ("language_model.", "model.")):
        rest = name.removeprefix(part)
        if rest != name and not rest.startswith((inner, "lm_head")):
            return part + inner + rest
    return name
