"""Prompts of an exact length that hide a needle in a long text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regaze.errors import BadParameterError, InputError
from regaze.interventions.retrieval_heads.haystack import Haystack
from regaze.interventions.retrieval_heads.needles import Needle
from regaze.toolkit.prompts.prompt_reader import PromptReader

#: The user's message. The question also precedes the text, because small models forget it otherwise.
TEMPLATE = (
    "Read this text and then answer a question about it: {question}\n\n{context}\n\n"
    "Answer with the words of the text. {question}"
)


@dataclass(frozen=True)
class NeedlePrompt:
    """A prompt with a needle in it.

    Attributes:
        ids: token ids of the whole prompt. span: (start, end) of the answer's tokens in it.
        number: index of the needle. depth: requested position, in percent of the haystack.
    """

    ids: tuple[int, ...]
    span: tuple[int, int]
    number: int
    depth: float


class PromptBuilder:
    """Builds prompts of an exact length by splicing token ids.

    Text is never decoded and encoded again, so that the context contains the haystack and the needle alone
    (no second BOS), and the needle's position is known instead of searched for.

    Args:
        reader: renders chat templates and has the tokenizer (`gaze.reader`).
        haystacks: one text, or one per needle (used in turn).
        needles: what to hide.
        template: the user's message, with {context} once and {question} at least once.

    Raises:
        BadParameterError: no needles, or a template without these fields. InputError: unusable texts.
    """

    def __init__(
        self, reader: PromptReader, haystacks: Sequence[str], needles: Sequence[Needle], template: str
    ):
        if not needles or not haystacks:
            raise BadParameterError("at least one needle and one haystack are needed")
        if template.count("{context}") != 1 or "{question}" not in template:
            raise BadParameterError("a template needs {context} exactly once and {question} at least once")
        self.reader, self.tokenizer, self.needles = reader, reader.tokenizer, tuple(needles)
        self.haystacks = [Haystack(text, self.tokenizer) for text in haystacks]
        self._hidden = [self._needle(needle) for needle in needles]
        self._frames = [self._frame(template, needle) for needle in needles]

    def build(self, number: int, length: int, depth: float) -> NeedlePrompt:
        """The prompt of exactly `length` tokens with needle `number` at `depth` percent of the haystack.

        Raises:
            BadParameterError: a depth outside 0..100, or a length too short for needle and question.
        """
        if not 0 <= depth <= 100:
            raise BadParameterError(f"a depth is a percentage in 0..100, got {depth}")
        (before, after), (needle, (start, end)) = self._frames[number], self._hidden[number]
        count = length - len(before) - len(after) - len(needle)
        if count < 1:
            raise BadParameterError(
                f"length {length} is too short: needle and question alone take {length - count} tokens"
            )
        haystack = self.haystacks[number % len(self.haystacks)]
        hay, place = haystack.take(count).tolist(), haystack.place(count, depth)
        ids = (*before, *hay[:place], *needle, *hay[place:], *after)
        first = len(before) + place
        return NeedlePrompt(ids, (first + start, first + end), number, depth)

    def _needle(self, needle: Needle) -> tuple[list[int], tuple[int, int]]:
        """The needle's tokens within running text, and the answer's span among them."""
        ids, offsets = self._continued(" " + needle.text)
        start = 1 + needle.text.index(needle.answer)
        end = start + len(needle.answer)
        overlapping = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        return ids, (overlapping[0], overlapping[-1] + 1)

    def _frame(self, template: str, needle: Needle) -> tuple[list[int], list[int]]:
        """The tokens before the haystack and after it."""
        message = template.replace("{question}", needle.question)
        text = self.reader.render(message, 0).text
        if getattr(self.reader.processor, "chat_template", None) is None:
            text += "\nAnswer:"
        if needle.cue:
            text += needle.cue if text[-1].isspace() else " " + needle.cue
        if text.count("{context}") != 1:
            raise InputError("the chat template does not keep the {context} of the message")
        head, tail = text.split("{context}")
        special = self.reader.adds_special_tokens(head)
        before = self.tokenizer(head, add_special_tokens=special)["input_ids"]
        if special and before and before[-1] == self.tokenizer.eos_token_id:
            before = before[:-1]
        return before, self._continued(tail)[0]

    def _continued(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of `text` after a word, and their offsets.

        Tokenizers such as SentencePiece put a space before what they take for the beginning of a text.
        """
        encoded = self.tokenizer("a" + text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        own = [i for i, (_, end) in enumerate(offsets) if end > 1]
        if not own or offsets[own[0]][0] < 1:  # the word merged with the text: encode the text by itself
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return list(encoded["input_ids"]), list(encoded["offset_mapping"])
        return [ids[i] for i in own], [(offsets[i][0] - 1, offsets[i][1] - 1) for i in own]
