"""Attention with an edit inside: `attend`, `observe` and their data. Knows nothing of transformers."""

from regaze.kernels.attend import BACKENDS, attend, observe
from regaze.kernels.compose import compose
from regaze.kernels.edit import AttentionEdit, Channels, Opening, Rows, Stats, StatsRequest
from regaze.kernels.policies import Policy, Redistribute, Scale

__all__ = [
    "BACKENDS",
    "AttentionEdit",
    "Channels",
    "Opening",
    "Policy",
    "Redistribute",
    "Rows",
    "Scale",
    "Stats",
    "StatsRequest",
    "attend",
    "compose",
    "observe",
]
