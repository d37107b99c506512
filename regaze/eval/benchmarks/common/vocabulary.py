"""Object words in captions, for a closed list of words."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mention:
    """An object word of a caption: its base form, its category and the index of its token."""

    word: str
    category: str
    token: int


@dataclass(frozen=True, eq=False)
class ClosedVocabulary:
    """Finds the words of a list in captions that use no others, the longest first: "hot dog" is no dog."""

    vocabulary: tuple[str, ...]
    _pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        words = sorted(map(re.escape, self.vocabulary), key=len, reverse=True)
        object.__setattr__(self, "_pattern", re.compile(rf"\b({'|'.join(words)})\b|\w+"))

    def read(self, caption: str) -> tuple[list[Mention], list[str]]:
        """(objects in the order in which they are named, the words of the caption)."""
        matches = list(self._pattern.finditer(caption.lower()))
        mentions = [Mention(match[1], match[1], at) for at, match in enumerate(matches) if match[1]]
        return mentions, [match[0] for match in matches]
