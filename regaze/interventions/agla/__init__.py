from regaze.interventions.agla.itm_gradcam import BlipRelevance
from regaze.interventions.agla.method import AGLA

__all__ = ["AGLA", "BlipRelevance"]
