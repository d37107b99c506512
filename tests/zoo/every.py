"""All entries of the zoo, in the order of docs/models.md."""

from __future__ import annotations

from zoo import crossing, documents, gemma, llava_like, others, qwen, text, tiled
from zoo.base import Entry

_PARTS = (llava_like, qwen, gemma, tiled, others, documents, crossing)
VISION: tuple[Entry, ...] = tuple(e for part in _PARTS for e in part.ENTRIES if e.refused is None)
TEXT: tuple[Entry, ...] = tuple(e for e in text.ENTRIES if e.refused is None)
REFUSED: tuple[Entry, ...] = tuple(e for e in text.ENTRIES if e.refused is not None)


def label(entry: Entry) -> str:
    """A name in the report of a test run, of an entry that need not be the only one of its model type."""
    return f"{entry.name}-{getattr(entry.build, '__name__', 'text')}"
