from regaze.interventions.moa.influence import block_influence, block_layout, dropped_influence, key_influence
from regaze.interventions.moa.method import MoA, read_plan

__all__ = ["MoA", "block_influence", "block_layout", "dropped_influence", "key_influence", "read_plan"]
