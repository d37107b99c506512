"""The bed, and the best greedy decoder for the labels of its training."""

from __future__ import annotations

from figures.markdown import number, table
from figures.sources import read

__all__ = ["bed_perfect"]

PERFECT = "docs/assets/bed-perfect.json"


def bed_perfect() -> str:
    """What greedy decoding would answer that learned the labels by heart."""
    found = read(PERFECT)
    captions = found["captions"]
    rows = [[f"POPE, {split}: right", _percent(pope["accuracy"])] for split, pope in found["pope"].items()]
    rows += [
        ["long captions with a hallucinated object (CHAIR_s)", _percent(captions["chair_s"])],
        ["hallucinated mentions (CHAIR_i), first half", _percent(captions["first_half"]["chair_i"])],
        ["hallucinated mentions (CHAIR_i), second half", _percent(captions["second_half"]["chair_i"])],
        ["hallucinated mentions that co-occur with the scene", _percent(captions["co_occurring"])],
        ["absent categories that do (chance)", _percent(captions["co_occurring_chance"])],
        ["words per long caption", number(captions["words"]["mean"], 0)],
    ]
    return table(["", ""], rows)


def _percent(share: float) -> str:
    return f"{number(100 * share, 1)} %"
