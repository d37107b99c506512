"""What methods share that ask a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from regaze.errors import BadParameterError
from regaze.interventions.base import Method
from regaze.interventions.detection.detections import Detections, Detector, detect
from regaze.interventions.detection.named import find_detector
from regaze.interventions.parameters import Fraction


@dataclass(frozen=True)
class Detecting(Method):
    """Base of methods that need a detector: a function (see `Detections`), "demo" or a model's name."""

    detector: Annotated[
        str | Detector | None, Field(description="'demo', a model's name, a function or None")
    ] = field(
        default=None,
        metadata={
            "help": "needed: an object detector of transformers (a hub name or a folder), 'demo' for the "
            "truth about the demo's scenes, or a function (image, texts or None) -> boxes, labels, scores"
        },
    )
    threshold: Fraction = field(default=0.4, metadata={"help": "least score of what counts as found"})

    @property
    def lacks(self) -> str:
        if self.detector is not None:
            return ""
        return (
            "give `detector`: an object detector of transformers by name, 'demo' for the demo's scenes, or a "
            "function (image, texts) -> boxes, labels, scores"
        )

    def detections(self, image: Image.Image, texts: Sequence[str] | None, device: Any) -> Detections:
        """What is found with a score of at least `threshold`, best first.

        Args:
            texts: what to look for; None: whatever the detector knows. device: for a detector by name.

        Raises:
            BadParameterError: there is no detector. InputError, ModelNotFoundError: it cannot be used.
        """
        return detect(self.resolved(device), image, texts).best(self.threshold)

    def vocabulary(self, device: Any) -> tuple[str, ...]:
        """The names that the detector knows; () where it says none."""
        return tuple(getattr(self.resolved(device), "names", ()))

    def resolved(self, device: Any) -> Detector:
        """The detector as a function."""
        if self.lacks:
            raise BadParameterError(f"{self.name!r}: {self.lacks}")
        given: Any = self.detector
        found: Detector = find_detector(given, str(device)) if isinstance(given, str) else given
        return found
