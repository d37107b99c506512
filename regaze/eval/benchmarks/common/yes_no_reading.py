"""Our reading of yes/no answers: what a careful person takes an answer for.

The decisive part of an answer (`final_answer`) is read by the first of these that applies:

1. It begins with a verdict ("Yes", "Nope", "Not a dog", "False", "是的"): that one, unless it is taken back
   ("Yes and no", "No. Yes.", "Yes, probably").
2. A later sentence begins with one ("So no."): that one, if all such sentences agree.
3. It hedges or refuses ("not sure", "I cannot see images"): unreadable.
4. A sentence says what is there ("There is a dog", "I cannot see a dog"): that, if all such sentences agree.

Anything else is unreadable. True is yes, and false is no. Who or what a sentence is about is not known here:
"There is a cat" is yes, whatever the question.
"""

from __future__ import annotations

import re
from functools import lru_cache

from regaze.eval.benchmarks.common.final_answer import final_answer

OTHER = "other"

#: Written out, so that each negation has one form.
_CONTRACTIONS = (
    ("cannot", "can not"),
    ("can't", "can not"),
    ("won't", "will not"),
    ("n't", " not"),
    ("'s ", " is "),
    ("'m ", " am "),
    ("'re ", " are "),
    ("'d ", " would "),
)

#: Verdicts wherever they begin a sentence.
_WORDS = {
    "yes": "yes|yeah|yea|yep|yup|aye|oui|ja|sí|sì|si|sim|da|да|はい|うん|네|예",
    "no": "no(?! (?:doubt|problem|wonder|matter|question))|nope|nah|nay|non|nein|nee|nej|não|нет|いいえ"
    "|아니요|아니오|아니",
}
#: Verdicts only if nothing or a mark follows: "Right." is one, "Right of the door" is none.
_ALONE = {
    "yes": "true(?: true)*|correct|right|exactly|indeed|affirmative|y|t|1|i think so"
    "|it is|it does|there is|there are|i do|i can",
    "no": "false(?: false)*|incorrect|wrong|untrue|never|negative|n|f|0|i do not think so"
    "|it is not|it does not|there is not|there are not|i do not|i can not",
}
_EMPHASIS = r"(?:sure|surely|certainly|absolutely|definitely|of course|clearly|no doubt|without a doubt)"
_END = r"(?= ?(?:[.,;:!?\n]|$)| (?:because|since|[-–—])(?= |$))"


_NEGATED = (
    rf"{_EMPHASIS} not{_END}|not (?:a )?yes\b|not at all\b"
    r"|not(?= (?!only|just|necessarily|applicable|no\b)[^\W\d])"
)
_VERDICT = re.compile(
    rf"(?P<no>(?:{_WORDS['no']})(?![\w/-])|(?:{_ALONE['no']}){_END}|{_NEGATED})"
    rf"|(?P<yes>(?:{_WORDS['yes']})(?![\w/-])|(?:{_ALONE['yes']}){_END})"
)
#: A whole answer; before something else it says little ("Sure! Here is what I see").
_ASSENT = re.compile(rf"{_EMPHASIS}[ .!]*")
#: What may stand before a verdict.
_LEAD_IN = re.compile(
    r"(?:so|thus|hence|therefore|then|well|ok|okay|hmm|um|uh|oh|ah|but|and|wait|actually|finally|overall"
    r"|unfortunately|however|in conclusion|in summary"
    r"|(?:based on|looking at|according to|given|from|in) (?:the|this) \w{1,12}"
    r"|(?:i|we)(?: would)? (?:think|believe|say|conclude|answer)(?: that)?"
    r"|(?:the|this) (?:statement|claim|sentence|description) is"
    r"|(?:it|this|that) is(?= (?:true|false|correct|incorrect|right|wrong|untrue|a (?:yes|no))\b)"
    r"|(?:it|this|that) is(?= not (?:true|correct|right)\b)"
    rf"|a(?= (?:yes|no)\b)|{_EMPHASIS}"
    r"|(?:(?:option|choice) )?[a-j](?=[.:] [^\W\d]{2})|[0-9]{1,2}(?=\. ))(?:$|[ ,:;.!-]{1,3})"
)
_MOST_LEAD_INS = 6
#: An instruction that the model repeats: "Please answer with yes or no."
_INSTRUCTION = re.compile(
    r"(?:\b(?:please |only )?(?:answer|respond|reply|say)\b[^.\n?!:]{0,40} )?"
    r"\b(?:yes or no|yes/no|true or false)\b ?[.:?]?(?=[ \n]*\w)"
)

