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

from PIL import Image
from transformers import BatchFeature

from regaze.errors import InputError
from regaze.toolkit.prompts.families import Family, Layout, MediaInputs
from regaze.toolkit.prompts.token_map import Role, Sample


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt; `span` is the question's character range (image placeholders not expanded)."""

    text: str
    span: tuple[int, int]


class PromptReader:
    """Renders, tokenises and reads prompts of one model.

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
        for placeholder in self._placeholders:
            if placeholder in question or placeholder in (system or ""):
                raise InputError(
                    f"the text contains {placeholder!r}, which stands for an image or video in this model's "
                    "prompts"
                )
        text = self._text(question, images, system)
        probe = self._text(_PROBE, images, system)
        start = probe.find(_PROBE)
        end = len(text) - (len(probe) - start - len(_PROBE))
        if start < 0 or text[start:end] != question:
            raise InputError(
                "the chat template changes the question's text, so its tokens cannot be told from the rest"
            )
        return Prompt(text, (start, end))

    @cached_property
    def _placeholders(self) -> frozenset[str]:
        """Tokens that no text may contain: they would be taken for an image, or a part of one."""
        named = (getattr(self.processor, name, None) for name in _PLACEHOLDERS)
        added: Any = getattr(self.tokenizer, "get_added_vocab", dict)
        written: dict[str, int] = added()  # no ordinary word is meant
        shown = (token for token, i in written.items() if i in self.family.image_token_ids)
        return frozenset(str(token) for token in (*named, *shown) if token)  # BLIP has an AddedToken

    def _text(self, question: str, images: int, system: str | None) -> str:
        if getattr(self.processor, "chat_template", None) is None:
            return self.family.format_prompt(question, images, system)
        messages = [self._message("system", system)] if system else []
        return self._template([*messages, self._message("user", question, images)])

    def _message(self, role: str, text: str, images: int = 0, first: bool = True) -> dict[str, Any]:
        if self.processor is self.tokenizer:
            return {"role": role, "content": text}
        # Multimodal templates take lists of parts.
        shown, said = [{"type": "image"}] * images, [{"type": "text", "text": text}]
        return {"role": role, "content": shown + said if first else said + shown}

    def _template(self, messages: list[dict[str, Any]]) -> str:
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def tokenise(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> BatchFeature:
        """Rendered prompts and the images of each as a batch, padded where the family wants it."""
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        options: dict[str, Any] = {
            "padding": True,
            "return_tensors": "pt",
        }
        if not self.adds_special_tokens(texts[0]):  # otherwise a processor knows what it adds itself
            options["add_special_tokens"] = False
        if any(images):
            nested = self.family.nested_images
            options["images"] = [list(i) for i in images] if nested else [one for i in images for one in i]
        before = self.tokenizer.padding_side
        # As an option of the call it would go to a Q-Former's tokenizer, too.
        self.tokenizer.padding_side = self.family.padding_side
        try:
            return self.family.fix_inputs(BatchFeature(dict(self.processor(text=list(texts), **options))))
        finally:
            self.tokenizer.padding_side = before

    # Roles --------------------------------------------------------------------------------------------

    def roles(self, prompt: Prompt, ids: Sequence[int], media: MediaInputs) -> Sample:
        """Roles of a rendered prompt whose final (image-expanded, unpadded) token ids are `ids`."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError(
                "roles need a fast tokenizer (character offsets); load the processor with its fast tokenizer"
            )
        encoded = self.tokenizer(
            prompt.text, return_offsets_mapping=True, add_special_tokens=self.adds_special_tokens(prompt.text)
        )
        start, end = prompt.span
        question = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start]
        return _sample(_carried(question, encoded["input_ids"], ids), self.family.read_layout(ids, media))

    def adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer must add its special tokens: not when the template has written them."""
        bos = getattr(self.tokenizer, "bos_token", None)
        return not (bos and text.startswith(bos))

    def read(self, ids: Sequence[int], media: MediaInputs | None = None) -> Sample:
        """Roles from token ids alone; what follows the assistant header is OUTPUT.

        In a conversation of several turns the question is what the user says last.

        Args:
            ids: [n], a prompt without padding.
            media: what the processor said beside them; needed by families whose ids do not tell the grid.
        """
        layout = self.family.read_layout(ids, media or MediaInputs({}))
        images = [i for i, view in enumerate(layout.view) if view >= 0]
        frame = self._frame_with_image if images else self._frame_without
        after_image = 1 + images[-1] if images else 0
        first = after_image + max(_match_prefix(ids[after_image:], before) for before in frame.before)
        if not images and first == 0 and ids and ids[0] == getattr(self.tokenizer, "bos_token_id", None):
            first = 1
        stop = _find_last(ids, frame.after, first)
        if images and first >= stop:  # the image comes last
            frame_last = self._frame_image_last
            first = max(_match_prefix(ids, before) for before in frame_last.before)
            end = _find_last(ids[: images[0]], frame_last.after, first)
        else:
            turn = _find_last(ids[:stop], self._between_turns, first)
            first, end = (turn + len(self._between_turns) if turn < stop else first), stop
        while first < end and self._is_space(ids[first]):
            first += 1
        question = [first <= i < end and layout.view[i] < 0 for i in range(len(ids))]
        return _sample(question, layout, output_from=stop + len(frame.after))

    def _is_space(self, token: int) -> bool:
        return self.tokenizer is not None and not self.tokenizer.decode([token]).strip()

    # The text around a question -----------------------------------------------------------------------

    @cached_property
    def _frame_with_image(self) -> _Frame:
        return self._frame(1)

    @cached_property
    def _frame_without(self) -> _Frame:
        return self._frame(0)

    def _frame(self, images: int) -> _Frame:
        """Tokens that stand around any question (after the image), found by asking two about a grey image.

        What closes an image may depend on how many tiles it has: a small image and a wide one are tried.
        """
        if self.processor is None:
            return _Frame(((),), ())
        texts = [self._text(text, images, None) for text in _QUESTIONS]
        found: list[tuple[int, ...]] = []
        for size in _SIZES if images else _SIZES[:1]:
            (a, shown), (b, _) = (self._probed(text, images, size) for text in texts)
            before, after = _common_prefix(a, b), _common_prefix(a[::-1], b[::-1])[::-1]
            found.append(tuple(before[max(shown, default=-1) + 1 :]))
        return _Frame(tuple(found), tuple(after))

    @cached_property
    def _frame_image_last(self) -> _Frame:
        """Tokens before any question that an image follows, and those between the two.

        Where an image's first token may have a tile's name before it, that name depends on the image: only
        what stands before a small image and before a wide one counts.
        """
        if getattr(self.processor, "chat_template", None) is None:
            return _Frame(((),), ())
        texts = [self._template([self._message("user", text, 1, first=False)]) for text in _QUESTIONS]
        before: list[int] = []
        between: list[list[int]] = []
        for size in _SIZES:
            (a, shown), (b, _) = (self._probed(text, 1, size) for text in texts)
            before, after = _common_prefix(a, b), _common_prefix(a[::-1], b[::-1])[::-1]
            between.append(after[: max(0, min(shown, default=len(a)) - (len(a) - len(after)))])
        return _Frame((tuple(before),), tuple(_common_prefix(*between)))

    def _probed(self, text: str, images: int, size: tuple[int, int]) -> tuple[list[int], list[int]]:
        """The final ids of a prompt about a grey image, and the places of its image tokens."""
        grey = Image.new("RGB", size, (128, 128, 128))
        batch = self.tokenise([text], [[grey] * images])
        ids = batch["input_ids"][0].tolist()
        layout = self.family.read_layout(ids, MediaInputs(batch))
        return ids, [i for i, view in enumerate(layout.view) if view >= 0]

    @cached_property
    def _between_turns(self) -> tuple[int, ...]:
        """Tokens between an answer and the next question of a conversation; empty where none are found."""
        if getattr(self.processor, "chat_template", None) is None:
            return ()
        turns = (("user", _QUESTIONS[0]), ("assistant", _PROBE), ("user", _QUESTIONS[1]))
        text = self._template([self._message(role, said) for role, said in turns])
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        start, end = text.find(_PROBE) + len(_PROBE), text.rfind("What")
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return tuple(token for token, (a, b) in pairs if start <= a < b <= end)


@dataclass(frozen=True)
class _Frame:
    """Tokens before something in a prompt, of which there may be several kinds, and those after it."""

    before: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]


#: Attributes of processors: what stands for an image, a video or sound, and what begins an image.
_PLACEHOLDERS = ("image_token", "video_token", "audio_token", "boi_token", "start_image_token")
#: Two questions that begin and end differently.
_QUESTIONS = ("Is this a probe?", "What do 2 probes say!")
#: (width, height) of an image that gets one tile, and of one that gets several where there are tiles.
_SIZES = ((56, 56), (896, 224))
_PROBE = "\u2983probe\u2984"  # unlikely brackets: text that no template contains


def _sample(question: Sequence[bool], layout: Layout, output_from: int | None = None) -> Sample:
    """Roles, given which tokens are the question and what the image tokens show."""
    n, is_image = len(question), [view >= 0 for view in layout.view]
    marked = [i for i in range(n) if question[i] or is_image[i]]
    first, last = (marked[0], marked[-1]) if marked else (n, n - 1)
    roles = [int(Role.SYSTEM)] * n
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
    return Sample(tuple(roles), tuple(layout.view), tuple(layout.cell), tuple(layout.views))


def _carried(chosen: Sequence[int], short: Sequence[int], ids: Sequence[int]) -> list[bool]:
    """Flags of the chosen neighbouring tokens of `short` in `ids`, where placeholders became image tokens.

    The text before the first placeholder and behind the last one is the same in both. Between two, the chosen
    tokens are looked for.
    """
    flags = [False] * len(ids)
    if not chosen:
        return flags
    first, last = chosen[0], chosen[-1]
    shift = len(ids) - len(short)
    wanted = list(short[first : last + 1])
    if list(ids[: last + 1]) == list(short[: last + 1]):
        start = first
    elif list(ids[first + shift :]) == list(short[first:]):
        start = first + shift
    else:
        size = len(wanted)
        found = [i for i in range(len(ids) - size + 1) if list(ids[i : i + size]) == wanted]
        if not found:
            raise InputError(
                "the token ids do not follow from the rendered prompt; pass tokens=TokenMap(...)"
            )
        start = found[-1]
    flags[start : start + len(wanted)] = [True] * len(wanted)
    return flags


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
