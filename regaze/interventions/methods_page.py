"""The page of all methods, docs/methods.md, written from the registry.

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
from regaze.interventions.parameters import Parameter, parameters_of
from regaze.interventions.registry import BUILT_IN, CONTROLS, VISION_TRANSFORMS
from regaze.writing import replace_file

#: What some need so that they change anything.
_ACTING: dict[str, dict[str, Any]] = {"knockout": {"heads": ((0, 0),)}, "m3id": {"as_released": True}}

#: Methods that are not here, and why.
ABSENT = (
    ("CCA", "Concentric position ids and mask: trained into a model, not applied to a trained one."),
    ("TAME", "Its released edit sharpens all scores by one factor, differently in prefill and decode."),
    (
        "HALC",
        "Needs an object detector and CLIP, and contrasts crops chosen by them.",
    ),
    ("AttnReal", "No code and no threshold is published from which it could be rebuilt."),
    ("IKOD", "No code is published; how anchors and weights are chosen is not known."),
    ("MODA", "A trained replacement of the attention, which needs its weights."),
)

INTRODUCTION = """# Methods

*Written from the code by `python -m regaze.interventions.methods_page`; do not edit by hand.*

Every method works in batches and with the key-value cache, and leaves the model unchanged after its block.
Token roles are known for the families of [models.md](models.md); for others pass them with
`gaze.using(..., tokens=...)`. Defaults are the papers'. Layer ranges that were published for a model of 32
layers are scaled to the depth of your model unless you give your own. Where released code differs from its
paper in a defined way, `as_released=True` gives the code's behaviour. Nothing here was copied from a release:
everything is written from equations and facts. Pass parameters as `--set name=value` on the command line, or
to the class. [Write your own](new-method.md).

Methods with a parameter `directions` act along vectors that are fitted once per model: `regaze fit METHOD
--model ... --data ... -o FILE`, for the demo model `regaze fit METHOD -o FILE`. VTI and Nullu take pairs of
captions, lines of JSON such as {"image": "1.jpg", "value": "A dog.", "h_value": "A dog and a cat."} (a true
and an invented one of an image), ICT takes questions, {"image": "1.jpg", "text": "Is there a dog in the
image?", "label": "yes"}. The file says on which model, data and settings it was fitted; another shape of
model is refused. Their control is random directions of the same lengths. A fit on images that are asked
about later is no test of the method: the file lists them.
"""

CONTROLS_INTRODUCTION = """## Controls

What a method has to beat before its idea gets the credit. They are made and used as methods
(`regaze.interventions.controls`), and take part in the evaluation of any with `--controls`
([evaluation.md](evaluation.md#controls)): *prefer-yes* and *near-tie* on yes/no questions,
*drop-last-sentence* and *stop-after* on longer texts, and those that a method names itself
(`method.controls()`):
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
    """docs/methods.md as text."""
    methods = [_section(path, "##") for _, path in sorted(BUILT_IN.items())]
    controls = [CONTROLS_INTRODUCTION, _own_controls(), *_subsections(CONTROLS)]
    transforms = [VISION, *_subsections(VISION_TRANSFORMS)]
    return "\n".join([INTRODUCTION, _overview(), *methods, *controls, *transforms, _combining(), _absent()])


def _overview() -> str:
    classes = [resolve_name(path) for _, path in sorted(BUILT_IN.items())]
    rows = [(f"[`{c.name}`](#{c.name})", c.summary, c.cost, c.source) for c in classes]
    return _table(("method", "what it does", "cost", "source"), rows)


def _own_controls() -> str:
    """The controls that methods name with parameters that make these act."""
    named: dict[str, list[str]] = {}
    for name, path in sorted(BUILT_IN.items()):
        method = resolve_name(path)(**_ACTING.get(name, {}))
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
    """Write docs/methods.md, or the file given as argument."""
    root = Path(inspect.getfile(sys.modules["regaze"])).resolve().parent.parent
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "docs" / "methods.md"
    replace_file(path, page())


if __name__ == "__main__":
    main()
