"""`Facts`: what a method edits, when, at what cost and what it needs, as data that pages and tests read.

A class declares them once (`Method.facts`). `tests/interventions/test_facts.py` compares with a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from regaze.errors import BadParameterError

#: What is changed, from the picture to the text. "head outputs" are those before the output projection.
Part = Literal[
    "image",
    "prompt",
    "vision tower",
    "tokens",
    "mask",
    "scores",
    "weights",
    "keys",
    "values",
    "head outputs",
    "attention outputs",
    "MLP outputs",
    "logits",
    "search",
    "text",
]
#: "before" and "after" are outside of the forwards that give the answer.
When = Literal["before", "prompt", "answer", "after"]
#: The dearest thing that it does, in this order. "output head": once more or oftener per token.
#: "two rows": per prompt, in one forward and with a cache each.
Cost = Literal[
    "fewer rows",
    "one forward",
    "output head",
    "another prefill",
    "two rows",
    "several answers",
    "many rows",
]
#: What has to be there. The first ones are the user's to give, the others are what it takes from a model.
Need = Literal[
    "fit",
    "head list",
    "trained model",
    "relevance model",
    "generator",
    "detector",
    "second context",
    "own search",
    "vision tower",
    "hidden states",
    "layer logits",
    "all heads",
    "attention rows",
    "whole prompt",
]
#: Whether a decode step compiles as a whole graph (`torch.compile(fullgraph=True)`). "captured": it can also
#: be repeated without any Python, as CUDA graphs do. "compiled": its layers ask the method. "broken": it
#: raises and says why. "outside": the method leaves the forwards alone.
Graphs = Literal["captured", "compiled", "broken", "outside"]

#: Parts that an attention backend alone can edit.
ATTENTION: tuple[Part, ...] = ("mask", "scores", "weights", "values", "head outputs")


@dataclass(frozen=True)
class Facts:
    """What a method is, for its default parameters.

    Attributes:
        edits: what it changes. cost: the dearest of what it does. when: in which forwards.
        graphs: whether compiled decode steps stay whole.
        needs: what has to be given, and what it takes from a model. "whole prompt": a prompt that runs in one
            piece, for its rows are related to later ones. "all heads": of a layer, so that heads on several
            devices have to be gathered. "hidden states": inputs of layers.
    """

    edits: tuple[Part, ...]
    cost: Cost
    when: tuple[When, ...] = ("prompt", "answer")
    graphs: Graphs = "captured"
    needs: tuple[Need, ...] = ()

    def __post_init__(self) -> None:
        known: tuple[tuple[str, Iterable[Any], Any], ...] = (
            ("edits", self.edits, Part),
            ("when", self.when, When),
            ("cost", (self.cost,), Cost),
            ("graphs", (self.graphs,), Graphs),
            ("needs", self.needs, Need),
        )
        for name, values, kind in known:
            if unknown := [value for value in values if value not in get_args(kind)]:
                raise BadParameterError(
                    f"Facts.{name}: {unknown[0]!r} is none of {', '.join(get_args(kind))}"
                )
        if not self.edits or not self.when:
            raise BadParameterError("Facts need what is edited, and when")


#: What a serving engine has to give beside its attention, by a method's needs and by the parts it edits.
_ENGINE_NEEDS: dict[str, str] = {
    "second context": "a second request per prompt, kept in step",
    "hidden states": "inputs of layers",
    "layer logits": "layers read as logits",
    "attention rows": "rows of attention handed out",
    "whole prompt": "an unsplit prefill",
    "all heads": "all heads of a layer, gathered under tensor parallelism",
    "vision tower": "hooks in the vision tower",
    "trained model": "weights trained for it",
}
_ENGINE_PARTS: dict[str, str] = {
    "keys": "writes to its cache",
    "MLP outputs": "hooks on MLPs",
    "attention outputs": "hooks on output projections",
    "tokens": "cache rows that are given back",
}


def in_engine(facts: Facts) -> str:
    """What a method would need of a serving engine such as vLLM, whose attention regaze could replace."""
    if "own search" in facts.needs:
        return "no: it goes back in a search, which is the engine's own"
    wants = [what for need, what in _ENGINE_NEEDS.items() if need in facts.needs]
    wants += [what for part, what in _ENGINE_PARTS.items() if part in facts.edits]
    if facts.cost == "another prefill":
        wants.insert(0, "a measuring prefill before the request")
    first = "a logits processor" if "logits" in facts.edits else ""
    if set(facts.edits) & set(ATTENTION):
        first = "its attention"
    if facts.cost == "several answers":
        first = "several requests, one after the other"
    return "; ".join(filter(None, (first, *wants)))
