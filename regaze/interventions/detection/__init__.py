"""Object detectors for the methods that ask one: any function, or the name of a model of transformers."""

from regaze.interventions.detection.base import Detecting
from regaze.interventions.detection.demo import DemoDetector
from regaze.interventions.detection.detections import Detections, Detector, detect
from regaze.interventions.detection.hub import HubDetector
from regaze.interventions.detection.named import DEMO, find_detector

__all__ = [
    "DEMO",
    "DemoDetector",
    "Detecting",
    "Detections",
    "Detector",
    "HubDetector",
    "detect",
    "find_detector",
]
