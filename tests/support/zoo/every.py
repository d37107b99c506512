"""All entries of the zoo, in the order of docs/models.md."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version
from zoo import cross_attention, documents, gemma, llava_like, others, qwen, text, tiled
from zoo.base import Entry

_PARTS = (llava_like, qwen, gemma, tiled, others, documents, cross_attention)
VISION: tuple[Entry, ...] = tuple(e for part in _PARTS for e in part.ENTRIES if e.refused is None)
TEXT: tuple[Entry, ...] = tuple(e for e in text.ENTRIES if e.refused is None)
REFUSED: tuple[Entry, ...] = tuple(e for e in text.ENTRIES if e.refused is not None)


def label(entry: Entry) -> str:
    """A name in the report of a test run, of an entry that need not be the only one of its model type."""
    return f"{entry.name}-{getattr(entry.build, '__name__', 'text')}"


#: Rows that need a transformers newer than the oldest supported one: their processors are built without
#: torchvision only there, their code is not there or fails, or SDPA leaves out a soft cap (Gemma 2).
_NEWER_ONLY = "idefics2 idefics3 smolvlm ovis2 kosmos-2 kosmos-2.5 molmo2 granite4_vision gemma2"
NEWER = frozenset(_NEWER_ONLY.split())


def skip_if_older(entry: Entry) -> None:
    """Skip a test where the installed transformers lacks the family."""
    if entry.name in NEWER and Version(transformers.__version__) < Version("5.23"):
        pytest.skip(f"{entry.name} needs a newer transformers than {transformers.__version__}")
