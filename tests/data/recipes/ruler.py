"""RULER: which share of the references stands in an answer, whatever its case."""

from __future__ import annotations

import json
from pathlib import Path

PAIRS = [
    (["8142"], "The number is 8142."),
    (["17", "29", "55"], "17 and 55"),
    (["Lisbon"], "it was LISBON, they say"),
    (["red fox", "owl"], "A Red Fox; no birds"),
    (["none"], ""),
    (["3", "33"], "33"),
    (["a b"], "a  b"),
]


def write(folder: Path) -> None:
    """The file of string matches."""
    folder.mkdir(parents=True, exist_ok=True)
    shares = []
    for references, answer in PAIRS:
        found = [reference.lower() in answer.lower() for reference in references]
        shares.append(100 * sum(found) / len(found))
    content = {
        "refs": [references for references, _ in PAIRS],
        "preds": [answer for _, answer in PAIRS],
        "string_match_all": round(sum(shares) / len(shares), 2),
        "each_all": [round(share, 2) for share in shares],
    }
    (folder / "expected.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
