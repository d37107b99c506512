"""Letters of multiple-choice answers as harnesses read them, which disagree with each other and with readers.

`lmms-eval`
    After its reasoning tags are cut out: every letter that stands in one of eight forms is a candidate, the
    form decides, then the later place. "Not A" is A, "A is wrong, so B" too; "dog" is nothing, "Dog" D.
`vlmevalkit`
    Without a judge: the only letter among the words, if it is one of the last four; else "answer is X"; else
    the only option whose text occurs. "a dog" is the option "dog"; "None" is the option "on".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from regaze.eval.benchmarks.common.multiple_choice import LETTERS

_REASONING_TAGS = ("think", "analysis")
# (what a letter stands in, how much lmms-eval believes it)
_FORMS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
_START, _END, _AFTER_PHRASE, _ANYWHERE = 10, 9, 7, 0
_PHRASES = (
    *(f"{words} is" for words in ("the answer", "answer", "the correct answer", "correct answer")),
    *(f"{words} is" for words in ("the best answer", "best answer", "the correct option", "correct option")),
    *(f"{words} is" for words in ("the best option", "best option", "the choice", "choice", "my answer")),
    *("the correct choice is", "correct choice is", "my choice is", "i choose", "i select", "i pick"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NO_ANSWER = "Failed to obtain answer via API"
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)


def strip_lmms_eval(answer: str, tags: Sequence[str] = _REASONING_TAGS) -> str:
    """An answer as it reaches lmms-eval's scorers: without blocks of reasoning, which are cut out one by one.

    Of a closing tag alone, what follows the last one is left; a block that does not end stays. Tags are
    case-sensitive.
    """
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        while opening in answer:
            start = answer.find(opening)
            end = answer.find(closing, start)
            if end < 0:
                break
            answer = answer[:start] + answer[end + len(closing) :]
        if opening not in answer and closing in answer:
            answer = answer.rpartition(closing)[2]
    return answer.strip()


def read_lmms_eval(answer: str, letters: str = LETTERS[:4]) -> str:
    """The letter that lmms-eval's shared extraction reads, "" for none (capitals only)."""
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    found = list(_candidates(f" {text} ", letters))
    if not found:
        found = [(_ANYWHERE, text.rfind(letter), letter) for letter in letters if letter in text]
    # Of equal candidates the first in the order of forms and letters is taken, as a stable sort leaves it.
    return max(found, key=lambda each: each[:2])[2] if found else ""


def _candidates(padded: str, letters: str) -> Iterator[tuple[int, int, str]]:
    """(belief, place, letter) of the letters in one of the forms; the text has a space at both ends."""
    for form, belief in _FORMS:
        for letter in letters:
            if (place := padded.rfind(form.format(letter))) >= 0:
                yield belief, place, letter
    lower, text = padded.lower(), padded.strip()
    for phrase in _PHRASES:
        if (start := lower.find(phrase)) >= 0:
            places = ((padded.find(letter, start + len(phrase)), letter) for letter in letters)
            yield from ((_AFTER_PHRASE, place, letter) for place, letter in places if place >= 0)
    for letter in letters:
        if text.startswith(letter) and not text[1:2].isalpha():
            yield _START, 0, letter
        if text.endswith(letter) and not text[-2:-1].isalpha():
            yield _END, len(padded) - 1, letter


def read_vlmevalkit(answer: str, options: Sequence[str]) -> str:
    """The letter that VLMEvalKit reads without its judge, "" for none; options "nan" are left out there."""
    texts = {letter: text for letter, text in zip(LETTERS, options, strict=False) if text.strip() != "nan"}
    if _NO_ANSWER not in answer:
        if any(refusal in answer for refusal in _REFUSALS):
            return ""
        words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
        found = [letter for letter in texts if letter in words]
        if len(found) == 1 and words.index(found[0]) > len(words) - 5:
            return found[0]
        if not found and "Z" in words:
            return ""
        match = _ANSWER_IS.search(answer)
        if match and match[1].upper() in texts:
            return match[1].upper()
    lower = answer.lower()
    if len(lower) > 2 * sum(map(len, texts.values())):
        return ""
    found = [letter for letter, text in texts.items() if text.lower() in lower]
    return found[0] if len(found) == 1 else ""
