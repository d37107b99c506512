"""Attention with an edit inside (`attend`), its statistics, and their data. Knows nothing of transformers."""

from regaze.kernels.attend import attend, attention_stats
from regaze.kernels.backends import BACKENDS
from regaze.kernels.bound import BoundEdit
from regaze.kernels.channels import Channels, Outstanding
from regaze.kernels.compose import compose
from regaze.kernels.head_rules import HeadChoice, HeadStep, ScaleHeads
from regaze.kernels.head_source import HeadRule, HeadSource
from regaze.kernels.kept_tokens import KeptTokens, LeavingTokens, Numbering
from regaze.kernels.key_value_shift import KeyValueShift
from regaze.kernels.paged import attend_paged, attention_stats_paged
from regaze.kernels.placement import Placeable
from regaze.kernels.policies import NumbaPart, Policy, Scale, TritonPart, pad_channels
from regaze.kernels.score_gate import ScoreGate
from regaze.kernels.spec import AttentionEdit, RowSelection, Stats, StatsRequest, UnmaskRect, Windows
from regaze.kernels.torch_decode import launches_cost_most

__all__ = [
    "BACKENDS",
    "AttentionEdit",
    "BoundEdit",
    "Channels",
    "HeadChoice",
    "HeadRule",
    "HeadSource",
    "HeadStep",
    "KeptTokens",
    "KeyValueShift",
    "LeavingTokens",
    "NumbaPart",
    "Numbering",
    "Outstanding",
    "Placeable",
    "Policy",
    "RowSelection",
    "Scale",
    "ScaleHeads",
    "ScoreGate",
    "Stats",
    "StatsRequest",
    "TritonPart",
    "UnmaskRect",
    "Windows",
    "attend",
    "attend_paged",
    "attention_stats",
    "attention_stats_paged",
    "compose",
    "launches_cost_most",
    "pad_channels",
]
