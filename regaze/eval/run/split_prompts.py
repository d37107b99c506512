"""Split prompts about the same images into a common prefix and what follows it, as token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SplitPrompts:
    """B prompts as a prefix for each of G groups, and the remainder of each prompt.

    Attributes:
        prefixes: token ids of each group's prefix [G].
        remainders: token ids of each prompt after its prefix [B], none empty.
        groups: the group of each prompt [B].
        media: the processor's image inputs, once per group.
        one_image_each: whether every group is about exactly one image.
    """

    prefixes: list[list[int]]
    remainders: list[list[int]]
    groups: list[int]
    media: Mapping[str, Tensor]
    one_image_each: bool

    @classmethod
    def at_common_prefix(
        cls,
        ids: list[list[int]],
        groups: list[int],
        image_ends: list[int],
        media: Mapping[str, Tensor],
        one_image_each: bool,
    ) -> SplitPrompts | None:
        """Split every prompt after the longest prefix of its group that leaves each prompt a token.

        Args:
            ids: token ids of the prompts [B].
            image_ends: the end of the last image token in each group; a prefix contains all images.

        Returns:
            None where that runs no fewer tokens.
        """
        members = [
            [row for row, own in zip(ids, groups, strict=True) if own == group]
            for group in range(len(image_ends))
        ]
        lengths = [_common_prefix(rows) for rows in members]
        # A single prompt in its group can be split anywhere: so that it pads the remainders no further.
        longest = max(
            len(row) - lengths[own] for row, own in zip(ids, groups, strict=True) if len(members[own]) > 1
        )
        for group, rows in enumerate(members):
            if len(rows) == 1:
                lengths[group] = min(lengths[group], max(1, image_ends[group], len(rows[0]) - longest))
        if min(lengths) < 1 or any(n < end for n, end in zip(lengths, image_ends, strict=True)):
            return None
        prefixes = [rows[0][:n] for n, rows in zip(lengths, members, strict=True)]
        remainders = [row[lengths[own] :] for row, own in zip(ids, groups, strict=True)]
        split = cls(prefixes, remainders, groups, media, one_image_each)
        return split if split.num_positions < len(ids) * max(map(len, ids)) else None

    @property
    def length(self) -> int:
        """Columns of the batch with prefixes and remainders padded separately."""
        return max(map(len, self.prefixes)) + max(map(len, self.remainders))

    @property
    def num_positions(self) -> int:
        """Positions that are run before the first new token, padding included."""
        prefixes = len(self.prefixes) * max(map(len, self.prefixes))
        return prefixes + len(self.remainders) * max(map(len, self.remainders))

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of the whole prompts."""
        return [self.prefixes[own] + rest for own, rest in zip(self.groups, self.remainders, strict=True)]

    def media_per_prompt(self) -> dict[str, Tensor]:
        """`media` repeated for each prompt; empty where it is not known what belongs to which prompt."""
        if not self.one_image_each or any(len(each) != len(self.prefixes) for each in self.media.values()):
            return {}
        return {name: value[self.groups] for name, value in self.media.items()}


def expand_images(
    leader: list[int], leader_short: list[int], short: list[int], image_token_ids: frozenset[int]
) -> list[int] | None:
    """Token ids of a prompt, from those of another prompt about the same images.

    Args:
        leader: ids of the other prompt, as the processor expands its images.
        leader_short, short: ids of the other and of this prompt, with a single placeholder per image.

    Returns:
        None where the prompts differ before the last image, or expansion changes what follows it.
    """
    common = _common_length(leader_short, short)
    rest = len(leader_short) - common
    if (
        common < image_end([token in image_token_ids for token in leader_short])
        or not image_token_ids.isdisjoint(short[common:])
        or leader[len(leader) - rest :] != leader_short[common:]
    ):
        return None
    return leader[: len(leader) - rest] + short[common:]


def image_end(is_image: list[bool]) -> int:
    """The end of the last image token; 0 without one."""
    return 1 + max((i for i, image in enumerate(is_image) if image), default=-1)


def _common_prefix(rows: list[list[int]]) -> int:
    """Length of the longest common prefix that leaves every row a token."""
    first, last = min(rows), max(rows)  # in lexical order: a prefix of both is a prefix of all
    return min(_common_length(first, last), min(map(len, rows)) - 1)


def _common_length(a: list[int], b: list[int]) -> int:
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)
