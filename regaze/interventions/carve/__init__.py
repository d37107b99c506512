from regaze.interventions.carve.contrast import contrast, contrastive_map
from regaze.interventions.carve.method import CARVE, CarveAnswer, Refinement

__all__ = ["CARVE", "CarveAnswer", "Refinement", "contrast", "contrastive_map"]
