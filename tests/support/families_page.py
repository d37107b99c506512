"""Writes docs/reference/families.md from the results of the checks of every family.

python tests/support/families_page.py
"""

from __future__ import annotations

import sys

import torch
from family_checks import CHECKS, outcome
from paths import DOCS
from zoo.base import Entry
from zoo.every import BROKEN, INSTALLED, REFUSED, TEXT, VISION, runs
from zoo.towers import TOWERS

from regaze.toolkit.model import compat

STALE = "docs/reference/families.md is stale: run `python tests/support/families_page.py`"
PAGE = DOCS / "reference" / "families.md"

INTRODUCTION = f"""# Model families

*Written from the tests by `python tests/support/families_page.py`; do not edit by hand.*

regaze takes hold of a model through transformers' attention interface, so that it needs no fork and no patch.
What it must know of a family is where image tokens sit and what each of them shows. The families below are
known; each row was made by a tiny random model of the family's own classes with its own processor, on a CPU
and transformers {compat.NEWEST} (most also run on {compat.OLDEST}). Of real checkpoints, the bundled LLaVA,
SmolLM2-135M, Gemma 3 270M and Whisper tiny.en were run ([real models](../studies/real-models.md)).
`regaze inspect MODEL` says what regaze finds in yours, without loading its weights.

- **idle equal**: wrapped, with nothing to do, logits of the prefill and four steps are those of the unwrapped
  model to the bit, in a left-padded batch of two different prompts.
- **roles**: IMAGE tokens are those that another image changes; a bright patch changes the cell whose box
  holds it the most; QUERY tokens are the question. "no grid": the family resamples images, so that its tokens
  have no place.
- **masses**: recorded attention equals that of the model's own eager attention within 1e-5, at the prefill
  and two steps.
- **methods**: what was run; neutral strength is equal to the bit, and a batch gives what its prompts give one
  by one. Every method was run on thirteen of the families ([methods by family](method-families.md)); what
  needs a grid, or pixels that a family does not hand on, raises where they are missing.
- **restored**: after a block, also one that an exception ended, no trace is left.
- **prompts**: read from the model's inputs alone: several images, none, one behind the question (last), a
  conversation of several turns.

A model that is not here and whose configuration names its image token is guessed at, with a warning: each run
of image tokens is one image, in a grid of the shape that the model's inputs say. Where they contradict that,
image tokens get no grid, and a warning says why. Others work with roles of your own,
`gaze.using(..., tokens=TokenMap(...))`.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## Vision-language\n", _table(VISION), "\n## Text\n", _table(TEXT)]
    parts += ["\n## Others\n", _others(), "\n## Refused\n", _refused()]
    return "\n".join(parts) + "\n"


def row(entry: Entry) -> str:
    """One line of the table."""
    cells = [outcome(entry, check) for check in CHECKS]
    note = (
        entry.note if entry.batch else "; ".join(filter(None, (entry.note, "batches differ in transformers")))
    )
    return f"| {' | '.join([entry.name, *cells, note])} |"


def _table(entries: tuple[Entry, ...]) -> str:
    names = ["family", *CHECKS, "notes"]
    rows = [row(entry) for entry in filter(runs, entries)]
    return "\n".join([f"| {' | '.join(names)} |", "| --- " * len(names) + "|", *rows])


def _others() -> str:
    towers = ", ".join(f"`{name}`" for name in TOWERS)
    return (
        "- **Whisper**: self-attention and cross-attention of the decoder (`record[0].cross`); idle equal,\n"
        "  recorded rows equal to eager attention, head knock-out of either, PAI.\n"
        f"- **Vision towers alone** ({towers}):\n"
        "  idle equal, records equal to the model's own attention, head knock-out."
    )


def _refused() -> str:
    names = ", ".join(f"`{entry.name}`" for entry in REFUSED)
    broken = ", ".join(f"`{name}`" for name, release in BROKEN.items() if release == INSTALLED)
    return (
        f"{names}: their attention does not go through the interface, or they have no attention\n"
        "implementation to set. `gaze.using` raises an `UnsupportedModelError`, and the model is as it was.\n"
        f"\n{broken}: its class fails in transformers {INSTALLED}, with regaze and without; under 5.23 it\n"
        "passes every check. `gaze.using` raises an `UnsupportedModelError` there."
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")
