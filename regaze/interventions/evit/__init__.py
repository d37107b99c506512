from regaze.interventions.evit.method import EViT

__all__ = ["EViT"]
