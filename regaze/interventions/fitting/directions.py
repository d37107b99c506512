"""`Directions`: what a fit gives, its file, and random vectors of the same lengths as a control."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic_core import core_schema
from torch import Tensor
from transformers import PreTrainedModel

from regaze.caching import cached_property
from regaze.demo.shipped import MODEL_DIR
from regaze.errors import BadParameterError, GuessWarning
from regaze.interventions.fitting import direction_files
from regaze.reading import StrPath
from regaze.toolkit.model import compat


class Directions:
    """Vectors that were fitted on one model, by name; fp32 on the CPU. It is not changed after it was made.

    Attributes:
        about: the header: method, model, data, settings, prompt, versions and a report of the fit
            (`direction_files.Header`).
        path: the file that it was read from or saved to; None: no file.
    """

    about: dict[str, Any]

    def __init__(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: str | None = None):
        self._tensors = {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}
        self.about, self.path = dict(about), path

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    @cached_property
    def digest(self) -> str:
        """Hash of the vectors."""
        hashed = hashlib.sha256()
        for name, tensor in sorted(self._tensors.items()):
            hashed.update(f"{name} {list(tensor.shape)}".encode())
            hashed.update(tensor.contiguous().numpy().tobytes())
        return hashed.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Directions) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __deepcopy__(self, _: Any) -> Directions:
        return self

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self._tensors.items())
        return f"Directions({self.about['method']}, {shapes})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.is_instance_schema(cls)

    # Files --------------------------------------------------------------------------------------------

    def save(self, path: StrPath) -> None:
        """Write the file that `load` reads. Raises InputError where it cannot be written."""
        direction_files.write(path, self.about, self._tensors)
        self.path = os.fspath(path)

    @classmethod
    def load(cls, path: StrPath) -> Directions:
        """The directions of a file; read once as long as the file stays what it is.

        Raises:
            InputError: the file cannot be read, is damaged, or holds something else.
        """
        path = os.fspath(path)
        try:
            state = os.stat(path)
        except (OSError, ValueError):
            return cls(*reversed(direction_files.read(path)))  # which says what is wrong
        return _load(os.path.realpath(path), path, state.st_mtime_ns, state.st_size, state.st_ino)

    # Use ----------------------------------------------------------------------------------------------

    def check(self, method: str, model: PreTrainedModel) -> None:
        """Raise BadParameterError unless these are directions of the method for a model of this shape.

        Warns where the model has another name.
        """
        about = self.about
        if about["method"] != method:
            raise BadParameterError(
                f"{self._name} are those of {about['method']!r}, not of {method!r}: fit some with "
                f"`regaze fit {method}`"
            )
        fitted = about["model"]
        here = model_shape(model)
        if any(fitted[name] != here[name] for name in here):
            raise BadParameterError(
                f"{self._name} were fitted on {fitted['name']} with {fitted['layers']} layers of width "
                f"{fitted['width']}, but this model has {here['layers']} of width {here['width']}: fit some "
                f"with `regaze fit {method}`"
            )
        name = short_name(model)
        if name != fitted["name"]:
            warnings.warn(
                f"{self._name} were fitted on {fitted['name']}, this model is {name}",
                GuessWarning,
                stacklevel=2,
            )

    @property
    def _name(self) -> str:
        return "these directions" if self.path is None else f"the directions in {self.path}"

    def random_like(self, seed: int) -> Directions:
        """Random directions of the same lengths: a control for the fitted ones.

        Every vector is replaced by one of its length whose direction is uniformly distributed, every
        orthonormal basis by a random one of as many rows. Scores stay.

        Args:
            seed: the same seed gives the same vectors, on every device.
        """
        drawn = {}
        for number, (name, tensor) in enumerate(sorted(self._tensors.items())):
            generator = torch.Generator().manual_seed((seed * 1009 + number) % 2**63)
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            kind = self.about["tensors"][name]["kind"]
            if kind == "vectors":
                noise *= tensor.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
            elif kind == "basis":
                noise = torch.linalg.qr(noise.mT).Q.mT * tensor.norm(dim=-1, keepdim=True).round()
            drawn[name] = tensor if kind == "scores" else noise.float()
        return Directions(drawn, {**self.about, "random_seed": seed})


@lru_cache(maxsize=8)
def _load(real: str, path: str, *state: int) -> Directions:
    header, tensors = direction_files.read(path)
    return Directions(tensors, header, path)


def short_name(model: PreTrainedModel) -> str:
    """The last part of the name or folder that a model was loaded from; its class where it has none."""
    name = compat.model_name(model)
    return "demo" if name == str(MODEL_DIR) else Path(name or type(model).__name__).name


def model_shape(model: PreTrainedModel) -> dict[str, int]:
    """Number and width of the decoder layers."""
    config = compat.text_config(model)
    return {"layers": config.num_hidden_layers, "width": compat.hidden_width(model) or 0}
