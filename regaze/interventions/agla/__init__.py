from regaze.interventions.agla.method import AGLA

__all__ = ["AGLA"]
