"""From images and a question to token ids and roles, through the model's own chat template.

Two ways lead to roles. `PromptReader.render` knows the question's characters in the rendered prompt and maps
them to tokens through the tokenizer's offsets: exact. `PromptReader.read` sees token ids alone (a user's own
`model.generate(**inputs)`) and recognises the text that the template puts around every question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regaze.errors import InputError
from regaze.toolkit.families import Family
from regaze.toolkit.tokens import Role, Sample


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt; `span` is the question's character range (image placeholders not expanded)."""

    text: str
    span: tuple[int, int]


class PromptReader:
    """Renders and reads prompts of one model.

    Args:
        processor: a transformers processor or tokenizer, or None (then prompts can only be read, not
            rendered).
        family: where image tokens are.
    """

    def __init__(self, processor: Any, family: Family):
        self.processor, self.family = processor, family
        self.tokenizer = getattr(processor, "tokenizer", processor)

    # Rendering ----------------------------------------------------------------------------------------

    def render(self, question: str, images: int, system: str | None = None) -> Prompt:
        """The prompt that asks `question` about `images` images, ready to be answered."""
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"a question is a text that is not empty, got {question!r}")
        question = question.strip()
        if images and self.processor is self.tokenizer:
            raise InputError("this is a text-only model: ask it without images")
        placeholder = getattr(self.processor, "image_token", None)
        if placeholder and (placeholder in question or placeholder in (system or "")):
            raise InputError(
                f"the text contains {placeholder!r}, which stands for an image in this model's prompts"
            )
        if getattr(self.processor, "chat_template", None) is None:
            return self._render_plainly(question, images, system)
        text = self._template(question, images, system)
        probe = self._template(_PROBE, images, system)
        start = probe.find(_PROBE)
        end = len(text) - (len(probe) - start - len(_PROBE))
        if start < 0 or text[start:end] != question:
            raise InputError(
                "the chat template changes the question's text, so its tokens cannot be told from the rest"
            )
        return Prompt(text, (start, end))

    def _render_plainly(self, question: str, images: int, system: str | None) -> Prompt:
        if images or system:
            raise InputError(
                "this processor has no chat template to build a prompt with an image or system text"
            )
        return Prompt(question, (0, len(question)))

    def _template(self, question: str, images: int, system: str | None) -> str:
        text: Any = question
        if self.processor is not self.tokenizer:  # multimodal templates take lists of parts
            text = [{"type": "image"}] * images + [{"type": "text", "text": question}]
            system_content: Any = [{"type": "text", "text": system}]
        else:
            system_content = system
        messages = [{"role": "system", "content": system_content}] if system else []
        messages.append({"role": "user", "content": text})
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    # Roles --------------------------------------------------------------------------------------------

    def roles(self, prompt: Prompt, ids: Sequence[int]) -> Sample:
        """Roles of a rendered prompt whose final (image-expanded, unpadded) token ids are `ids`."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError(
                "roles need a fast tokenizer (character offsets); load the processor with its fast tokenizer"
            )
        encoded = self.tokenizer(
            prompt.text, return_offsets_mapping=True, add_special_tokens=self.adds_special_tokens(prompt.text)
        )
        start, end = prompt.span
        question = [a < end and b > start for a, b in encoded["offset_mapping"]]
        return self._sample(self._expand(encoded["input_ids"], question, ids), ids)

    def adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer must add its special tokens: not when the template has written them."""
        bos = getattr(self.tokenizer, "bos_token", None)
        return not (bos and text.startswith(bos))

    def _expand(self, short: Sequence[int], question: Sequence[bool], ids: Sequence[int]) -> list[bool]:
        """Carry flags over to the final ids, in which one placeholder became many image tokens."""
        image_id = self.family.image_token_id
        flags, position = [False] * len(ids), 0
        for token, flag in zip(short, question, strict=True):
            if token == image_id and image_id is not None:
                while position < len(ids) and ids[position] == image_id:
                    position += 1
                continue
            if position >= len(ids) or ids[position] != token:
                raise InputError(
                    "the token ids do not follow from the rendered prompt; pass tokens=TokenMap(...)"
                )
            flags[position] = flag
            position += 1
        return flags

    def read(self, ids: Sequence[int]) -> Sample:
        """Roles from token ids alone; what follows the assistant header is OUTPUT."""
        image_id = self.family.image_token_id
        after_image = (
            1 + max((i for i, token in enumerate(ids) if token == image_id), default=-1)
            if image_id is not None
            else 0
        )
        frame = self._frame_with_image if after_image else self._frame_without
        if after_image:
            first = after_image + _match_prefix(ids[after_image:], frame.before)
        else:
            first = _match_prefix(ids, frame.before)
            if first == 0 and ids and ids[0] == getattr(self.tokenizer, "bos_token_id", None):
                first = 1
        stop = _find_last(ids, frame.after, first)
        question = [first <= i < stop for i in range(len(ids))]
        return self._sample(question, ids, output_from=stop + len(frame.after))

    def _sample(self, question: Sequence[bool], ids: Sequence[int], output_from: int | None = None) -> Sample:
        """Roles, image numbers and cells, given which tokens are the question."""
        image_id = self.family.image_token_id
        n = len(ids)
        is_image = [image_id is not None and token == image_id for token in ids]
        marked = [i for i in range(n) if question[i] or is_image[i]]
        first, last = (marked[0], marked[-1]) if marked else (n, n - 1)
        roles, image, cell = [int(Role.SYSTEM)] * n, [-1] * n, [-1] * n
        for i in range(n):
            if question[i]:
                roles[i] = Role.QUERY
            elif is_image[i]:
                roles[i] = Role.IMAGE
            elif output_from is not None and i >= output_from:
                roles[i] = Role.OUTPUT
            elif i > last:
                roles[i] = Role.TAIL
            elif i > first:
                roles[i] = Role.SEPARATOR
        grids: list[tuple[int, int]] = []
        for start, count in _runs(is_image):
            position = start
            for grid, cells in self.family.split_images(count):
                for c in cells:
                    image[position], cell[position] = len(grids), c
                    position += 1
                grids.append(grid)
        return Sample(tuple(roles), tuple(image), tuple(cell), tuple(grids))

    @cached_property
    def _frame_with_image(self) -> _Frame:
        return self._frame(1)

    @cached_property
    def _frame_without(self) -> _Frame:
        return self._frame(0)

    def _frame(self, images: int) -> _Frame:
        """Tokens that the template puts around any question (after the image), found with two probes."""
        if getattr(self.processor, "chat_template", None) is None:
            return _Frame((), ())
        rendered = [
            self._template(text, images, None) for text in ("Is this a probe?", "What do 2 probes say!")
        ]
        a, b = (
            self.tokenizer(text, add_special_tokens=self.adds_special_tokens(text))["input_ids"]
            for text in rendered
        )
        prefix = _common_prefix(a, b)
        suffix = _common_prefix(a[::-1], b[::-1])[::-1]
        image_id = self.family.image_token_id
        if images and image_id in prefix:
            prefix = prefix[len(prefix) - prefix[::-1].index(image_id) :]
        return _Frame(tuple(prefix), tuple(suffix))


@dataclass(frozen=True)
class _Frame:
    before: tuple[int, ...]
    after: tuple[int, ...]


_PROBE = "\u2983probe\u2984"  # unlikely brackets: text that no template contains


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> list[int]:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return list(a[:count])


def _match_prefix(ids: Sequence[int], prefix: Sequence[int]) -> int:
    """Length of the whole prefix if `ids` starts with it, else 0."""
    return len(prefix) if tuple(ids[: len(prefix)]) == tuple(prefix) else 0


def _find_last(ids: Sequence[int], pattern: Sequence[int], start: int) -> int:
    """Start of the last occurrence of `pattern` at or after `start`; the end of `ids` without one."""
    size = len(pattern)
    for position in range(len(ids) - size, start - 1, -1):
        if size and tuple(ids[position : position + size]) == tuple(pattern):
            return position
    return len(ids)


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(start, length) of each run of True."""
    runs: list[tuple[int, int]] = []
    for i, flag in enumerate(flags):
        if flag and i and flags[i - 1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif flag:
            runs.append((i, 1))
    return runs
