"""All entries of the zoo, in the order of docs/reference/families.md."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version
from zoo import any_shape, cross_attention, documents, gemma, llava_like, ocr, others, qwen, text, tiled
from zoo.base import Entry

from regaze.toolkit.model import compat

#: Rows that need a transformers newer than the oldest supported one: their processors are built without
#: torchvision only there, their code is not there or fails, SDPA leaves out a soft cap (Gemma 2), or their
#: attention has gone through the interface only since (GPT-J, CodeGen).
_SINCE = {
    "5.23": "idefics2 idefics3 smolvlm ovis2 kosmos-2 kosmos-2.5 molmo2 granite4_vision gemma2 "
    "hyperclovax_vision_v2 lfm3_vl qwen4_exp",
    "5.24": "gptj codegen hy_v4_vl apertus1p5",
}
SINCE = {name: Version(release) for release, names in _SINCE.items() for name in names.split()}
#: Rows whose class fails in one release of transformers, with regaze and without.
BROKEN = {"llama4": Version("5.24.0")}

INSTALLED = Version(transformers.__version__)
_PARTS = (llava_like, qwen, any_shape, gemma, tiled, others, documents, ocr, cross_attention)


def _refused(entry: Entry) -> bool:
    """Whether regaze cannot work with it under the installed transformers."""
    return entry.refused is not None and SINCE.get(entry.name, Version("99")) > INSTALLED


VISION: tuple[Entry, ...] = tuple(e for part in _PARTS for e in part.ENTRIES)
TEXT: tuple[Entry, ...] = tuple(e for e in text.ENTRIES if not _refused(e))
REFUSED: tuple[Entry, ...] = tuple(e for e in text.ENTRIES if _refused(e))


def runs(entry: Entry) -> bool:
    """Whether the installed transformers runs the family's forward; prompts are read in any case."""
    return BROKEN.get(entry.name) != INSTALLED


#: Those whose forward runs.
RUNNING = tuple(filter(runs, VISION))


def label(entry: Entry) -> str:
    """A name in the report of a test run, of an entry that need not be the only one of its model type."""
    return f"{entry.name}-{getattr(entry.build, '__name__', 'text')}"


def skip_if_older(entry: Entry) -> None:
    """Skip a test where the installed transformers lacks the family."""
    if SINCE.get(entry.name, INSTALLED) > INSTALLED:
        pytest.skip(f"{entry.name} needs a newer transformers than {INSTALLED}")


def skip_page_if_other_release() -> None:
    """Skip a test of docs/reference/families.md, which the newest tested transformers has written."""
    if INSTALLED.release[:2] != Version(compat.NEWEST).release:
        pytest.skip(f"docs/reference/families.md is of transformers {compat.NEWEST}")
