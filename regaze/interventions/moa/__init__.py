from regaze.interventions.moa.method import MoA

__all__ = ["MoA"]
