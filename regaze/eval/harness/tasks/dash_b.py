"""Functions of the task dash_b."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regaze.eval.benchmarks.dash_b import OFFICIAL


def visual(doc: Mapping[str, Any]) -> list[Any]:
    """The image."""
    return [doc["image"].convert("RGB")]


def results(doc: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """{figure: what it is counted from}, the same for every figure."""
    sample = {"label": doc["answer"].strip().lower(), "answer": answers[0]}
    return dict.fromkeys(OFFICIAL.metrics, sample)


def _figure(name: str) -> Callable[[Sequence[Mapping[str, str]]], float]:
    def aggregate(samples: Sequence[Mapping[str, str]]) -> float:
        labels = [sample["label"] for sample in samples]
        return OFFICIAL.score(labels, [sample["answer"] for sample in samples])[name]

    return aggregate


accuracy, tnr, tpr, harmonic_mean = map(_figure, ("accuracy", "tnr", "tpr", "harmonic_mean"))
yes_ratio, unreadable = _figure("yes_ratio"), _figure("unreadable")
