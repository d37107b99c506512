"""Needles, the prompts that hide them, and how much of a needle's answer a response has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from regaze.errors import BadParameterError, InputError
from regaze.interventions.retrieval_heads.haystack import Haystack
from regaze.toolkit.prompts.prompt_reader import PromptReader

#: What the model is asked. The question stands before the text, too: small models forget what to look for.
TEMPLATE = (
    "Read this text and then answer a question about it: {question}\n\n{context}\n\n"
    "Answer with the words of the text. {question}"
)


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, and the question that only it answers.

    Attributes:
        text: the sentence that goes into the haystack.
        question: what is asked.
        answer: the words of `text` that answer it; copying these is what is scored. Leave out the words that
            the question repeats, which a model can produce without looking.
        cue: how the answer begins, written in front of the model's own words; "" for none.
    """

    text: str
    question: str
    answer: str
    cue: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise BadParameterError(f"the needle {self.text!r} has no question")
        if not self.answer.strip() or self.text.count(self.answer) != 1:
            raise BadParameterError(
                f"the answer {self.answer!r} must occur exactly once in the needle {self.text!r}"
            )


#: Facts that no model can know: what is answered has been read.
NEEDLES = (
    Needle(
        "The secret ingredient of the soup at the Harbour Inn is a spoonful of roasted chestnut flour.",
        "What is the secret ingredient of the soup at the Harbour Inn?",
        "a spoonful of roasted chestnut flour",
        "The secret ingredient of the soup at the Harbour Inn is",
    ),
    Needle(
        "The best thing to do in Ostrel is to ride the yellow tram uphill and eat plum cake at sunset.",
        "What is the best thing to do in Ostrel?",
        "ride the yellow tram uphill and eat plum cake at sunset",
        "The best thing to do in Ostrel is to",
    ),
    Needle(
        "Edwin Abernathy moved to the lighthouse because he wanted to count the whales that pass in winter.",
        "Why did Edwin Abernathy move to the lighthouse?",
        "he wanted to count the whales that pass in winter",
        "Edwin Abernathy moved to the lighthouse because",
    ),
)


@dataclass(frozen=True)
class NeedlePrompt:
    """A prompt with a needle in it.

    Attributes:
        ids: token ids of the whole prompt. span: (start, end) of the answer's tokens in it.
        number: which needle. depth: where it was wanted, in percent of the haystack.
    """

    ids: tuple[int, ...]
    span: tuple[int, int]
    number: int
    depth: float


class PromptBuilder:
    """Builds prompts of an exact length by splicing token ids.

    Text is never decoded and read again, so nothing but the haystack and the needle gets into the context (no
    second BOS), and the needle's place is known rather than searched for.

    Args:
        reader: renders chat templates and has the tokenizer (`gaze.reader`).
        haystacks: one text, or one per needle (used in turn).
        needles: what to hide. template: the user's message, with {context} once and {question}.

    Raises:
        BadParameterError: no needles, or a template without its places. InputError: unusable texts.
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
        """The prompt of exactly `length` tokens that hides needle `number` at `depth` percent.

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
        """The needle's tokens as they are in running text, and the answer's span among them."""
        ids, offsets = self._continued(" " + needle.text)
        start = 1 + needle.text.index(needle.answer)
        end = start + len(needle.answer)
        held = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        return ids, (held[0], held[-1] + 1)

    def _frame(self, template: str, needle: Needle) -> tuple[list[int], list[int]]:
        """What stands before the haystack and after it."""
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
        """Tokens of `text` as they are behind a word, and their offsets.

        Tokenizers in the manner of SentencePiece put a space before what they take for a text's beginning.
        """
        encoded = self.tokenizer("a" + text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        own = [i for i, (_, end) in enumerate(offsets) if end > 1]
        if not own or offsets[own[0]][0] < 1:  # the word merged with what follows: take the text by itself
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return list(encoded["input_ids"]), list(encoded["offset_mapping"])
        return [ids[i] for i in own], [(offsets[i][0] - 1, offsets[i][1] - 1) for i in own]


def unigram_recall(answer: str, response: str) -> float:
    """ROUGE-1 recall with stemming: the part of the answer's words that the response has, in 0..1.

    As the `rouge-score` package counts it (lower case, letters and digits only, Porter stems of words longer
    than three letters, repeated words as often as they are repeated), extended from ASCII to all letters.

    Raises:
        InputError: nltk, which has the stemmer, is not installed.
    """
    wanted, given = (Counter(map(_stem, _WORD.findall(text.lower()))) for text in (answer, response))
    return (wanted & given).total() / max(1, wanted.total())


_WORD = re.compile(r"[^\W_]+")


@cache
def _stem(word: str) -> str:
    return word if len(word) <= 3 else str(_stemmer().stem(word))


@cache
def _stemmer() -> Any:
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise InputError("needle answers are compared by stems: pip install 'regaze[eval]'") from error
    return PorterStemmer()
