"""Measure whether an intervention helps: benchmarks, a runner, results with intervals and paired tests."""

from __future__ import annotations

from regaze.eval.benchmarks.common.base import Benchmark, Item
from regaze.eval.benchmarks.pope.benchmark import Pope
from regaze.eval.run.runner import Plan, Task, evaluate, run

__all__ = ["Benchmark", "Item", "Plan", "Pope", "Task", "evaluate", "run"]
