"""Normalisation of short answers before they are compared: two versions of the VQA challenge's rule.

Both descend from the evaluation code of VQA (Antol et al., ICCV 2015) and share a bug: a flag is passed where
a count is expected, so that at most 32 full stops are removed.
"""

from __future__ import annotations

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_BETWEEN_DIGITS = re.compile(r"\d,\d")
_MAX_FULL_STOPS = int(re.UNICODE)  # the flag that is passed as a count

_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
# Words that are corrected when one of their apostrophes is missing.
_WITH_APOSTROPHE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
y'all'd've you'd you'd've you'll you're you've
"""


def _missing_one_apostrophe() -> dict[str, str]:
    """{misspelling: word}."""
    words = {
        word[:place] + word[place + 1 :]: word
        for word in _WITH_APOSTROPHE.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return {**words, "somebody'd": "somebodyd"}  # reversed in the original, too


_CONTRACTIONS = _missing_one_apostrophe()


def strip_punctuation(text: str, *, keep_decimal_point: bool) -> str:
    """Remove punctuation, or replace it by spaces.

    A mark is removed if a space stands next to it anywhere in the text, or if the text has a comma between
    digits; otherwise a space replaces it. A full stop is removed unless a digit follows.

    Args:
        keep_decimal_point: Also keep a full stop after a digit (VLMEvalKit); False keeps only those before a
            digit (Pythia, LLaVA, lmms-eval).
    """
    stripped = text
    for mark in _MARKS:
        next_to_space = mark + " " in text or " " + mark in text
        stripped = stripped.replace(mark, "" if next_to_space or _BETWEEN_DIGITS.search(text) else " ")
    full_stop = r"(?<!\d)\.(?!\d)" if keep_decimal_point else r"\.(?!\d)"
    return re.sub(full_stop, "", stripped, count=_MAX_FULL_STOPS)


def normalise_pythia(answer: str) -> str:
    """Normalise as Pythia, LLaVA and lmms-eval do: "3." is "3", "it's" is "it 's"."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    return _normalise_words(strip_punctuation(text, keep_decimal_point=False))


def normalise_vlmevalkit(answer: str) -> str:
    """Normalise as VLMEvalKit does: "3." and "it's" stay."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    return _normalise_words(strip_punctuation(text, keep_decimal_point=True))


def _normalise_words(text: str) -> str:
    """Lower case, no articles, digits for numbers up to ten, missing apostrophes inserted."""
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
