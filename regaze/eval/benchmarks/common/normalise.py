"""Normalising short answers before they are compared: the VQA challenge's rule, as it is written in two ways.

Both descend from the evaluation code of VQA (Antol et al., ICCV 2015) and share a slip: a flag is passed
where a count is expected, so that at most 32 full stops are removed.
"""

from __future__ import annotations

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_BETWEEN_DIGITS = re.compile(r"\d,\d")
_MOST_STOPS = int(re.UNICODE)  # the flag that is passed as a count

_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
# Words that are put right when one of their apostrophes is missing.
_SHORT = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
you'd've you'll you're you've"""


def _missing_one_apostrophe() -> dict[str, str]:
    words = {
        word[:place] + word[place + 1 :]: word
        for word in _SHORT.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return {**words, "somebody'd": "somebodyd"}  # the one that stands the wrong way round


_CONTRACTIONS = _missing_one_apostrophe()


def strip_punctuation(text: str, *, keep_decimal_point: bool) -> str:
    """Take punctuation out of `text`, or put spaces in its place.

    A mark goes without a trace where a space stands beside it anywhere in the text, or where the text has a
    comma between digits; otherwise it leaves a space. Full stops go when no digit follows.

    Args:
        keep_decimal_point: keep a full stop behind a digit, too (VLMEvalKit); False keeps only those in front
            of one (Pythia, LLaVA, lmms-eval).
    """
    joined = text
    for mark in _MARKS:
        beside_space = mark + " " in text or " " + mark in text
        joined = joined.replace(mark, "" if beside_space or _BETWEEN_DIGITS.search(text) else " ")
    stop = r"(?<!\d)\.(?!\d)" if keep_decimal_point else r"\.(?!\d)"
    return re.sub(stop, "", joined, count=_MOST_STOPS)


def normalise_pythia(answer: str) -> str:
    """As Pythia's processor, which LLaVA and lmms-eval use: "3." is "3", "it's" is "it 's"."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    return _words(strip_punctuation(text, keep_decimal_point=False))


def normalise_vlmevalkit(answer: str) -> str:
    """As VLMEvalKit: "3." stays, "it's" stays."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    return _words(strip_punctuation(text, keep_decimal_point=True))


def _words(text: str) -> str:
    """Lower case, without articles, numbers up to ten as digits, apostrophes put back."""
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
