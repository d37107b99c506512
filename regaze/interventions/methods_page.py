"""The page of all methods, docs/reference/methods.md, written from the registry.

python -m regaze.interventions.methods_page
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from regaze.interventions.compatibility import INCOMPATIBLE
from regaze.interventions.facts import Facts, in_engine
from regaze.interventions.parameters import Parameter, parameters_of
from regaze.interventions.registry import BUILT_IN, CONTROLS, VISION_TRANSFORMS
from regaze.writing import replace_file

#: What some need so that they change anything.
_ACTING: dict[str, dict[str, Any]] = {"knockout": {"heads": ((0, 0),)}, "m3id": {"as_released": True}}

#: What a user has to give or to pay for, in the words of the page; other needs are those of an engine.
NEEDS: dict[str, str] = {
    "fit": "a fit (`regaze fit`)",
    "head list": "a list of heads",
    "trained model": "a model trained for it",
    "relevance model": "a relevance model (BLIP, or a function)",
    "generator": "an image generator",
    "detector": "an object detector",
    "second context": "a second context",
    "own search": "its own search",
    "vision tower": "a vision tower",
}
PREFIXES = {"": "no", "plain": "plain", "edited": "edited"}
GRAPHS = {
    "captured": "yes, captured too",
    "compiled": "yes, not captured",
    "broken": "no",
    "outside": "as plain",
}

#: Methods that are not here, and why.
ABSENT = (
    ("CCA", "Concentric position ids and mask: trained into a model, not applied to a trained one."),
    ("TAME", "Its released edit sharpens all scores by one factor, differently in prefill and decode."),
    ("IKOD", "No code is published; how anchors and weights are chosen is not known."),
    (
        "ASCD",
        "Its code could not be read, and the abstract does not say how scores of text-centric heads and of "
        "critical visual tokens are changed, or by how much.",
    ),
    (
        "MODA",
        "A trained replacement of the attention, which needs its weights; for a model that has them "
        "`regaze.interventions.moda.ModularDuplexAttention` is its equation.",
    ),
)

INTRODUCTION = """# Methods

*Written from the code by `python -m regaze.interventions.methods_page`; do not edit by hand.*

Every method works in batches and with the key-value cache, and leaves the model unchanged after its block.
[methods by family](method-families.md) has a table of families on which each was run.
Token roles are known for the families of [model families](families.md); for others pass them with
`gaze.using(..., tokens=...)`. Defaults are the papers'. Layer ranges that were published for a model of 32
layers are scaled to the depth of your model unless you give your own. Where released code differs from its
paper in a defined way, `as_released=True` gives the code's behaviour. Nothing here was copied from a release:
everything is written from equations and facts. Pass parameters as `--set name=value` on the command line, or
to the class. [Write your own](../recipes/write-a-method.md).

Methods with a parameter `directions` act along vectors that are fitted once per model: `regaze fit METHOD
--model ... --data ... -o FILE`, for the demo model `regaze fit METHOD -o FILE`. VTI and Nullu take pairs of
captions, lines of JSON such as {"image": "1.jpg", "value": "A dog.", "h_value": "A dog and a cat."} (a true
and an invented one of an image), ICT takes questions, {"image": "1.jpg", "text": "Is there a dog in the
image?", "label": "yes"}, PTI images with their objects, {"image": "1.jpg", "caption": "A cat on a mat.",
"objects": ["cat"], "boxes": [[10, 20, 90, 80]]} (in pixels; instead of boxes a "mask", a picture that is
black where there is none). The file says on which model, data and settings it was fitted; another shape of
model is refused. Their control is random directions of the same lengths. A fit on images that are asked
about later is no test of the method: the file lists them.

Methods with a parameter `detector` ask an object detector of yours: a function (image, texts or None) ->
boxes, labels and scores, or the name of a model of transformers (a hub name or a folder). One with an open
vocabulary, such as `IDEA-Research/grounding-dino-tiny` or `google/owlv2-base-patch16-ensemble`, looks for the
names in `objects`; one with a closed vocabulary, such as `facebook/detr-resnet-50`, for what it knows.
`--set detector=demo` is no detector but the truth about the scenes that the demo ships: what a method gains
with it is a bound, not a result. Their controls are random names and random boxes.
"""

RUNNING = """## What they need, and where they run

What each method edits, when and at what cost, with default parameters:

![every method by what it edits, in which forwards and at what cost](../assets/methods.png)

