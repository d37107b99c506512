from regaze.interventions.pti.fit import PTIFit
from regaze.interventions.pti.method import PTI

__all__ = ["PTI", "PTIFit"]
