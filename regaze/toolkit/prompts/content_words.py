"""The content words of a question, and their tokens.

A tagger is any callable from a text to its words, each with its position and part of speech. Two have names:
"spacy" is spaCy's `en_core_web_sm`. "function-words" needs no package: all words are content words except
those of a closed English list (articles, pronouns, prepositions, auxiliaries, question words ...). "auto" is
"spacy" where it is installed, else "function-words".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.toolkit.prompts.token_map import Role, TokenMap

#: Parts of speech (Universal Dependencies) of content words, and the tag of "function-words" for them.
CONTENT_TAGS = frozenset({"NOUN", "PROPN", "VERB", "ADJ", "ADV", "NUM", "CONTENT"})


class Word(NamedTuple):
    """A word of a text: its characters, the position of the first one, its part of speech."""

    text: str
    start: int
    tag: str


Tagger = Callable[[str], Sequence[Word]]


def find_tagger(name: str) -> Tagger:
    """The tagger named "auto", "spacy" or "function-words".

    Raises:
        BadParameterError: an unknown name, or spaCy or its model is not installed.
    """
    if name == "function-words" or (name == "auto" and _spacy() is None):
        return function_words
    if name not in ("auto", "spacy"):
        raise BadParameterError(f'unknown tagger {name!r}; there are "auto", "spacy" and "function-words"')
    if _spacy() is None:
        raise BadParameterError(
            'the tagger "spacy" needs spaCy and its model: pip install spacy, then '
            'python -m spacy download en_core_web_sm; "function-words" needs neither'
        )
    return _spacy_words


def function_words(text: str) -> list[Word]:
    """The words of a text, tagged FUNCTION where they are in the closed list, else CONTENT."""
    found = ((match.group(), match.start()) for match in _WORD.finditer(text))
    return [Word(word, start, "FUNCTION" if _is_function(word) else "CONTENT") for word, start in found]


def content_words(text: str, tagger: Tagger, last_only: bool = False) -> list[Word]:
    """The content words of a text, in their order.

    Args:
        last_only: a word that occurs several times as the same part of speech counts once: its last
            occurrence, in the order of the first.
    """
    words = [word for word in tagger(text) if word.tag in CONTENT_TAGS]
    return list({(word.text, word.tag): word for word in words}.values()) if last_only else words


def subject_words(text: str) -> list[Word]:
    """The content words that name neither the picture nor what is to be done: what a text is about."""
    return [word for word in content_words(text, function_words) if word.text.lower() not in _OF_THE_TASK]


def tokens_of(words: Sequence[Word], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of the tokens that share a character with one of the words, in the words' order, each once.

    Args:
        words: of one text.
        offsets: (start, end) of each token in the characters of that text.
    """
    found = (
        number
        for word in words
        for number, (start, end) in enumerate(offsets)
        if start < word.start + len(word.text) and end > word.start
    )
    return list(dict.fromkeys(found))


def read_tokens(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a run of tokens, and (start, end) of the characters that each token adds to it.

    Works with every tokenizer that decodes. A token in the middle of a character adds none.
    """
    text, offsets = "", []
    for count in range(1, len(ids) + 1):
        longer = tokenizer.decode(list(ids[:count]), clean_up_tokenization_spaces=False)
        offsets.append((min(len(text), len(longer)), len(longer)))
        text = longer
    return text, offsets


def content_tokens(
    tokens: TokenMap, input_ids: Tensor | None, tokenizer: Any, tagger: str, last_only: bool = False
) -> Tensor:
    """[B, L] bool, tokens of the questions' content words; of a question without any, all its tokens.

    Args:
        tokens, input_ids: of a batch of prompts, [B, L]. tokenizer: decodes the ids.
        tagger: name of a tagger. last_only: as for `content_words`.

    Raises:
        InputError: `input_ids` is None: the model was called with embeddings.
    """
    query = tokens.mask(Role.QUERY)
    chosen = torch.zeros_like(query)
    if input_ids is None:
        raise InputError("the words of a question are read from its tokens: call the model with input_ids")
    tag, ids = find_tagger(tagger), input_ids.cpu()
    known: dict[tuple[int, ...], list[int]] = {}  # of each distinct question
    for row, is_query in enumerate(query):
        positions, question = is_query.nonzero().flatten(), tuple(ids[row, is_query].tolist())
        if question not in known:
            text, offsets = read_tokens(tokenizer, question)
            found = tokens_of(content_words(text, tag, last_only), offsets)
            known[question] = found or list(range(len(question)))
        chosen[row, positions[known[question]]] = True
    return chosen


@lru_cache(maxsize=1)
def _spacy() -> Any:
    """spaCy's small English model with the parts that tagging needs; None where it is not installed."""
    try:
        return import_module("spacy").load("en_core_web_sm", exclude=["parser", "ner"])
    except (ImportError, OSError):
        return None


def _spacy_words(text: str) -> list[Word]:
    return [Word(token.text, token.idx, token.pos_) for token in _spacy()(text)]


_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def _is_function(word: str) -> bool:
    """Whether all parts of a word with an apostrophe are function words ("what's", "isn't")."""
    parts = re.split(r"['’]", word.lower())
    return all(part in _FUNCTION_WORDS or (number and part in _CLITICS) for number, part in enumerate(parts))


_CLITICS = frozenset(("d", "ll", "m", "re", "s", "t", "ve"))
_CLOSED_CLASSES = """
    a an the this that these those each every either neither some any no all both half such another other
    i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its
    itself we us our ours ourselves they them their theirs themselves one oneself
    someone somebody something anyone anybody anything everyone everybody everything nobody nothing none
    who whom whose which what whatever whichever whoever when where why how there here
    about above across after against along among around as at before behind below beneath beside besides
    between beyond by despite down during except for from in inside into like near of off on onto out outside
    over past per since than through throughout till to toward towards under underneath until up upon via
    with within without
    and but or nor so yet if unless because although though while whereas whether
    am is are was were be been being do does did doing done have has had having
    can could may might must shall should will would ought
    ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shan shouldn wasn weren won wouldn
    cannot not let please yes ok
"""
_FUNCTION_WORDS = frozenset(_CLOSED_CLASSES.split())

#: Words that name the picture, say how to answer, or begin a description.
_TASK_WORDS = """
    image images picture pictures photo photograph scene figure answer question using use single word phrase
    only briefly short sentence describe detail say tell many much show shown see visible contain
    shows showing displays depicts features contains
"""
_OF_THE_TASK = frozenset(_TASK_WORDS.split())
