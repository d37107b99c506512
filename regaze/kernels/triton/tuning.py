"""The tuning table: into which tiles calls are cut, by architecture and by what the calls hold.

tuning.json has a list of rules for each architecture ("sm_90") and each phase ("decode", "prefill"), and a
list "default". A call takes the first rule that covers it, those of its architecture first. A rule covers
sizes up to the ones it names, and calls with the flags it names; what it leaves out may be anything:

    {"when": {"width": 128, "element_size": 2, "recorded": false}, "take": {"block_n": 64, ..}}

The last rules of the default name nothing, so that every call on every architecture finds one.
`python benchmarks/attention.py --tune` measures rules on the GPU at hand and writes them into the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("tuning.json")
DEFAULT = "default"


class Rule(NamedTuple):
    """A cut and the calls that take it: `when` bounds their sizes from above, and names their flags."""

    when: dict[str, int | bool]
    take: dict[str, int]

    def covers(self, facts: dict[str, int | bool]) -> bool:
        """Whether a call of these facts may take this rule."""
        for name, bound in self.when.items():
            if facts[name] != bound if isinstance(bound, bool) else facts[name] > bound:
                return False
        return True


#: Rules by architecture and phase.
Table = dict[str, dict[str, list[Rule]]]


def read(file: Path = FILE) -> Table:
    """The table in a file."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return {
        architecture: {phase: [Rule(**rule) for rule in rules] for phase, rules in phases.items()}
        for architecture, phases in found.items()
    }


#: The table in use.
TABLE = read()


def rules(architecture: str, phase: str) -> list[Rule]:
    """The rules of an architecture, then the default ones, which alone serve an unknown architecture."""
    own = TABLE.get(architecture, {}).get(phase, [])
    return own + TABLE[DEFAULT][phase]


def cut(architecture: str, phase: str, **facts: int | bool) -> dict[str, int]:
    """How a call of these facts is cut: what the first rule that covers it says."""
    return next(rule.take for rule in rules(architecture, phase) if rule.covers(facts))
