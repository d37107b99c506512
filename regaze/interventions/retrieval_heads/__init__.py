"""Retrieval heads: which heads fetch what a model copies from a long context, and what happens without them.

Source: Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality" (arXiv:2404.15574).
"""

from regaze.interventions.retrieval_heads.ablation import Ablation, Condition, ablate_heads
from regaze.interventions.retrieval_heads.haystack import read_haystack
from regaze.interventions.retrieval_heads.headfile import RetrievalHeads, Trial
from regaze.interventions.retrieval_heads.needles import NEEDLES, TEMPLATE, Needle, unigram_recall
from regaze.interventions.retrieval_heads.scores import Copied, count_copies, find_needle
from regaze.interventions.retrieval_heads.search import find_retrieval_heads

__all__ = [
    "NEEDLES",
    "TEMPLATE",
    "Ablation",
    "Condition",
    "Copied",
    "Needle",
    "RetrievalHeads",
    "Trial",
    "ablate_heads",
    "count_copies",
    "find_needle",
    "find_retrieval_heads",
    "read_haystack",
    "unigram_recall",
]
