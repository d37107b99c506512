"""Attention with an edit inside: `attend`, `observe` and their data. Knows nothing of transformers."""

from regaze.kernels.attend import attend, column_sums, observe
from regaze.kernels.backends import BACKENDS
from regaze.kernels.compose import compose
from regaze.kernels.policies import DropAbove, FollowGaze, Policy, Redistribute, Scale
from regaze.kernels.spec import AttentionEdit, Channels, Opening, Rows, Stats, StatsRequest, Windows

__all__ = [
    "BACKENDS",
    "AttentionEdit",
    "Channels",
    "DropAbove",
    "FollowGaze",
    "Opening",
    "Policy",
    "Redistribute",
    "Rows",
    "Scale",
    "Stats",
    "StatsRequest",
    "Windows",
    "attend",
    "column_sums",
    "compose",
    "observe",
]
