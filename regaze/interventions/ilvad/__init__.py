from regaze.interventions.ilvad.method import ILVAD, GroundedAnswer

__all__ = ["ILVAD", "GroundedAnswer"]
