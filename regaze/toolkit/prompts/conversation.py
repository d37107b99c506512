"""Conversations: earlier turns, few-shot examples, and pictures between texts.

They are given as chat templates have them: a list of messages {"role": ..., "content": ...}, whose content is
a text or a list of parts, {"type": "text", "text": ...} and {"type": "image"}. An image part may hold its
picture ("image", "path" or "url"); those that hold none stand for the prompt's images, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regaze.errors import InputError
from regaze.toolkit.prompts.images import ImageLike, is_image
from regaze.toolkit.prompts.video import Video

ROLES = ("system", "user", "assistant")


Medium = ImageLike | Video


@dataclass(frozen=True)
class Shown:
    """The place of a picture or video in a message.

    Attributes:
        medium: None: the next of the prompt's images.
        kind: what stands there for the chat template, image or video.
    """

    medium: Medium | None = field(default=None, compare=False)
    kind: str = "image"


Part = str | Shown


@dataclass(frozen=True)
class Message:
    """What one side says: texts and pictures in their order."""

    role: str
    parts: tuple[Part, ...]

    @property
    def shown(self) -> list[Shown]:
        """Its pictures and videos."""
        return [part for part in self.parts if isinstance(part, Shown)]

    def with_places(self) -> Message:
        """The message without its pictures, whose places stay."""
        return replace(self, parts=tuple(p if isinstance(p, str) else Shown() for p in self.parts))


@dataclass(frozen=True)
class Conversation:
    """Messages, the last of which is the user's and holds the question: its last text.

    Raises:
        InputError: there is no such message, a role is none, or a system message is not the first.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        for number, message in enumerate(self.messages):
            if message.role not in ROLES or (message.role == "system" and number):
                raise InputError(
                    f"message {number + 1}: a role is user or assistant, or system in the first message; got "
                    f"{message.role!r}"
                )
        if not self.messages or self.messages[-1].role != "user" or not self.question:
            raise InputError("a conversation ends with a message of the user that holds a text: the question")

    @classmethod
    def of(
        cls, question: str, images: int = 0, videos: int = 0, earlier: Sequence[Message] = ()
    ) -> Conversation:
        """A question about images and videos that stand before it, after earlier messages."""
        shown = [Shown()] * images + [Shown(kind="video")] * videos
        return cls((*earlier, Message("user", (*shown, question))))

    @property
    def question(self) -> str:
        """The last text of the last message, without spaces around it."""
        return next((p for p in reversed(self.messages[-1].parts) if isinstance(p, str)), "").strip()

    @property
    def images(self) -> int:
        """Number of images in all messages."""
        return sum(each.kind == "image" for message in self.messages for each in message.shown)

    @property
    def videos(self) -> int:
        """Number of videos in all messages."""
        return sum(each.kind == "video" for message in self.messages for each in message.shown)

    @property
    def texts(self) -> list[str]:
        """All texts."""
        return [part for message in self.messages for part in message.parts if isinstance(part, str)]

    def with_question(self, text: str) -> Conversation:
        """Another question in the place of its own; spaces around it stay."""
        parts = list(self.messages[-1].parts)
        place = max(number for number, part in enumerate(parts) if isinstance(part, str))
        parts[place] = str(parts[place]).replace(self.question, text, 1)
        return replace(self, messages=(*self.messages[:-1], Message("user", tuple(parts))))

    def filled(self, media: Sequence[Medium]) -> tuple[Conversation, list[Medium]]:
        """The conversation with places alone, and all its pictures and videos in their order.

        Args:
            media: for the places that hold none, in their order. Those left over are what the question is
                about: they stand before the texts of the last message.

        Raises:
            InputError: there are fewer than places.
        """
        shown = [each for message in self.messages for each in message.shown]
        empty = sum(each.medium is None for each in shown)
        if empty > len(media):
            raise InputError(f"the messages have places for {empty} images, but {len(media)} were given")
        given = iter(media)
        own = [next(given) if each.medium is None else each.medium for each in shown]
        at, more = len(own) - len(self.messages[-1].shown), list(given)
        *earlier, last = (message.with_places() for message in self.messages)
        last = Message("user", (*[Shown()] * len(more), *last.parts))
        return Conversation((*earlier, last)), [*own[:at], *more, *own[at:]]

    def shown_as(self, kinds: Sequence[Sequence[str]]) -> Conversation:
        """The conversation with what stands for each picture or video: frames are several images."""
        left = iter(kinds)

        def expanded(parts: Sequence[Part]) -> Iterator[Part]:
            for part in parts:
                if isinstance(part, str):
                    yield part
                else:
                    yield from (Shown(kind=kind) for kind in next(left))

        return Conversation(tuple(Message(m.role, tuple(expanded(m.parts))) for m in self.messages))


def parse_messages(given: Any, source: str = "messages") -> tuple[Message, ...]:
    """Messages of a chat template's form.

    Args:
        source: named in errors.

    Raises:
        InputError: they are no list of messages with a role and a content.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise InputError(f"{source}: expected a list of messages, got {type(given).__name__}")
    return tuple(_message(each, f"{source}, message {number}") for number, each in enumerate(given, start=1))


def _message(given: Any, source: str) -> Message:
    content = given.get("content") if isinstance(given, Mapping) else None
    if content is None or given.get("role") not in ROLES:
        raise InputError(
            f'{source}: expected {{"role": ..., "content": ...}} of {", ".join(ROLES)}, got {given!r:.200}'
        )
    parts = [content] if isinstance(content, str) else content
    if isinstance(parts, Mapping) or not isinstance(parts, Sequence):
        raise InputError(f"{source}: the content is a text or a list of parts, got {type(parts).__name__}")
    return Message(given["role"], tuple(_part(each, source) for each in parts))


def _part(given: Any, source: str) -> Part:
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping) and given.get("type") == "text" and isinstance(given.get("text"), str):
        return str(given["text"])
    if isinstance(given, Mapping) and given.get("type") in ("image", "image_url"):
        value = next((given[key] for key in ("image", "path", "url", "image_url") if key in given), None)
        value = value.get("url") if isinstance(value, Mapping) else value  # as OpenAI has it
        if value is None or is_image(value):
            return Shown(value)
    if isinstance(given, Mapping) and given.get("type") == "video":
        value = given.get("video")
        if value is None or isinstance(value, Video):
            return Shown(value)
    raise InputError(
        f'{source}: a part is {{"type": "text", "text": ...}} or {{"type": "image"}}, which may hold the '
        f'picture under image, path or url, or {{"type": "video"}} with a Video; got {given!r:.200}'
    )
