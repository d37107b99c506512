"""VTI: directions of captions without inventions, and of images whose details are masked."""

from regaze.interventions.vti.fit import VTIFit
from regaze.interventions.vti.method import VTI

__all__ = ["VTI", "VTIFit"]
