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
    own = question_text(ids, sample, reader)
    old, new = (_around_question(*rendered_tokens(reader, text, sample.images)) for text in (own, question))
    # A space before or after a question may be a token by itself, or a part of the question's.
    before, after = _common(old[0], new[0]), _common(old[2][::-1], new[2][::-1])
    lead, trail = old[0][before:], old[2][: len(old[2]) - after]
    if list(ids[start - len(lead) : stop + len(trail)]) != [*lead, *old[1], *trail]:
        before, after, lead, trail = len(new[0]), len(new[2]), [], []  # our template did not write it
    start, stop = start - len(lead), stop + len(trail)
    first, last = new[0][before:], new[2][: len(new[2]) - after]
    inserted = [*first, *new[1], *last]
    roles = (
        *([sample.roles[start - 1]] * len(first)),
        *([int(Role.QUERY)] * len(new[1])),
        *([sample.roles[stop]] * len(last) if last else ()),
    )

    def splice(values: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
        return (*values[:start], *new, *values[stop:])

    nowhere = [-1] * len(inserted)
    placed = splice(sample.view, nowhere), splice(sample.cell, nowhere)
    return list(splice(ids, inserted)), PromptTokens(splice(sample.roles, roles), *placed, sample.views)


def rendered_tokens(
    reader: PromptReader, question: str, images: int, system: str | None = None
) -> tuple[Prompt, list[PlacedToken]]:
    """A prompt of the chat template, and its tokens; an image is one token."""
    prompt = reader.render(question, images, system)
    encoded = reader.tokenizer(
        prompt.text, return_offsets_mapping=True, add_special_tokens=reader.adds_special_tokens(prompt.text)
    )
    return prompt, list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))


def _around_question(prompt: Prompt, tokens: Sequence[PlacedToken]) -> tuple[list[int], list[int], list[int]]:
    """The ids before the question, those of the question, and those after it."""
    start, stop = prompt.span
    before = [token for token, (_, end) in tokens if end <= start]
    after = [token for token, (first, _) in tokens[len(before) :] if first >= stop]
    ids = [token for token, _ in tokens]
    return before, ids[len(before) : len(ids) - len(after)], after


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first ids are the same in both."""
    pairs = zip(a, b, strict=False)
    return next((number for number, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _places(sample: PromptTokens) -> list[int]:
    places = [i for i, role in enumerate(sample.roles) if role == Role.QUERY]
    if not places:
        raise InputError("a prompt has no question: none of its tokens has the role QUERY")
    return places