_SEE = r"(?:see|find|spot|detect|identify|observe|notice)"
_HEDGE = re.compile(
    r"\bnot (?:quite |entirely |completely |really )?(?:sure|certain|clear|possible|know|enough|able)\b"
    r"|\b(?:unsure|uncertain|unclear|unknown|unable|ambiguous|inconclusive|insufficient)\b"
    r"|\b(?:maybe|perhaps|possibly|probably|likely|presumably|depends)\b"
    r"|\bno (?:idea|clue|answer|comment)\b|\b(?:hard|difficult|impossible|no way) to\b"
    r"|\b(?:might|may|could) (?:be|have|contain)\b"
    r"|\b(?:can|could) not (?:\w{1,12}ly )?(?:be )?(?:tell|determined?|say|answer|confirm|decide|verify|know"
    r"|judge|assess|conclude|provide|assist|help|process|analy[sz]e|access|interpret)\b"
    rf"|\b(?:can|could) not (?:\w{{1,12}}ly )?(?:view|{_SEE}) (?:(?:the|this|any|your) )?"
    r"(?:images?|pictures?|photos?|anything)\b"
    r"|不确定|不清楚|不知道|不明|无法|看不清|可能|也许|或许|大概|难以|わからない|わかりません|모르"
)
#: A hedge that takes back the verdict before it.
_TAKEN_BACK = re.compile(rf"[ ,.;]{{0,3}}(?:(?:but|though|i|i am|it is) ){{0,3}}(?:{_HEDGE.pattern})")
#: The other verdict after one: "no" is none before a noun ("Yes, with no people around").
_OPPOSED = {
    "yes": re.compile(r"\bno(?=$|\n| ?[.,;:!?/]| (?:and|or|but|wait)\b)|\bnope\b"),
    "no": re.compile(r"\b(?:yes|yep|yeah)\b"),
}

_PLACED = r"(?:visible|present|there|seen|shown|found|depicted|in)"
_SHOW = r"(?:contain|include|show|depict|feature|have)"
_ABSENT = re.compile(
    r"\bthere (?:is|are|was|were) (?:\w{1,12}ly )?(?:no|not|none|nothing(?! else| more| other))\b"
    rf"|\b(?:i|we|you) (?:can |could |do |did )not (?:\w{{1,12}}ly )?{_SEE}\b"
    rf"|\b(?:i|we|you) (?:can )?{_SEE} (?:no|nothing|none)\b"
    r"|\b(?:is|are|was|were|can|could|does|do|did) not (?:\w{1,12}ly )?(?:be )?"
    rf"(?:{_PLACED}|{_SHOW}|appear|an?|any)\b"
    r"|\bnot (?:think|believe|say|true|correct|right|the case)\b.*|\bis (?:false|incorrect|wrong|untrue)\b.*"
    r"|\b(?:absent|missing|nowhere|lacks?)\b|\bno sign of\b"
)
_ONE = r"(?:an?|the|one|some|two|several)"
_PRESENT = re.compile(
    r"(?<!whether )(?<!if )\bthere (?:is|are) (?!(?:\w{1,12}ly )?(?:no|not|none|nothing|any|only)\b)\w"
    rf"|\b(?:i|we|you) (?:can |do )?(?:clearly )?{_SEE} {_ONE}\b"
    rf"|\b(?:image|picture|photo|photograph|scene|video) (?:does |clearly )?(?:has|{_SHOW}s?) {_ONE}\b"
    rf"|^(?:an?|the|one) [^.,]{{1,40}} is (?:\w{{1,12}}ly )?(?:{_PLACED})\b"
    r"|\bis (?:true|correct|right)\b|\bnot (?:false|incorrect|wrong|untrue)\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")

