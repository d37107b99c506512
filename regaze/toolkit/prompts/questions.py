"""The question of a prompt that is only known as token ids: its text, and another question in its place."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.prompt_reader import Prompt, PromptReader
from regaze.toolkit.prompts.token_map import PromptTokens, Role

#: A token and the characters (start, end) of the prompt's text that it stands for.
PlacedToken = tuple[int, tuple[int, int]]


def question_text(ids: Sequence[int], sample: PromptTokens, reader: PromptReader) -> str:
    """The question of an unpadded prompt, without spaces around it.

    Raises:
        InputError: the prompt has no question.
    """
    places = _places(sample)
    text: str = reader.tokenizer.decode([ids[i] for i in places])
    return text.strip()


def with_question(
    ids: Sequence[int], sample: PromptTokens, question: str, reader: PromptReader
) -> tuple[list[int], PromptTokens]:
    """An unpadded prompt and its roles, with another question in the place of its own.

    Everything else stays as it is: the system message, images, earlier turns.

    Raises:
        InputError: the prompt has no question, or images in the middle of it.
    """
    places = _places(sample)
    start, stop = places[0], places[-1] + 1
    if stop - start != len(places):
        raise InputError("the question is not in one piece, so that another cannot take its place")
    prompt, tokens = rendered_tokens(reader, question, sample.images)
    new = [token for token, (first, last) in tokens if first < prompt.span[1] and last > prompt.span[0]]

    def splice(values: Sequence[int], inserted: Sequence[int]) -> tuple[int, ...]:
        return (*values[:start], *inserted, *values[stop:])

    nowhere = [-1] * len(new)
    roles = splice(sample.roles, [int(Role.QUERY)] * len(new))
    placed = splice(sample.view, nowhere), splice(sample.cell, nowhere)
    return list(splice(ids, new)), PromptTokens(roles, *placed, sample.views)


def rendered_tokens(
    reader: PromptReader, question: str, images: int, system: str | None = None
) -> tuple[Prompt, list[PlacedToken]]:
    """A prompt of the chat template, and its tokens; an image is one token."""
    prompt = reader.render(question, images, system)
    encoded = reader.tokenizer(
        prompt.text, return_offsets_mapping=True, add_special_tokens=reader.adds_special_tokens(prompt.text)
    )
    return prompt, list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))


def _places(sample: PromptTokens) -> list[int]:
    places = [i for i, role in enumerate(sample.roles) if role == Role.QUERY]
    if not places:
        raise InputError("a prompt has no question: none of its tokens has the role QUERY")
    return places
