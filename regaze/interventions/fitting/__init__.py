"""What methods share whose vectors are fitted once per model: the pairs, the forwards, the file."""

from regaze.interventions.fitting.base import Fit, FittedIntervention
from regaze.interventions.fitting.caption_pairs import CaptionPair, demo_pairs, read_pairs
from regaze.interventions.fitting.directions import Directions
from regaze.interventions.fitting.examples import Examples

__all__ = [
    "CaptionPair",
    "Directions",
    "Examples",
    "Fit",
    "FittedIntervention",
    "demo_pairs",
    "read_pairs",
]
