from regaze.interventions.evit.method import EViT, keep_and_fuse
from regaze.interventions.evit.schedule import scheduled_keep_rate

__all__ = ["EViT", "keep_and_fuse", "scheduled_keep_rate"]
