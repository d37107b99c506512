from regaze.interventions.ritual.method import RITUAL

__all__ = ["RITUAL"]
