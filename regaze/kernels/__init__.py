"""Attention with an edit inside (`attend`), its statistics, and their data. Knows nothing of transformers."""

from regaze.kernels.attend import attend, attention_stats, column_sums
from regaze.kernels.backends import BACKENDS
from regaze.kernels.compose import compose
from regaze.kernels.policies import DropAbove, FollowGaze, Policy, Redistribute, Scale
from regaze.kernels.spec import AttentionEdit, Channels, Rows, Stats, StatsRequest, UnmaskRect, Windows

__all__ = [
    "BACKENDS",
    "AttentionEdit",
    "Channels",
    "DropAbove",
    "FollowGaze",
    "Policy",
    "Redistribute",
    "Rows",
    "Scale",
    "Stats",
    "StatsRequest",
    "UnmaskRect",
    "Windows",
    "attend",
    "attention_stats",
    "column_sums",
    "compose",
]
