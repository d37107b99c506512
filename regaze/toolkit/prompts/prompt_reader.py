"""`PromptReader`: from images and a question to token ids and roles, through the model's own chat template.

There are two ways to the roles. Of a prompt that `render` made, the characters of the question are known, and
the tokenizer's offsets map them to tokens: `roles` is exact. Of other prompts (a user's own
`model.generate(**inputs)`) only the token ids are known: `read` searches them for the text that the template
puts around every question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import BatchFeature

from regaze.caching import cached_property
from regaze.errors import InputError, RegazeError
from regaze.toolkit.prompts.conversation import Conversation, Message, Shown
from regaze.toolkit.prompts.families import Family, Layout, MediaInputs
from regaze.toolkit.prompts.images import describe_image
from regaze.toolkit.prompts.model_inputs import ModelInputs
from regaze.toolkit.prompts.sight import Sight
from regaze.toolkit.prompts.template import checked_template_args
from regaze.toolkit.prompts.thinking import is_marker, open_block
from regaze.toolkit.prompts.token_map import PromptTokens, Role
from regaze.toolkit.prompts.video import Clip


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt, with placeholders for images; `span` is the character range of the question."""

    text: str
    span: tuple[int, int]


class PromptReader:
    """Renders, tokenises and reads prompts of one model.

    Args:
        processor: a transformers processor or tokenizer; None: prompts can be read, but not rendered.
        family: of the model; it knows the image tokens.
        template_args: variables of the chat template, for every prompt.

    Raises:
        BadParameterError: a variable that the template does not have.
    """

    processor: Any
    family: Family

    def __init__(self, processor: Any, family: Family, template_args: Mapping[str, Any] | None = None):
        self.processor, self.family = processor, family
        self.template_args: dict[str, Any] = checked_template_args(processor, template_args)
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)

    # Rendering ----------------------------------------------------------------------------------------

    def render(
        self, question: str | Conversation, images: int, system: str | None = None, videos: int = 0
    ) -> Prompt:
        """The prompt with `question` about images and videos, up to where the answer begins.

        Args:
            question: a text, before which images and videos stand, or a conversation with a place for each.
        """
        asked = self._checked(question, images, videos, system)
        text = self._render_text(asked, system)
        probe = self._render_text(asked.with_question(_PROBE), system)
        start = probe.find(_PROBE)
        end = len(text) - (len(probe) - start - len(_PROBE))
        if start < 0 or text[start:end] != asked.question:
            raise InputError(
                "the chat template changes the question's text, so its tokens cannot be told from the rest"
            )
        return Prompt(text, (start, end))

    def _checked(
        self, question: str | Conversation, images: int, videos: int, system: str | None
    ) -> Conversation:
        """The question as a conversation that this model can be asked."""
        if isinstance(question, str) and question.strip():
            question = Conversation.of(question.strip(), images, videos)
        if not isinstance(question, Conversation):
            raise InputError(f"a question is a text that is not empty, got {question!r}")
        if (question.images, question.videos) != (images, videos):
            raise InputError(
                f"the messages have places for {question.images} images and {question.videos} videos, but "
                f"there are {images} and {videos}"
            )
        if (images or videos) and self.processor is self.tokenizer:
            raise InputError("this is a text-only model: ask it without images")
        for placeholder in self._placeholders:
            if any(placeholder in text for text in (*question.texts, system or "")):
                raise InputError(
                    f"the text contains {placeholder!r}, which stands for an image or video in this model's "
                    "prompts"
                )
        if system and question.messages[0].role == "system":
            raise InputError("the messages begin with a system message; leave out `system`, or that message")
        return question

    @cached_property
    def _placeholders(self) -> frozenset[str]:
        """Tokens that no text may contain, because they become an image or a part of one."""
        named = (getattr(self.processor, name, None) for name in _PLACEHOLDERS)
        added_vocab: Any = getattr(self.tokenizer, "get_added_vocab", dict)
        added: dict[str, int] = added_vocab()  # ordinary words are not meant
        image = (token for token, i in added.items() if i in self.family.image_token_ids)
        return frozenset(str(token) for token in (*named, *image) if token)  # BLIP has an AddedToken

    @property
    def image_placeholder(self) -> str:
        """What stands for an image in the text of the chat template."""
        # Qianfan-OCR's processor puts other tokens in its place than the one of an image's content.
        own = getattr(self.processor, "image_placeholder_token", None)
        return str(own if own is not None else self.processor.image_token)

    def _render_text(self, asked: Conversation, system: str | None) -> str:
        if self._has_template:
            before = [Message("system", (system,))] if system else []
            return self.apply_template([*before, *asked.messages])
        if asked.videos:
            raise InputError("this processor has no chat template to build a prompt with a video")
        if asked != Conversation.of(asked.question, asked.images):
            raise InputError(
                "the processor has no chat template: ask questions as texts, without earlier messages"
            )
        return self.family.format_prompt(asked.question, asked.images, system)

    @property
    def _has_template(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    def _template_message(self, message: Message) -> dict[str, Any]:
        if self.processor is self.tokenizer:
            return {"role": message.role, "content": "".join(map(str, message.parts))}
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind}
            for part in message.parts
        ]
        return {"role": message.role, "content": parts}

    def apply_template(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, up to where the next answer begins.

        Raises:
            InputError: the model's chat template refuses it, or is damaged.
        """
        try:
            given = [self._template_message(message) for message in messages]
            return self.processor.apply_chat_template(
                given, add_generation_prompt=True, tokenize=False, **self.template_args
            )
        except Exception as error:  # other people's templates can fail in any way
            raise InputError(
                f"the model's chat template makes no prompt of this: {_first_line(error)}"
            ) from error

    @cached_property
    def thinking_opening(self) -> str:
        """The tag at the end of every prompt that opens a block of thinking; "" where there is none."""
        try:
            prompt = self.render(_QUESTIONS[0], 0)
        except RegazeError:  # such a prompt cannot be built
            return ""
        return open_block(prompt.text[prompt.span[1] :])

    def decode(self, sequences: Any) -> list[str]:
        """Texts of answers [B, T], without special tokens except those that mark thinking."""
        if not self._thinking_markers:
            texts: list[str] = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
            return texts
        rows = ([int(token) for token in row if int(token) not in self._dropped] for row in sequences)
        return [str(self.tokenizer.decode(row, skip_special_tokens=False)) for row in rows]

    @cached_property
    def _special_tokens(self) -> dict[int, str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {token: str(each) for token, each in added.items() if each.special}

    @cached_property
    def _thinking_markers(self) -> frozenset[int]:
        return frozenset(token for token, text in self._special_tokens.items() if is_marker(text))

    @cached_property
    def _dropped(self) -> frozenset[int]:
        """Special tokens that do not mark thinking, and the padding."""
        return frozenset({*self._special_tokens, self.tokenizer.pad_token_id} - self._thinking_markers)

    @property
    def takes_videos(self) -> bool:
        """Whether the model has tokens for videos; others are shown the frames as images."""
        has_token = getattr(self.processor, "video_token", None) is not None
        return has_token and callable(getattr(self.processor, "video_processor", None))

    def tokenise(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], clips: Sequence[Clip] = ()
    ) -> BatchFeature:
        """Rendered prompts and the images of each as a batch, padded on the family's side.

        Args:
            clips: the videos of all prompts, in their order.

        Raises:
            InputError: the processor refuses an image, for example because of its shape, or would misread it.
        """
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token_id is None:
            raise InputError(
                "the tokenizer has a token neither for padding nor for the end of a text; set one"
            )
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if not self.adds_special_tokens(texts[0]):  # otherwise the default of the processor is right
            options["add_special_tokens"] = False
        if any(images):
            flat = [image for each in images for image in each]
            _check_sides(flat)
            options["images"] = [list(each) for each in images] if self.family.nested_images else flat
        if clips:  # whose frames are chosen already
            options["videos"] = [clip.pixels for clip in clips]
            options["video_metadata"] = [clip.metadata for clip in clips]
            options["do_sample_frames"] = False
        before = self.tokenizer.padding_side
        # An option of the call would go to a Q-Former's tokenizer, too.
        self.tokenizer.padding_side = self.family.padding_side
        try:
            return self.family.fix_inputs(ModelInputs(dict(self.processor(text=list(texts), **options))))
        except Exception as error:
            if not (any(images) or clips) or isinstance(error, (RegazeError, MemoryError)):
                raise
            self._check_images([image for each in images for image in each])
            raise InputError(
                f"{type(self.processor).__name__} cannot make a batch of these prompts: {_first_line(error)}"
            ) from error
        finally:
            self.tokenizer.padding_side = before

    def _check_images(self, images: Sequence[Image.Image]) -> None:
        """Raise InputError for the first image that the image processor refuses."""
        for image in images:
            try:
                self.processor.image_processor(images=[image], return_tensors="pt")
            except MemoryError:
                return
            except Exception as error:  # other people's processors can fail in any way
                name = type(self.processor.image_processor).__name__
                raise InputError(f"{name} refuses {describe_image(image)}: {_first_line(error)}") from error

    @cached_property
    def sight(self) -> Sight:
        """What the model receives of images. Raises InputError where there is no image processor."""
        image_processor = getattr(self.processor, "image_processor", None)
        if image_processor is None:
            raise InputError("this model has no image processor, so it sees no images")
        return Sight(self.family, image_processor, self._process_image)

    def _process_image(self, image: Image.Image) -> Mapping[str, Any]:
        """The processor's outputs for an image in a prompt, or alone where no prompt can be built."""
        try:
            prompt = self.render(_QUESTIONS[0], 1)
        except InputError:
            self._check_images([image])
            return dict(self.processor.image_processor(images=[image], return_tensors="pt"))
        return self.tokenise([prompt.text], [[image]])

    # Roles --------------------------------------------------------------------------------------------

    def roles(self, prompt: Prompt, ids: Sequence[int], media: MediaInputs) -> PromptTokens:
        """Roles of a rendered prompt. `ids` are its final token ids, with images expanded and no padding."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError(
                "roles need a fast tokenizer (character offsets); load the processor with its fast tokenizer"
            )
        encoded = self.tokenizer(
            prompt.text, return_offsets_mapping=True, add_special_tokens=self.adds_special_tokens(prompt.text)
        )
        start, end = prompt.span
        question = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start]
        return _assign_roles(
            _expanded(question, encoded["input_ids"], ids), self.family.read_layout(ids, media)
        )

    def adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer must add its special tokens: not when the template has added them."""
        bos = getattr(self.tokenizer, "bos_token", None)
        return not (bos and text.startswith(bos))

    def read(self, ids: Sequence[int], media: MediaInputs | None = None) -> PromptTokens:
        """Roles from token ids alone; what follows the assistant header is OUTPUT.

        In a conversation of several turns the question is the user's last message.

        Args:
            ids: [n], a prompt without padding.
            media: the processor's other outputs, for families whose ids do not give the grid.
        """
        if self.family.is_guess and any(self.family.image_mask(ids)):
            _ = self._around_with_image  # whose probes may show that the guess is wrong
        layout = self.family.read_layout(ids, media or MediaInputs({}))
        images = [i for i, view in enumerate(layout.view) if view >= 0]
        around = self._around_with_image if images else self._around_without_image
        after_image = 1 + images[-1] if images else 0
        first = after_image + max(_match_prefix(ids[after_image:], before) for before in around.before)
        if not images and first == 0 and ids and ids[0] == getattr(self.tokenizer, "bos_token_id", None):
            first = 1
        stop = _find_last(ids, around.after, first)
        if images and first >= stop:  # the image comes last
            numbers = [layout.views[layout.view[i]].image for i in images]
            last = images[numbers.index(numbers[-1])]
            image_last, turn = self._around_image_last, _find_last(ids[:last], self._between_turns, 0)
            opening = max(_match_prefix(ids, before) for before in image_last.before)
            earlier = [i + 1 for i in images if i < last]
            first = max(opening, *earlier, turn + len(self._between_turns) if turn < last else 0)
            end = _find_last(ids[:last], image_last.after, first)
        else:
            turn = _find_last(ids[:stop], self._between_turns, first)
            first, end = (turn + len(self._between_turns) if turn < stop else first), stop
        while first < end and self._is_space(ids[first]):
            first += 1
        question = [first <= i < end and layout.view[i] < 0 for i in range(len(ids))]
        return _assign_roles(question, layout, output_from=stop + len(around.after))

    def _is_space(self, token: int) -> bool:
        return self.tokenizer is not None and not self.tokenizer.decode([token]).strip()

    # The text around a question -----------------------------------------------------------------------

    @cached_property
    def _around_with_image(self) -> _Around:
        return self._around(1)

    @cached_property
    def _around_without_image(self) -> _Around:
        return self._around(0)

    def _around(self, images: int) -> _Around:
        """The tokens around any question (after the image): those that two prompts have in common.

        The end of an image may depend on its number of tiles, so a small image and a wide one are tried.
        """
        if self.processor is None:
            return _Around(((),), ())
        texts = [self._render_text(Conversation.of(text, images), None) for text in _QUESTIONS]
        found: list[tuple[int, ...]] = []
        for size in _SIZES if images else _SIZES[:1]:
            (a, positions), (b, _) = (self._probe(text, images, size) for text in texts)
            before, after = _common_prefix(a, b), _common_prefix(a[::-1], b[::-1])[::-1]
            found.append(tuple(before[max(positions, default=-1) + 1 :]))
        return _Around(tuple(found), tuple(after))

    @cached_property
    def _around_image_last(self) -> _Around:
        """The tokens before any question that an image follows, and those between question and image.

        The name of a tile may be before the first image token, and depends on the image: only tokens that are
        before a small image and before a wide one count.
        """
        if not self._has_template:
            return _Around(((),), ())
        texts = [self.apply_template([Message("user", (text, Shown()))]) for text in _QUESTIONS]
        before: list[int] = []
        between: list[list[int]] = []
        for size in _SIZES:
            (a, positions), (b, _) = (self._probe(text, 1, size) for text in texts)
            before, after = _common_prefix(a, b), _common_prefix(a[::-1], b[::-1])[::-1]
            between.append(after[: max(0, min(positions, default=len(a)) - (len(a) - len(after)))])
        return _Around((tuple(before),), tuple(_common_prefix(*between)))

    def _probe(self, text: str, images: int, size: tuple[int, int]) -> tuple[list[int], list[int]]:
        """The final ids of a prompt about a grey image, and the positions of its image tokens."""
        grey = Image.new("RGB", size, (128, 128, 128))
        batch = self.tokenise([text], [[grey] * images])
        ids = batch["input_ids"][0].tolist()
        layout = self.family.read_layout(ids, MediaInputs(batch, images))
        return ids, [i for i, view in enumerate(layout.view) if view >= 0]

    @cached_property
    def _between_turns(self) -> tuple[int, ...]:
        """The tokens between an answer and the next question of a conversation; () where none are found."""
        if not self._has_template:
            return ()
        turns = (("user", _QUESTIONS[0]), ("assistant", _PROBE), ("user", _QUESTIONS[1]))
        text = self.apply_template([Message(role, (turn,)) for role, turn in turns])
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        start, end = text.find(_PROBE) + len(_PROBE), text.rfind("What")
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return tuple(token for token, (a, b) in pairs if start <= a < b <= end)


@dataclass(frozen=True)
class _Around:
    """The tokens before a question, in one or several variants, and those after it."""

    before: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]


