"""What methods share whose vectors are fitted once per model: the pairs, the forwards, the file."""

from regaze.interventions.fitting.base import Fit, FittedIntervention
from regaze.interventions.fitting.caption_pairs import CaptionPair, CaptionPairs, demo_pairs, read_pairs
from regaze.interventions.fitting.directions import Directions

__all__ = [
    "CaptionPair",
    "CaptionPairs",
    "Directions",
    "Fit",
    "FittedIntervention",
    "demo_pairs",
    "read_pairs",
]
