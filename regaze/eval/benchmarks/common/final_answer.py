"""The part of an answer that our own scorers read: without thinking, wrappers, markup and role names.

Reasoning models think in the open, chat models wrap their answer ("**Answer:** Yes", `\\boxed{no}`), and what
a rule for plain answers makes of that is chance. Scorers that reproduce a published script never call this.

1. What follows the thinking (`thinking.after_thinking`); an answer cut off in its thinking has none.
2. The last <answer> (also <conclusion> and others of this kind), in it the last of GLM's boxes, in it the
   last `\\boxed{}`. An element that is not closed holds the rest.
3. NFKC, without zero-width characters, special tokens, role names, Markdown, LaTeX, quotes, brackets, emoji.
4. Where the text says "the answer is", "Answer:" or alike, what follows the last of these.

Each step takes time in proportion to the text, whatever it is; of a long text behind the thinking only both
ends are read.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from regaze.toolkit.prompts.thinking import after_thinking

_NAME = r"(?:final[_ ]?)?(?:answer|conclusion|response|solution)"
_ANSWER_TAG = re.compile(
    rf"(?P<end></\s?{_NAME}\s?>|<\|end_of_solution\|>)|<\s?{_NAME}\s?>|<\|begin_of_solution\|>", re.IGNORECASE
)
_BOX_TAG = re.compile(r"(?P<end><\|end_of_box\|>)|<\|begin_of_box\|>")
_BRACE = re.compile(r"(?P<box>\\f?box(?:ed)?\s{0,3}\{)|\\[{}]|(?P<open>\{)|(?P<close>\})")

#: A run with the character before it, to which its first may belong. The length of runs is limited, since
#: normalisation sorts combining marks, in quadratic time.
_NOT_ASCII = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]{1,256}")
_INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
_SPECIAL_TOKEN = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|</?s>|<(?:eos|bos|pad|unk|end_of_turn|start_of_turn|end_of_utterance)>|\[/?INST\]",
    re.IGNORECASE,
)
_ROLE = re.compile(
    r"\s{0,9}(?:#{1,6} ?)?(?:assistant|chatbot|gpt|bot|model|ai|response|output)\s{0,3}[:>\n]", re.IGNORECASE
)
#: The next turn, which some models write themselves.
_NEXT_TURN = re.compile(r"\n\s{0,9}(?:#{1,6} ?)?(?:user|human)\s{0,3}[:>]", re.IGNORECASE)
_LATEX = re.compile(r"\\[a-zA-Z]{1,20}\s?(?=\{)|\\[()\[\],;! ]|[{}$]")
#: "(B)" and "b)" become "B." and "b.".
_LETTERED = re.compile(r"[(\[]?\s?(?<![^\W_])([A-Za-z])\s?[)\]]")
_MARKUP = re.compile(r"[*`#~|\"“”„«»‘「」『』【】<>\[\]()_^=]+|(?<!\w)'|'(?!\w)")
_BULLET = re.compile(r"^[-–—•·‣] (?=\S)")
#: Unicode categories of emoji, ticks and other pictures, and of characters without a meaning.
_PICTURES = frozenset({"So", "Sk", "Cs", "Co", "Cn"})
_ANNOUNCED = re.compile(
    r"\b(?:answer|verdict|conclusion)(?: to (?:the|this|your) question)?"
    r"(?: (?:is|would be|should be|must be)\b(?: that\b)?| ?[:=]| [-–—] |\n)"
    r"|\bassistant ?:|答案 ?(?:应该|应当|就)?(?:是|为|选|:)|[答论]:",
    re.IGNORECASE,
)
#: Characters of each end of a long text.
_END = 4000


def without_thinking(answer: str) -> str:
    """An answer as a reader of free text gets it: without thinking and answer tags, else to the character.

    Captions are scored so, and judges read it. "" for an answer that was cut off in its thinking.
    """
    rest = after_thinking(answer)
    if rest is None:
        return ""
    inside = _last_element(rest, _ANSWER_TAG)
    return answer if inside == answer else inside.strip()


def is_cut_in_thinking(answer: str) -> bool:
    """Whether the model was still thinking when its answer ended."""
    return after_thinking(answer) is None


def final_answer(answer: str) -> str:
    """The words that decide a short answer, as lines of plain text; "" where there are none."""
    rest = after_thinking(answer)
    return "" if rest is None else _decisive_part(rest)


@lru_cache(maxsize=1 << 10)  # most yes/no answers are one of a few
def _decisive_part(rest: str) -> str:
    """Steps 2 to 4 of the reading."""
    for tag in (_ANSWER_TAG, _BOX_TAG):
        rest = _last_element(rest, tag)
    plain = plain_text(_ends(_last_boxed(rest)))
    announced = max((match.end() for match in _ANNOUNCED.finditer(plain)), default=len(plain))
    told = plain[announced:].strip(" \n:-.")
    return told or plain


def _ends(text: str) -> str:
    return text if len(text) <= 2 * _END else f"{text[:_END]}\n{text[-_END:]}"


def plain_text(text: str) -> str:
    """A text without markup: step 3 of the reading. Lines are kept, other space is single."""
    text = _NOT_ASCII.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
    text = _SPECIAL_TOKEN.sub("\n", _INVISIBLE.sub("", text).replace("’", "'"))
    text = _NEXT_TURN.split(text, maxsplit=1)[0]
    if role := _ROLE.match(text):
        text = text[role.end() :]
    text = _MARKUP.sub(" ", _LETTERED.sub(r" \1. ", _LATEX.sub(" ", text)))
    text = "".join(" " if unicodedata.category(char) in _PICTURES else char for char in text)
    lines = (_BULLET.sub("", " ".join(line.split())) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _last_element(text: str, tag: re.Pattern[str]) -> str:
    """What stands in the last element with this tag; the whole text without one."""
    start, end = 0, None
    for match in tag.finditer(text):
        if match["end"] is None:
            start, end = match.end(), None
        elif end is None:
            end = match.start()
    return text[start:end]


def _last_boxed(text: str) -> str:
    r"""What stands in the last `\boxed{}` whose braces are balanced; the whole text without one."""
    opened: list[int | None] = []  # where the content of a box begins, None of other braces
    last: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        if match["box"] or match["open"]:
            opened.append(match.end() if match["box"] else None)
        elif match["close"] and opened:
            start = opened.pop()
            if start is not None and (last is None or start > last[0]):
                last = start, match.start()
    return text[last[0] : last[1]] if last else text
