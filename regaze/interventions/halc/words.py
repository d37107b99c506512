"""The object word that an answer has just completed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from regaze.toolkit.prompts.content_words import find_tagger, read_tokens

#: Parts of speech of words for things, and the tag of "function-words" for all words with content.
_THINGS = frozenset({"NOUN", "PROPN", "CONTENT"})


class ObjectWord(NamedTuple):
    """A word or phrase at the end of an answer. start: number of its first token."""

    name: str
    start: int


class ObjectWords:
    """Finds the object word at the end of an answer.

    Args:
        tokenizer: decodes the ids.
        names: what counts as an object, in the singular; () for all words that a tagger calls nouns.
        tagger: its name, see `content_words`.
    """

    def __init__(self, tokenizer: Any, names: Sequence[str], tagger: str):
        self.tokenizer, self._tag = tokenizer, find_tagger(tagger)
        self._names = {name.strip().casefold(): name for name in names if name.strip()}
        # The longest name that fits comes first: "teddy bear" before "bear".
        ordered = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile(
            rf"(?<![^\W_])({'|'.join(map(re.escape, ordered))})(?:e?s)?\Z", re.IGNORECASE
        )

    def ends_before(self, ids: Sequence[int], token: int) -> bool:
        """Whether the answer `ids` ends in a whole word if `token` follows it."""
        before, after = (self._decode(part) for part in (ids, [*ids, token]))
        added = after[len(before) :]
        return before[-1:].isalnum() and bool(added) and not added[0].isalnum()

    def last(self, ids: Sequence[int]) -> ObjectWord | None:
        """The object word that the answer ends in; None: it ends in another word."""
        text, offsets = read_tokens(self.tokenizer, ids)
        found = self._found(text)
        if found is None:
            return None
        name, position = found
        start = next(number for number, (_, end) in enumerate(offsets) if end > position)
        return ObjectWord(name, start)

    def _found(self, text: str) -> tuple[str, int] | None:
        """The name of an object and the position of its first character."""
        if self._names:
            match = self._pattern.search(text)
            return None if match is None else (self._names[match[1].casefold()], match.start())
        words = self._tag(text)
        if not words or words[-1].tag not in _THINGS:
            return None
        last = words[-1]
        return (last.text, last.start) if last.start + len(last.text) == len(text) else None

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text
