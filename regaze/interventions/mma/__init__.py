from regaze.interventions.mma.method import MMA
from regaze.interventions.mma.training import MutualCollator, first_turn, mma_mask, mma_mask_mod

__all__ = ["MMA", "MutualCollator", "first_turn", "mma_mask", "mma_mask_mod"]
