"""Nullu: remove from MLP outputs what tells invented captions from true ones."""

from regaze.interventions.nullu.fit import NulluFit
from regaze.interventions.nullu.method import Nullu

__all__ = ["Nullu", "NulluFit"]
