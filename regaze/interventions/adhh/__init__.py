from regaze.interventions.adhh.head_search import find_hallucination_heads
from regaze.interventions.adhh.method import ADHH

__all__ = ["ADHH", "find_hallucination_heads"]
