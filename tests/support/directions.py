"""Random directions for methods that are fitted: of the random LLaVA's and the demo's shape, and others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regaze.interventions.fitting import Directions
from regaze.interventions.fitting.direction_files import FORMAT, VERSION
from regaze.interventions.fitting.directions import model_shape, short_name

LLAVA: dict[str, Any] = {"name": "LlavaForConditionalGeneration", "layers": 6, "width": 192}
DEMO: dict[str, Any] = {**LLAVA, "name": "demo"}


def about(model: Any) -> dict[str, Any]:
    """The description of a model in a file of directions."""
    return {"name": short_name(model), **model_shape(model)}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def directions(method: str, model: dict[str, Any], tensors: dict[str, Tensor], **kinds: str) -> Directions:
    """These tensors as the result of a fit; `kinds` of those that are no vectors."""
    described = {
        name: {"kind": kinds.get(name, "vectors"), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }
    header = {
        "format": FORMAT,
        "version": VERSION,
        "method": method,
        "model": {"hash": "0", **model},
        "data": {"source": "none", "sha256": "0", "pairs": 3, "images": []},
        "settings": {},
        "prompt": "",
        "dtype": "float32",
        "versions": {},
        "report": {},
        "tensors": described,
    }
    return Directions(tensors, header)


def nullu_directions(model: dict[str, Any] = LLAVA, rank: int = 8, seed: int = 0) -> Directions:
    basis = torch.linalg.qr(normal(model["layers"], model["width"], rank, seed=seed)).Q.mT.contiguous()
    return directions("nullu", model, {"basis": basis}, basis="basis")


def ict_directions(
    model: dict[str, Any] = LLAVA,
    heads: tuple[int, int] = (6, 32),
    levels: int = 2,
    seed: int = 0,
    **settings: Any,
) -> Directions:
    tensors, kinds = {}, {}
    for number, level in enumerate(("image", "object")[:levels]):
        tensors[level] = normal(model["layers"], *heads, seed=seed + number)
        tensors[f"{level}_score"] = normal(model["layers"], heads[0], seed=seed + 7 + number).sigmoid()
        kinds[f"{level}_score"] = "scores"
    found = directions("ict", model, tensors, **kinds)
    found.about["settings"] = settings
    return found


def vti_directions(model: dict[str, Any] = LLAVA, vision: bool = True, seed: int = 0) -> Directions:
    tensors = {"text": normal(model["layers"], model["width"], seed=seed)}
    if vision:
        tensors["vision"] = normal(4, 65, 192, seed=seed + 1)
    return directions("vti", model, tensors)


def pti_directions(
    model: dict[str, Any] = LLAVA, heads: tuple[int, int] = (2, 32), seed: int = 0
) -> Directions:
    names = ("image_keys", "image_values", "text_keys", "text_values")
    tensors = {name: normal(model["layers"], *heads, seed=seed + n) for n, name in enumerate(names)}
    return directions("pti", model, tensors)
