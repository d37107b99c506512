from regaze.interventions.carve.method import CARVE

__all__ = ["CARVE"]
