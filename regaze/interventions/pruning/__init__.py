"""Methods that take image tokens away in the middle of the language model."""

from regaze.interventions.pruning.fastv import FastV
from regaze.interventions.pruning.pyramiddrop import PyramidDrop
from regaze.interventions.pruning.sparsevlm import SparseVLM

__all__ = ["FastV", "PyramidDrop", "SparseVLM"]
