"""Retrieval heads: which heads fetch what a model copies from a long context, and what happens without them.

Source: Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality" (arXiv:2404.15574).
"""

from regaze.interventions.retrieval_heads.ablation import Ablation, HeadMask, ablate_heads
from regaze.interventions.retrieval_heads.copying import Copied, count_copies, needle_span
from regaze.interventions.retrieval_heads.haystack import read_haystack
from regaze.interventions.retrieval_heads.head_scores import RetrievalHeads, Trial
from regaze.interventions.retrieval_heads.needles import NEEDLES, Needle
from regaze.interventions.retrieval_heads.prompt_builder import TEMPLATE
from regaze.interventions.retrieval_heads.recall import unigram_recall
from regaze.interventions.retrieval_heads.search import find_retrieval_heads

__all__ = [
    "NEEDLES",
    "TEMPLATE",
    "Ablation",
    "Copied",
    "HeadMask",
    "Needle",
    "RetrievalHeads",
    "Trial",
    "ablate_heads",
    "count_copies",
    "find_retrieval_heads",
    "needle_span",
    "read_haystack",
    "unigram_recall",
]
