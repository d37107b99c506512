from regaze.interventions.paint.head_weights import head_sensitivity
from regaze.interventions.paint.method import PAINT

__all__ = ["PAINT", "head_sensitivity"]
