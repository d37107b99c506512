from regaze.interventions.causalmm.method import CausalMM

__all__ = ["CausalMM"]
