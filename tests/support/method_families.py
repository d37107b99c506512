"""Every method on families of models: whether it works there, or the reason that it gives.

    python tests/support/method_families.py [--only METHOD,...]

writes benchmarks/results/method-families.json, which docs/reference/method-families.md shows and the tests
compare.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

import torch
from acting_methods import INSIDE, PARAMETERS, SEVERAL
from directions import about, ict_directions, normal, nullu_directions, pti_directions
from directions import directions as made
from family_checks import QUESTIONS, Case, case_of
from models import logits_of
from paths import ROOT
from zoo.base import Entry
from zoo.every import RUNNING

from regaze.errors import RegazeError
from regaze.interventions import Method, create_method
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback

RESULTS = ROOT / "benchmarks" / "results" / "method-families.json"
STALE = "benchmarks/results/method-families.json is stale: run `python tests/support/method_families.py`"
FAMILIES = (
    *("llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen3_vl", "gemma3", "idefics3"),
    *("mistral3", "blip-2", "granite4_vision", "janus", "mllama"),
)
WORKS, SAME, WRONG = "works", "changes nothing", "wrong"
TOKENS = 3
#: What a model of two layers and some ten image tokens needs, where that of `acting_methods` does not fit.
SMALL: dict[str, dict[str, Any]] = {
    "adhh": {"heads": ((0, 0), (0, 1), (1, 1)), "threshold": 0.01},
    "cai": {"layers": (1, 1), "threshold": -1.0},
    "carve": {"layers": (0, 1)},
    "causalmm": {},
    "deco": {"alpha": 1.0, "layers": (1, 1)},
    "dola": {"beta": 0.0},
    "fastv": {"first_layer": 1},
    "ilvad": {"tau": 1.0, "looks": 3, "layers": (0, 1), "alpha": 3.0, "above_average": False},
    "knockout": {"heads": ((0, 0), (0, 1), (1, 1))},
    "memvr": {"ratio": 0.9, "threshold": 0.0, "layers": (0, 0)},
    "moa": {"beta": 0.1, "block": 4},
    "sid": {"kept": 2, "first_layer": 1, "alpha": 1.0},
    "sparc": {"alpha": 3.0, "tau": 0.0, "selected_layer": 0},
    "vhr": {"alpha": 3.0, "layers": (0, 1)},
}


def entry(name: str) -> Entry | None:
    """The family of the zoo; None where the installed transformers does not run it."""
    return next((each for each in RUNNING if each.name == name), None)


def method(name: str, case: Case) -> Method:
    """The method with parameters, and directions, for the family's model."""
    parameters = SMALL.get(name, PARAMETERS.get(name, {}))
    return create_method(name, **{**parameters, **_directions(name, case)})


def outcome(case: Case, name: str) -> str:
    """`WORKS`, `SAME`, or the message of the error; `WRONG`: NaN, or a batch differs from its prompts."""
    chosen = method(name, case)
    try:
        if name in SEVERAL:
            images = [[picture] for picture in case.pictures]
            answers = case.gaze.ask(images, list(QUESTIONS), method=chosen, max_new_tokens=TOKENS)
            return WORKS if len(answers) == 2 else WRONG
        return _acts(case, chosen)
    except RegazeError as error:
        return f"{type(error).__name__}: {_general(str(error))}"


def _acts(case: Case, chosen: Any) -> str:
    """A batch under the method, and its shorter prompt alone."""
    with case.gaze.using(chosen):
        edited = logits_of(case.model, case.inputs(0, 1), TOKENS)
        if edited.isnan().any():
            return WRONG
        if case.entry.batch:
            alone = logits_of(case.model, case.inputs(0), TOKENS)[:, 0]
            same = (edited[:, 0].argmax(-1) == alone.argmax(-1)).long().cumprod(0)
            steps = 1 + int(same.sum().clamp(max=TOKENS - 1))
            if not torch.allclose(edited[:steps, 0], alone[:steps], rtol=2e-4, atol=2e-4):
                return WRONG
    return SAME if torch.equal(edited, case.plain[:TOKENS]) else WORKS


def _general(message: str) -> str:
    """A message in one line, without the numbers of this model."""
    return re.sub(r"\s+", " ", message).strip()


def _directions(name: str, case: Case) -> dict[str, Any]:
    """Random directions of a fitted method, of the model's shape."""
    host = case.gaze.host
    shape: dict[str, Any] = about(host)
    if name == "nullu":
        return {"directions": nullu_directions(shape)}
    if name in ("ict", "pti"):
        config = compat.text_config(host)
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        if name == "ict":
            return {"directions": ict_directions(shape, heads=(heads, size))}
        shared = getattr(config, "num_key_value_heads", None) or heads
        return {"directions": pti_directions(shape, heads=(shared, size))}
    if name == "vti":
        tensors = {"text": normal(shape["layers"], shape["width"])}
        tower = _Tower()
        try:
            with case.gaze.using(tower):
                logits_of(case.model, case.inputs(0), tokens=1)
        except RegazeError:
            pass
        if len(set(tower.shapes.values())) == 1:
            tensors["vision"] = normal(len(tower.shapes), *next(iter(tower.shapes.values())), seed=1)
        return {"directions": made("vti", shape, tensors), "vision": 0.9 if "vision" in tensors else 0.0}
    return {}


class _Tower(Callback):
    """The shapes [tokens, width] of what the MLPs of a vision tower give, by block."""

    needs_pixels = True

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, ...]] = {}

    def edit_vision_mlp(self, block: int, hidden: torch.Tensor, context: Any) -> torch.Tensor:
        self.shapes[block] = tuple(hidden.shape[1:])
        return hidden


def outcomes(family: Entry, names: list[str]) -> dict[str, str]:
    """By method, what `outcome` says; the model is as before afterwards."""
    case = case_of(family)
    plain = case.plain
    found = {name: outcome(case, name) for name in names}
    assert torch.equal(logits_of(case.model, case.inputs(0, 1)), plain), "the model is not as it was"
    return found


def recorded() -> dict[str, dict[str, str]]:
    """{method: {family: outcome}} as committed."""
    if not RESULTS.exists():
        return {}
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text(encoding="utf-8"))["methods"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names of methods, with commas; the others stay as they are")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else sorted([*INSIDE, *SEVERAL])
    table = {name: row for name, row in recorded().items() if name in {*INSIDE, *SEVERAL}}
    for name in FAMILIES:
        family = entry(name)
        assert family is not None, f"{name} does not run under this transformers"
        for method_name, found in outcomes(family, names).items():
            table.setdefault(method_name, {})[name] = found
            sys.stdout.write(f"{name} {method_name}: {found}\n")
    result = {"families": list(FAMILIES), "methods": {name: table[name] for name in sorted(table)}}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
