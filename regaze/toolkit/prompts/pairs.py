"""Images and questions of a batch, as users give them, as lists of one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regaze.errors import InputError
from regaze.toolkit.prompts.conversation import Conversation, Medium, parse_messages
from regaze.toolkit.prompts.images import is_image
from regaze.toolkit.prompts.video import Video

Images = Medium | Sequence[Medium] | None
#: A text, or messages that end with the question (`conversation`).
Question = str | Sequence[Mapping[str, Any]] | Conversation


def paired(images: Any, questions: Any) -> tuple[list[list[Medium]], list[str | Conversation]]:
    """Per question the list of its images, and the questions: texts, or conversations with places for these.

    Raises:
        InputError: counts that differ, questions that are none.
    """
    if _is_one_question(questions):
        questions, images = [questions], [images]
    if not hasattr(questions, "__len__") or not len(questions):
        raise InputError("no questions were given: give a text, or a list of texts")
    if not _is_one_image(images) and not hasattr(images, "__len__"):
        raise InputError(
            f"images are a list with an entry per question (an image, a list of them, or None), got "
            f"{type(images).__name__}"
        )
    if _is_one_image(images) or len(images) != len(questions):
        count = 1 if _is_one_image(images) else len(images)
        raise InputError(
            f"{count} images for {len(questions)} questions: give one entry (or None) per question"
        )
    entries = [list(entry) if isinstance(entry, (list, tuple)) else [entry] for entry in images]
    entries = [[] if len(entry) == 1 and entry[0] is None else entry for entry in entries]
    asked: list[str | Conversation] = []
    for number, question in enumerate(questions):
        if isinstance(question, Sequence) and not isinstance(question, str):
            question = Conversation(parse_messages(question))
        if isinstance(question, Conversation):
            question, entries[number] = question.filled(entries[number])
        _check_text(question)
        asked.append(question)
    return entries, asked


def _is_one_question(questions: Any) -> bool:
    """Whether it is a single question: a text, or a conversation rather than a list of them."""
    if isinstance(questions, str | Conversation):
        return True
    return isinstance(questions, Sequence) and bool(questions) and isinstance(questions[0], Mapping)


def _is_one_image(images: Any) -> bool:
    return images is None or is_image(images) or isinstance(images, Video)


def _check_text(question: Any) -> None:
    if not isinstance(question, str | Conversation):
        raise InputError(f"a question is a text, got {type(question).__name__}")
    for text in [question] if isinstance(question, str) else question.texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the question {text[:80]!r} holds half a surrogate pair") from error
