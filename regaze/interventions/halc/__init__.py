from regaze.interventions.halc.matching import ClipMatcher
from regaze.interventions.halc.method import HALC, HalcAnswer
from regaze.interventions.halc.search import Focus

__all__ = ["HALC", "ClipMatcher", "Focus", "HalcAnswer"]