_HAN = re.compile("[\u3400-\u9fff]")
_HAN_QUESTION = re.compile("是否|有没有|是不是")
_HAN_LEADING = re.compile(r"[ ,。,]*(?:(?P<no>没|無|无|不|否|错|假)|(?P<yes>是|有|对|正确|存在|真|可以|能))")
_HAN_ABSENT, _HAN_PRESENT = re.compile("没|无|不|错误"), re.compile("(?<!只)有|存在|正确")


def read_yes_no(answer: str) -> str:
    """Read an answer as "yes", "no", or "other" where a careful person could not say."""
    return _read(final_answer(answer))


@lru_cache(maxsize=1 << 10)
def _read(text: str) -> str:
    text = _INSTRUCTION.sub("", _written_out(text)).strip()
    if _ASSENT.fullmatch(text):
        return "yes"
    if _HAN.match(text):
        return _read_han(text)
    first, *others = (part for part in _SENTENCE_END.split(text) if part) if text else ("",)
    verdict, end = _leading_verdict(first)
    if verdict:
        return verdict if not _taken_back(verdict, first[end:], others) else OTHER
    sentences = (first, *others)
    explicit = {_leading_verdict(sentence)[0] for sentence in sentences} - {""}
    if explicit:
        return _agreed(explicit)
    return OTHER if _HEDGE.search(text) else _agreed({_existence(sentence) for sentence in sentences} - {""})


def is_hedged(text: str) -> bool:
    """Whether plain text hedges or refuses ("not sure", "I cannot tell")."""
    return _HEDGE.search(_written_out(text)) is not None


def _written_out(text: str) -> str:
    """A text in lower case, without contractions."""
    text = text.lower()
    for short, full in _CONTRACTIONS:
        text = text.replace(short, full)
    return text


def _leading_verdict(sentence: str) -> tuple[str, int]:
    """The verdict with which a sentence begins, OTHER for a hedge, "" for neither; and where it ends."""
    start = 0
    for _ in range(_MOST_LEAD_INS):
        if _HEDGE.match(sentence, start):
            return OTHER, start
        if match := _VERDICT.match(sentence, start):
            return str(match.lastgroup), match.end()
        lead_in = _LEAD_IN.match(sentence, start)
        if lead_in is None:
            break
        start = lead_in.end()
    return "", start


def _taken_back(verdict: str, rest: str, others: list[str]) -> bool:
    """Whether what follows a verdict, in its sentence and in others, contradicts it."""
    if verdict == OTHER:
        return False
    if _TAKEN_BACK.match(rest) or any(_OPPOSED[verdict].search(part) for part in (rest, *others)):
        return True
    return verdict == "yes" and _ABSENT.match(rest.lstrip(" ,;:-")) is not None


def _existence(sentence: str) -> str:
    """What a sentence says about what is there: "yes", "no", OTHER for both, "" for neither."""
    rest = _ABSENT.sub("", sentence)
    present = _PRESENT.search(rest) is not None
    if len(rest) < len(sentence):
        return OTHER if present else "no"
    return "yes" if present else ""


def _read_han(text: str) -> str:
    """Read a text that begins in Chinese characters."""
    text = _HAN_QUESTION.sub("", text)
    if _HEDGE.search(text):
        return OTHER
    if match := _HAN_LEADING.match(text):
        is_opposed = match["yes"] and _HAN_ABSENT.search(text, match.end())
        return OTHER if is_opposed else str(match.lastgroup)
    return "no" if _HAN_ABSENT.search(text) else "yes" if _HAN_PRESENT.search(text) else OTHER


def _agreed(verdicts: set[str]) -> str:
    return verdicts.pop() if len(verdicts) == 1 else OTHER
