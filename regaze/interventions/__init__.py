"""Interventions: a file per method, only what makes that method itself."""

from regaze.interventions.base import Intervention
from regaze.interventions.knockout import HeadKnockout
from regaze.interventions.registry import create, from_dict, methods
from regaze.interventions.var import VAR

__all__ = ["VAR", "HeadKnockout", "Intervention", "create", "from_dict", "methods"]
