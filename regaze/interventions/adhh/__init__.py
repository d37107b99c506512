from regaze.interventions.adhh.head_search import Caption, Influence, find_hallucination_heads
from regaze.interventions.adhh.method import ADHH, known_heads

__all__ = ["ADHH", "Caption", "Influence", "find_hallucination_heads", "known_heads"]
