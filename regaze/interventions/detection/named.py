"""Detectors by name."""

from __future__ import annotations

from functools import lru_cache

from regaze.interventions.detection.demo import DemoDetector
from regaze.interventions.detection.detections import Detector
from regaze.interventions.detection.hub import HubDetector

#: The truth about the demo's scenes.
DEMO = "demo"


@lru_cache(maxsize=2)
def find_detector(name: str, device: str) -> Detector:
    """`DemoDetector` for "demo", else a `HubDetector` on a device; the last two stay loaded.

    Raises:
        ModelNotFoundError: transformers cannot load it.
    """
    return DemoDetector() if name == DEMO else HubDetector.from_pretrained(name, device_map=device)
