"""ICT: shift the heads that tell trusted from untrusted inputs towards the trusted."""

from regaze.interventions.ict.fit import ICTFit
from regaze.interventions.ict.method import ICT

__all__ = ["ICT", "ICTFit"]
