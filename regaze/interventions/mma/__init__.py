from regaze.interventions.mma.method import ModalityMutualMask

__all__ = ["ModalityMutualMask"]
