"""Long texts to hide a needle in: read from files, tokenised, with the positions where sentences end."""

from __future__ import annotations

import re
from os import fspath
from typing import Any

import numpy as np

from regaze.errors import InputError
from regaze.reading import StrPath, read_text

#: End of a sentence: not after an initial or a short title ("Mr."), not before a lower-case letter.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b[A-Z][a-z])(?<!\b[A-Z][a-z]{2})"
    r"[.!?…]+[\"'”’)\]]*(?=\s)(?!\s+[\"'“‘(\[]*[a-z])"
    r"|[。！？]+[”’』」）]*"
)


def read_haystack(path: StrPath) -> str:
    """A text file (UTF-8, may be gzipped) without the line breaks inside paragraphs.

    Books have hard line breaks. A model that copies one ends its answer there, because answers end at a
    newline.

    Raises:
        InputError: the file cannot be read, is not text, or is empty.
    """
    path = fspath(path)
    text = read_text(path, "haystack ")
    if not text.strip():
        raise InputError(f"haystack {path!r} is empty")
    text = text.replace("\r\n", "\n").strip()
    return re.sub(r"(?<=\S)[ \t]*\n[ \t]*(?=\S)", " ", text)


class Haystack:
    """A text as tokens, repeated as often as needed.

    Args:
        text: what to hide needles in.
        tokenizer: a fast tokenizer; its character offsets show where sentences end.

    Attributes:
        ids: [n] token ids of the text.
        ends: [m] increasing counts of tokens after which a sentence ends.
    """

    def __init__(self, text: str, tokenizer: Any):
        # The leading space lets a needle at depth 0 be followed by a separate word.
        text = " " + text.strip()
        if not getattr(tokenizer, "is_fast", False):
            raise InputError("needles are placed by character offsets: load the model's fast tokenizer")
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self.ids = np.asarray(encoded["input_ids"])
        if not len(self.ids):
            raise InputError("the haystack is empty")
        self.ends = sentence_ends(text, np.asarray([end for _, end in encoded["offset_mapping"]]))

    def take(self, count: int) -> np.ndarray:
        """The first `count` tokens."""
        return np.resize(self.ids, count)

    def place(self, count: int, depth: float) -> int:
        """After how many of `count` tokens to insert a needle for a depth in percent.

        Depths 0 and 100 are the start and the end; others the end of a sentence nearest to the depth.

        Raises:
            InputError: no sentence ends among these tokens.
        """
        if depth in (0, 100):
            return count if depth else 0
        repeats = np.arange(-(-count // len(self.ids))) * len(self.ids)
        ends = (repeats[:, None] + self.ends).ravel()
        ends = ends[ends < count]
        if not len(ends):
            raise InputError(
                f"no sentence of the haystack ends within its first {count} tokens: use a longer context, "
                "or depths 0 and 100 only"
            )
        return int(ends[np.abs(ends - count * depth / 100).argmin()])


def sentence_ends(text: str, token_ends: np.ndarray) -> np.ndarray:
    """Counts of tokens after which a sentence of `text` ends, given each token's end in characters.

    A token may contain the end of a sentence and the white space after it (".\\n\\n"), but nothing else.
    """
    found = []
    for match in _SENTENCE_END.finditer(text):
        count = int(np.searchsorted(token_ends, match.end(), side="right"))
        if count and token_ends[count - 1] == match.end():
            found.append(count)
        elif count < len(token_ends) and text[match.end() : token_ends[count]].isspace():
            found.append(count + 1)
    return np.asarray(found, dtype=np.int64)
