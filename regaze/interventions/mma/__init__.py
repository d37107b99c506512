from regaze.interventions.mma.method import MMA

__all__ = ["MMA"]
