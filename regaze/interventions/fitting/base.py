"""`Fit`: from pairs to `Directions`; `FittedIntervention`: a method that uses them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls.random_direction import RandomDirection
from regaze.interventions.fitting.caption_pairs import demo_pairs, read_pairs
from regaze.interventions.fitting.direction_files import FORMAT, VERSION
from regaze.interventions.fitting.directions import Directions, model_shape, short_name
from regaze.interventions.fitting.examples import Examples
from regaze.interventions.fitting.parts import Parts
from regaze.interventions.parameters import parameters_of
from regaze.progress import Progress, reporting
from regaze.reading import StrPath
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.hook import open_callbacks
from regaze.toolkit.model.weights_hash import hash_of, model_hash
from regaze.toolkit.wrap import Gaze
from regaze.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

Kind = Literal["vectors", "basis", "scores"]


class Fitted(NamedTuple):
    """What a fit has found: tensors by name with their kind, the rendered prompt, figures about the fit."""

    tensors: dict[str, tuple[Kind, Tensor]]
    prompt: str
    report: dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """Base of fits: a frozen dataclass of their settings, checked as the parameters of methods are.

    Class attributes:
        method: name of the method that uses the result.
        least: number of pairs without which there is no result.
    """

    method: ClassVar[str] = ""
    least: ClassVar[int] = 1

    pairs: PositiveInt | None = field(
        default=None, metadata={"help": "how many pairs are used, the first of the data; default: all"}
    )

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for parameter in parameters_of(cls):
            value = parameter.checked(getattr(self, parameter.name), f"fit {self.method}")
            object.__setattr__(self, parameter.name, value)

    @classmethod
    def demo(cls) -> Examples:
        """The demo's data for this fit."""
        return demo_pairs()

    @classmethod
    def read(cls, path: StrPath, images: StrPath | None = None) -> Examples:
        """The data in a file. Raises InputError."""
        return read_pairs(path, images)

    def run(
        self,
        gaze: Gaze,
        data: Examples,
        *,
        parts: StrPath | None = None,
        progress: Progress | bool | None = None,
    ) -> Directions:
        """Fit on a model, outside of `gaze.using` and `gaze.recording`.

        Args:
            data: the first `pairs` of them are used.
            parts: folder for what has been measured so far, from which the same call continues
                (`parts.remove_parts` removes it). None keeps everything in memory.
            progress: called with a label, how much is done and how much there is. None: a bar where one
                is seen (a terminal, a notebook); True: always; False: never.

        Raises:
            InputError: too few pairs, images or files that cannot be read, or a block of the model is open.
            UnsupportedModelError: the model lacks what the method edits.
        """
        if open_callbacks(gaze.host):
            raise InputError("fit outside of gaze.using(...) and gaze.recording(...): on the plain model")
        chosen = self._chosen(data)
        about = self._about(gaze, chosen)
        key = hash_of(about, [repr(item) for item in chosen.items])
        store = Parts(parts, key)
        with torch.no_grad(), reporting(progress) as report:
            found = self.compute(gaze, chosen.items, store, report)
        kinds = {name: {"kind": kind, "shape": list(t.shape)} for name, (kind, t) in found.tensors.items()}
        tensors = {name: tensor for name, (_, tensor) in found.tensors.items()}
        return Directions(
            tensors, {**about, "prompt": found.prompt, "report": found.report, "tensors": kinds}
        )

    def has_made(self, directions: Directions, gaze: Gaze, data: Examples) -> bool:
        """Whether `run` would give these directions: same model, pairs, settings and versions."""
        about = self._about(gaze, self._chosen(data))
        return all(directions.about.get(name) == value for name, value in about.items())

    def _chosen(self, data: Examples) -> Examples:
        """The pairs that are used. Raises InputError where they are too few."""
        chosen = data.first(self.pairs)
        if len(chosen) < self.least:
            raise InputError(
                f"{self.method} needs {self.least} pairs at the least to be fitted, {chosen.source} gives "
                f"{len(chosen)}"
            )
        return chosen

    def compute(self, gaze: Gaze, pairs: tuple[Any, ...], parts: Parts, progress: Progress) -> Fitted:
        """The vectors of a model; what takes long goes through `parts`."""
        raise NotImplementedError

    def _about(self, gaze: Gaze, data: Examples) -> dict[str, Any]:
        """What is known of the result before it is computed."""
        import transformers

        about = {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "model": {
                "name": short_name(gaze.host),
                "hash": model_hash(gaze.model),
                **model_shape(gaze.host),
            },
            "data": {
                "source": data.source,
                "sha256": data.sha256,
                "pairs": len(data),
                "images": data.images,
            },
            "settings": asdict(self),
            "dtype": str(gaze.model.dtype).removeprefix("torch."),
            "versions": {
                "regaze": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        return dict(json.loads(json.dumps(about)))  # as it is read again


@dataclass(frozen=True)
class FittedIntervention(Intervention):
    """Base of methods that act along vectors fitted once per model.

    Class attributes:
        fit: how the vectors are fitted, by `regaze fit NAME` or `NAME.fit(...).run(gaze, pairs)`.
    """

    fit: ClassVar[type[Fit]]

    directions: str | Directions | None = field(
        default=None, metadata={"help": "the file that `regaze fit` wrote for the model"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.directions, str):
            object.__setattr__(self, "directions", _named(self.directions))

    @property
    def lacks(self) -> str:
        if self.directions is not None:
            return ""
        return (
            f"no directions: fit them once with `regaze fit {self.name} --model MODEL -o FILE` and give "
            "directions=FILE"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; of the directions their file and, behind "#", the hash of what is in it."""
        if not isinstance(self.directions, Directions):
            return super().to_dict()
        where = f"{self.directions.path or ''}#{self.directions.digest}"
        return {**super().to_dict(), "directions": where}

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity or self.lacks else (RandomDirection(self),)

    def with_random_directions(self, seed: int) -> Self:
        """The method along random directions of the same lengths, see `Directions.random_like`."""
        return replace(self, directions=self.given().random_like(seed))

    def given(self) -> Directions:
        """The directions. Raises BadParameterError where there are none."""
        if not isinstance(self.directions, Directions):
            raise BadParameterError(f"{self.name!r}: {self.lacks}")
        return self.directions

    def checked(self, context: Context) -> Directions:
        """The directions, which fit the model.

        Raises:
            BadParameterError: none were given, or those of another method or shape of model.
        """
        self.given().check(self.name, context.model)
        return self.given()


def _named(text: str) -> Directions:
    """The directions of a file; "FILE#HASH" only if they are still the same."""
    path, mark, digest = text.rpartition("#")
    if not mark or len(digest) != 16 or not set(digest) <= set("0123456789abcdef"):
        return Directions.load(text)
    if not path:
        raise InputError(f"the directions {text} were never saved; fit them again, and save them to a file")
    found = Directions.load(path)
    if found.digest != digest:
        raise InputError(f"directions file {path!r} has changed: it holds {found.digest}, not {digest}")
    return found
