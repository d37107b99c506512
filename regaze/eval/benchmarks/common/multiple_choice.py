"""Multiple-choice questions: how options are shown, and which letter an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from regaze.errors import InputError
from regaze.eval.benchmarks.common.final_answer import final_answer, plain_text
from regaze.eval.benchmarks.common.yes_no_reading import is_hedged

LETTERS = "ABCDEFGHIJ"
#: A letter alone; letters of Chinese and other scripts may stand next to it.
_LETTER = re.compile(r"(?<![A-Za-z0-9'.-])(?<![Nn]/)(?<![Nn] / )([A-Ja-j])(?![A-Za-z0-9'-])")
#: Characters before and after a letter that may say what it is.
_WINDOW = 40
#: An answer with more letters says nothing.
_MOST_MENTIONS = 64
_MARK = re.compile(r" ?(?:[.:](?!\w)|[,;!?)\n/&]|$)| (?:because|since)\b")
#: What follows a letter and not an article.
_NO_NOUN = re.compile(r" (?:is|was|or|and|because|since|as|but|seems|looks|would)\b| [A-J]\b|[^\x00-\x7f]")
_NAMED_BEFORE = re.compile(r"(?:\b(?:option|choice|letter|answer) ?:? ?|选项?|选择|答案是?)$", re.IGNORECASE)
_REJECTION = r"(?P<rejected>\b(?:not|rather than|instead of|neither|nor) )"
_REJECTED_BEFORE = re.compile(rf"{_REJECTION}(?:option )?$", re.IGNORECASE)
_REJECTED_AFTER = re.compile(
    r" (?:is|was|are|looks|seems|would be|can) ?(?:\w{1,12}ly )?(?:wrong|incorrect|false|out|not|excluded)\b"
)
_CHOSEN_BEFORE = re.compile(
    r"(?:\b(?:choose|pick|select|go with|so|therefore|thus|hence|(?:option|choice|letter|one) (?:is|would be)"
    r")[ :,]{0,2}(?:option |answer |it is )?|选|选择)$",
    re.IGNORECASE,
)
_CHOSEN_AFTER = re.compile(r" is (?:\w{1,12}ly )?(?:the )?(?:better|best|correct|right|most|answer)\b")
_OPTION_WORD = re.compile(
    r"\b(?:the |correct |best )*(?:option|choice|letter|answer)\b ?:?|选项?:?", re.IGNORECASE
)
#: Letters in a row: "A or B", "A. dog or B. cat", "A, B".
_JOINED = re.compile(r"(?:\b(?:or|and)|^[ .,;:/&]*)[ ]?$")
_INTRODUCTION = re.compile(
    r"(?:(?:it|this|that|they|these|there) (?:is|are|was)|it's|that's|i (?:think|choose|see|would say)"
    r"(?: it is)?) "
)
_ARTICLE = re.compile(r"\b(?:a|an|the)(?= )")
#: Shorter texts ("on", "no") occur in any sentence.
_SHORTEST_TEXT = 3


def format_options(question: str, options: Sequence[str]) -> str:
    """The question and its options, one per line: "A. ...", "B. ..."."""
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question, *lines])


def check_options(options: Sequence[str], source: str) -> tuple[str, ...]:
    """Two or more options, each of them another text.

    Raises:
        InputError: there are fewer, an option is blank, or two are the same; names `source`.
    """
    texts = tuple(option.strip() for option in options)
    if not 2 <= len(texts) <= len(LETTERS) or not all(texts) or len(set(texts)) < len(texts):
        raise InputError(f"{source}: expected 2 to {len(LETTERS)} different options, got {list(options)!r}")
    return texts


def split_options(text: str, source: str) -> tuple[str, tuple[str, ...]]:
    """A question and its options, of a text that ends in "(A) ... (B) ...".

    Raises:
        InputError: as `check_options`, or the letters are not A, B, C ... in this order.
    """
    question, *parts = re.split(r"\s*\(([A-Ja-j])\)\s*", text)
    letters, options = "".join(parts[::2]).upper(), parts[1::2]
    if letters != LETTERS[: len(letters)]:
        raise InputError(f"{source}: expected options (A), (B) and so on in this order, got {text!r}")
    return question, check_options(options, source)


def read_choice(answer: str, options: Sequence[str]) -> str:
    """The letter of the option that an answer chooses, "" where a careful person could not say.

    The decisive part of the answer (`final_answer`) chooses by the first of these that applies:

    1. the whole text of an option, whatever its case, articles and final stop ("Cat", "It is a cat.");
    2. a letter that it calls right ("B is better", "I choose B"), if it is one;
    3. the letter that it begins with ("B", "(b) ...", "B: cat"), unless another one follows as such;
    4. the only letter in it, those left out that it rejects ("A is wrong, so B");
    5. the only option whose text occurs in it, rejected ones left out ("not the cat but the dog"), unless the
       answer hedges.

    "A" before a word is an article, unless that word is the text of option A.
    """
    text = final_answer(answer)
    letters, texts = LETTERS[: len(options)], [_bare(plain_text(option)) for option in options]
    bare = _bare(text)
    if bare and texts.count(bare) == 1:
        return letters[texts.index(bare)]
    mentions = list(islice(_mentions(text, texts), _MOST_MENTIONS))
    chosen = {mention.letter for mention in mentions if mention.is_chosen} or _leading(mentions, text)
    chosen = chosen or {mention.letter for mention in mentions}
    if not chosen and not is_hedged(text):
        chosen = {letters[index] for index in _options_named(bare, texts)}
    return chosen.pop() if len(chosen) == 1 and chosen <= set(letters) else ""


class _Mention(NamedTuple):
    """A letter in an answer that stands for an option, in capitals, and where.

    Attributes:
        is_chosen: the answer calls it right. is_mark: a mark or the option's text follows, as in "B. cat".
    """

    letter: str
    start: int
    end: int
    is_chosen: bool
    is_mark: bool


def _mentions(text: str, texts: Sequence[str]) -> Iterator[_Mention]:
    """The letters that stand for options, without those that are rejected."""
    for match in _LETTER.finditer(text):
        letter, before = match[1], text[max(0, match.start() - _WINDOW) : match.start()]
        after = text[match.end() : match.end() + _WINDOW]
        is_named = _NAMED_BEFORE.search(before) is not None
        if letter.islower() and not (is_named or (not match.start() and _MARK.match(after))):
            continue
        index = LETTERS.index(letter.upper())
        own_text = tuple(filter(None, texts[index : index + 1]))
        is_mark = _MARK.match(after) is not None or _bare(after).startswith(own_text)
        if letter in "AaIi" and not (is_named or is_mark or _NO_NOUN.match(after)):
            continue
        if _REJECTED_BEFORE.search(before) or _REJECTED_AFTER.match(after):
            continue
        is_chosen = bool(_CHOSEN_BEFORE.search(before) or _CHOSEN_AFTER.match(after))
        yield _Mention(letter.upper(), match.start(), match.end(), is_chosen, is_mark)


def _leading(mentions: Sequence[_Mention], text: str) -> set[str]:
    """The letter that an answer begins with; none if another one begins a line or is joined to it, too."""
    if not mentions or _OPTION_WORD.sub("", text[: mentions[0].start]).strip():
        return set()
    first = mentions[0]
    other = next((mention for mention in mentions if mention.letter != first.letter), None)
    between = text[first.end : other.start] if other else ""
    if other and (not first.is_mark or between.endswith("\n") or _JOINED.search(between)):
        return set()
    return {first.letter}


def _options_named(bare: str, texts: Sequence[str]) -> set[int]:
    """Indices of the options whose texts occur as words; of overlapping ones the longest counts."""
    found: set[int] = set()
    for index in sorted(range(len(texts)), key=lambda index: -len(texts[index])):
        if len(texts[index]) < _SHORTEST_TEXT and not texts[index].isdigit():
            continue
        pattern = rf"{_REJECTION}?(?<!\w){re.escape(texts[index])}(?!\w)"
        matches = list(re.finditer(pattern, bare))
        if any(match["rejected"] is None for match in matches):
            found.add(index)
        bare = re.sub(pattern, " ", bare)
    return found


def _bare(text: str) -> str:
    """A text in lower case, without articles, final stops and what only introduces an answer."""
    words = _INTRODUCTION.sub("", " ".join(text.lower().split()), count=1)
    return " ".join(_ARTICLE.sub(" ", words).split()).strip(" .,:;!")


def first_match(patterns: Sequence[str], text: str) -> str:
    """The group of the first pattern that is found, in capitals; "" if none is. Case is ignored."""
    for pattern in patterns:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            return match[1].upper()
    return ""