*Prefix*: questions about one image share the cache of what they have in common, that of the plain model or of
the edited one ([evaluation](../guide/evaluation.md#batches-and-shared-prefixes)). *Whole graphs*: whether a
compiled decode step stays one graph (`fullgraph=True`), and whether it can also be captured, so that its
layers run without Python; "no" raises the reason, and without `fullgraph` the graph is divided
([running](../guide/running.md#compiled-graphs)). *Serving engine*: nothing here runs in one; it says what an
engine such as vLLM has to give beside the attention that regaze could replace there. All of it is declared
in the classes (`facts`, `shares_prefix`) and compared with what the methods do, by `test_facts.py`,
`test_whole_graphs.py`, `test_fixed_addresses.py` and `test_prefix_cache.py`; what an engine has to give
follows from it and was tried in none.
"""

CONTROLS_INTRODUCTION = """## Controls

What a method has to beat before its idea gets the credit. They are made and used as methods
(`regaze.interventions.controls`), and take part in the evaluation of any with `--controls`
([evaluation](../guide/evaluation.md#controls)): *prefer-yes* and *near-tie* on yes/no questions
(in an audit *yes-offset*, too), *drop-last-sentence* and *stop-after* on longer texts, and those that a
method names itself (`method.controls()`):
"""

VISION = """## Vision transforms

These transform a vision model used alone, within `with transform.applied(vision_model):`. They are no methods
for `gaze.using` or `regaze evaluate`.
"""

COMBINING = """## Combining methods

Methods act together in one `gaze.using(a, b)`, in any order: biases and contrasts add up, gains multiply,
plausibility constraints intersect. A pair without a common meaning raises a `CompositionError` in the first
layer that both edit, two editors of MLP outputs when the prompt begins. With default parameters these do, and
no others:
"""


def page() -> str:
    """docs/reference/methods.md as text."""
    methods = [_section(path, "##") for _, path in sorted(BUILT_IN.items())]
    controls = [CONTROLS_INTRODUCTION, _own_controls(), *_subsections(CONTROLS)]
    transforms = [VISION, *_subsections(VISION_TRANSFORMS)]
    overview = [INTRODUCTION, _overview(), RUNNING, _running()]
    return "\n".join([*overview, *methods, *controls, *transforms, _combining(), _absent()])


def _overview() -> str:
    rows = [(_link(c), c.summary, _needed(c.facts), c.cost, c.source) for c in _classes()]
    return _table(("method", "what it does", "what it needs", "cost", "source"), rows)


def _running() -> str:
    rows = [
        (_link(c), PREFIXES[_default_method(c).shares_prefix], GRAPHS[c.facts.graphs], in_engine(c.facts))
        for c in _classes()
    ]
    return _table(("method", "prefix", "whole graphs", "serving engine"), rows)


def _needed(facts: Facts) -> str:
    return ", ".join(NEEDS[need] for need in facts.needs if need in NEEDS)


def _classes() -> list[Any]:
    return [resolve_name(path) for _, path in sorted(BUILT_IN.items())]


def _link(cls: Any) -> str:
    return f"[`{cls.name}`](#{cls.name})"


def _default_method(cls: Any) -> Any:
    """The method with parameters that make it act, as far as it needs none of a model."""
    return cls(**_ACTING.get(cls.name, {}))


def _own_controls() -> str:
    """The controls that methods name with parameters that make these act."""
    named: dict[str, list[str]] = {}
    for name, path in sorted(BUILT_IN.items()):
        method = _default_method(resolve_name(path))
        controls = {control.name for control in method.controls()}
        if hasattr(method, "with_random_directions"):  # also one that has none by default
            controls.add("random-direction")
        for control in controls:
            named.setdefault(control, []).append(f"`{name}`")
    rows = [(f"[`{name}`](#{name})", ", ".join(methods)) for name, methods in sorted(named.items())]
    return _table(("control", "of"), rows)


def _subsections(paths: Mapping[str, str]) -> list[str]:
    return [_section(path, "###") for _, path in sorted(paths.items())]


def _section(path: str, heading: str) -> str:
    """The section of the class at "module:Class"."""
    cls = resolve_name(path)
    rows = [(f"`{p.name}`", _default(p), p.allowed, p.help) for p in parameters_of(cls)]
    parts = [
        f"{heading} {cls.name}\n",
        f"`{path.replace(':', '.')}` - {cls.summary}. Source: {cls.source}.\n",
        f"**Edits.** {cls.edits}\n",
        f"**Cost.** {cls.cost}\n",
    ]
    if cls.release:
        parts.append(f"**Release.** {cls.release}\n")
    return "\n".join([*parts, _table(("parameter", "default", "allowed", "meaning"), rows)])


def _default(parameter: Parameter) -> str:
    return "required" if parameter.default is MISSING else f"`{parameter.default}`"


def _combining() -> str:
    rows = [(" with ".join(f"`{name}`" for name in pair), why) for pair, why in INCOMPATIBLE.items()]
    return COMBINING + "\n" + _table(("pair", "why"), rows)


def _absent() -> str:
    return "## Not here\n\n" + _table(("method", "why not"), ABSENT)


def _table(heading: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    heading = list(heading)
    lines = [
        heading,
        ["---"] * len(heading),
        *([str(cell).replace("|", "\\|") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Write docs/reference/methods.md, or the file given as argument."""
    root = Path(inspect.getfile(sys.modules["regaze"])).resolve().parent.parent
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "docs" / "reference" / "methods.md"
    replace_file(path, page())


if __name__ == "__main__":
    main()
