"""Compiles, for a GPU that is not here, a call for every rule of the tuning table that such a GPU may take.

`python tests/support/tuned_launches.py 80 90` prints a line of JSON per kernel, as kernel_launches.py does;
its call is named by the rule. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch
from kernel_launches import compiled, stand_for

from regaze.kernels import AttentionEdit, Channels, Scale, StatsRequest
from regaze.kernels.triton import tiling, tuning
from regaze.kernels.triton.launch import attend_triton
from regaze.kernels.triton.tuning import Rule

#: What calls may be, the heaviest first.
FLAGS = (True, False)
FACTS: dict[str, dict[str, tuple[int | bool, ...]]] = {
    "decode": {
        "width": (256, 128, 64, 16),
        "element_size": (4, 2),
        "channels": (4, 2, 1),
        "rows": (64, 32, 16),
        "edited": FLAGS,
        "recorded": FLAGS,
    },
    "prefill": {
        "rows": (200, 16),
        "width": (256, 128, 64, 16),
        "element_size": (4, 2),
        "light": (False, True),
        "masked": FLAGS,
        "columns": FLAGS,
    },
}
KEYS = 1001


def facts_of(rule: Rule, architecture: str, phase: str) -> dict[str, int | bool] | None:
    """The heaviest call that takes the rule; None if earlier rules take all that it covers."""
    rules = tuning.rules(architecture, phase)
    for values in product(*FACTS[phase].values()):
        facts = dict(zip(FACTS[phase], values, strict=True))
        impossible = facts.get("light") and facts["columns"]
        if not impossible and next(other for other in rules if other.covers(facts)) is rule:
            return facts
    return None


def launch(phase: str, facts: dict[str, Any]) -> Callable[[], Any]:
    """A call of these facts."""
    dtype, dim = {2: torch.float16, 4: torch.float32}[facts["element_size"]], facts["width"]
    heads, queries = (2 * facts["rows"], 1) if phase == "decode" else (4, facts["rows"])
    groups, column = torch.zeros(1, KEYS, dtype=torch.uint8), torch.empty(1, heads, KEYS)
    parts: dict[str, Any] = {"head_gain": torch.empty(1, heads)}
    count = facts.get("channels", 1 if facts.get("light") else 4)
    if count > 1:
        parts |= {"channels": Channels(groups, count), "policy": Scale((0.5,) * count)}
    if facts.get("edited") or facts.get("columns"):
        parts |= dict.fromkeys(("score_slope", "score_gain", "bias", "value_gain"), column)
    if facts.get("recorded"):
        parts["stats"] = StatsRequest(channels=Channels(groups, 7), entropy=True, top1=True, lse=True)
    query = torch.empty(1, heads, queries, dim, dtype=dtype)
    key, value = (torch.empty(1, 2, KEYS, dim, dtype=dtype) for _ in range(2))
    mask = torch.ones(1, 1, queries, KEYS, dtype=torch.bool) if facts.get("masked") else None
    options = {"mask": mask, "scaling": 0.1, "is_causal": mask is None and phase == "prefill"}
    return partial(attend_triton, query, key, value, AttentionEdit(**parts), softcap=30.0, **options)


def main() -> None:
    warnings.simplefilter("ignore")
    for capability, phase in product(map(int, sys.argv[1:]), FACTS):
        stand_for(capability)
        architecture = f"sm_{capability}"
        for rule in tuning.rules(architecture, phase):
            if (facts := facts_of(rule, architecture, phase)) is None:
                continue
            with mock.patch.object(tiling, "cut", wraps=tuning.cut) as cut:
                kernels = list(compiled(capability, launch(phase, facts)))
            asked = [call.kwargs for call in cut.call_args_list]
            assert facts in asked, (facts, asked)
            made = {"capability": capability, "call": f"{phase} {rule.when} {facts}"}
            for kernel in kernels:
                print(json.dumps(made | kernel), flush=True)


if __name__ == "__main__":
    main()