#: Attributes of processors: the placeholders of an image, a video and sound, and what begins an image.
_PLACEHOLDERS = (
    *("image_token", "video_token", "audio_token"),
    *("boi_token", "start_image_token", "image_placeholder_token"),
)
#: Two questions that begin and end differently.
_QUESTIONS = ("Is this a probe?", "What do 2 probes say!")
#: (width, height) of an image that gets one tile, and of one that gets several where there are tiles.
_SIZES = ((56, 56), (896, 224))
#: A text that no template contains.
_PROBE = "\u2983probe\u2984"


def _assign_roles(question: Sequence[bool], layout: Layout, output_from: int | None = None) -> PromptTokens:
    """The roles, given which tokens are the question, and what the image tokens show."""
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
    return PromptTokens(tuple(roles), tuple(layout.view), tuple(layout.cell), tuple(layout.views))


def _expanded(chosen: Sequence[int], short: Sequence[int], ids: Sequence[int]) -> list[bool]:
    """Which of `ids` are the chosen, contiguous tokens of `short`.

    `ids` are `short` with placeholders expanded to image tokens. The text before the first placeholder and
    after the last one is the same in both; text between two placeholders is searched for.
    """
    flags = [False] * len(ids)
    if not chosen:
        return flags
    first, last = chosen[0], chosen[-1]
    shift = len(ids) - len(short)
    pattern = list(short[first : last + 1])
    if list(ids[: last + 1]) == list(short[: last + 1]):
        start = first
    elif list(ids[first + shift :]) == list(short[first:]):
        start = first + shift
    else:
        start = _find_last(ids, pattern, 0)
        if start == len(ids):
            raise InputError(
                "the token ids do not follow from the rendered prompt; pass tokens=TokenMap(...)"
            )
    flags[start : start + len(pattern)] = [True] * len(pattern)
    return flags


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> list[int]:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return list(a[:count])


def _match_prefix(ids: Sequence[int], prefix: Sequence[int]) -> int:
    """The length of `prefix` if `ids` start with it, else 0."""
    return len(prefix) if tuple(ids[: len(prefix)]) == tuple(prefix) else 0


def _find_last(ids: Sequence[int], pattern: Sequence[int], start: int) -> int:
    """Start of the last occurrence of `pattern` at or after `start`; the end of `ids` without one."""
    size = len(pattern)
    for position in range(len(ids) - size, start - 1, -1):
        if size and tuple(ids[position : position + size]) == tuple(pattern):
            return position
    return len(ids)


def _check_sides(images: Sequence[Image.Image]) -> None:
    for image in images:
        if {1, 3} & set(image.size):
            raise InputError(
                f"{describe_image(image)} has a side of 1 or 3 pixels, which image processors take for its "
                "colours; make it larger"
            )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
