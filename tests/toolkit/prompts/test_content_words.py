"""Content words and their tokens: the authors' alignments, the built-in tagger, spaCy where it is there."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
from models import llava_processor

from regaze.errors import BadParameterError
from regaze.toolkit.prompts import content_words as module
from regaze.toolkit.prompts.content_words import (
    Word,
    content_words,
    find_tagger,
    function_words,
    read_tokens,
    tokens_of,
)


def said_content(text: str) -> list[str]:
    return [word.text for word in content_words(text, function_words)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is there a red dog on the sofa?", ["red", "dog", "sofa"]),
        ("What colour are seventeen umbrellas?", ["colour", "seventeen", "umbrellas"]),
        ("What's in the T-shirt's pocket, isn't it 2 o'clock?", ["T-shirt's", "pocket", "2", "o'clock"]),
        ("Is it?", []),
        ("Où est le chien?", ["Où", "est", "le", "chien"]),
        ("_ ... ?", []),
    ],
)
def test_function_words(text, expected):
    assert said_content(text) == expected
    assert all(text[word.start :].startswith(word.text) for word in function_words(text))


def test_repeated_words_count_each_time_by_default():
    tagged = [
        Word("dog", 0, "NOUN"),
        Word("sees", 4, "VERB"),
        Word("dog", 9, "NOUN"),
        Word("dog", 13, "VERB"),
    ]
    assert content_words("", lambda _: tagged) == tagged
    last = content_words("", lambda _: tagged, last_only=True)
    assert [(word.text, word.start) for word in last] == [("dog", 9), ("sees", 4), ("dog", 13)]


def test_golden_alignment(goldens):
    spec = json.loads((goldens / "methods" / "gift" / "align.json").read_text())
    for case in spec["cases"].values():
        params = case["params"]
        tagged = [Word(*word) for word in params["words"]]
        chosen = content_words(
            params["sentence"], lambda _, tagged=tagged: tagged, last_only=case["kind"] != "paper"
        )
        offsets = [tuple(pair) for pair in params["offsets"]]
        assert tokens_of(chosen, offsets) == case["expected_token_indices"]
    assert len(spec["cases"]) >= 2


def test_a_token_of_two_words_counts_once():
    assert tokens_of([Word("ab", 0, "X"), Word("cd", 2, "X")], [(0, 1), (1, 3), (3, 4)]) == [0, 1, 2]


@pytest.mark.parametrize("text", ["Is there a red dog in the image?", "What seventeen umbrellas?", "Is it?"])
def test_tokens_are_read_back_with_their_characters(text):
    tokenizer = llava_processor().tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    read, offsets = read_tokens(tokenizer, ids)
    assert read == text
    assert offsets[0][0] == 0
    assert offsets[-1][1] == len(text)
    assert all(a[1] == b[0] for a, b in pairwise(offsets))
    pieces = tokenizer.convert_ids_to_tokens(ids)
    for piece, (start, end) in zip(pieces, offsets, strict=True):
        assert piece.replace("▁", " ").strip() == text[start:end].strip()


def test_a_character_of_several_tokens_is_read_back():
    class Bytes:
        """Tokens are bytes; an unfinished character decodes to the replacement character."""

        def decode(self, ids, **options):
            return bytes(ids).decode(errors="replace")

    text, offsets = read_tokens(Bytes(), list("añb".encode()))
    assert text == "añb"
    assert offsets == [(0, 1), (1, 2), (2, 2), (2, 3)]
    assert tokens_of([Word("añb", 0, "NOUN")], offsets) == [0, 1, 2, 3]


def test_names_of_taggers(monkeypatch):
    assert find_tagger("function-words") is function_words
    with pytest.raises(BadParameterError, match="unknown tagger 'nltk'"):
        find_tagger("nltk")
    monkeypatch.setattr(module, "_spacy", lambda: None)
    assert find_tagger("auto") is function_words
    with pytest.raises(BadParameterError, match="needs spaCy and its model"):
        find_tagger("spacy")


def test_the_spacy_tagger_takes_over_words_places_and_parts_of_speech(monkeypatch):
    """With a pipeline that stands in for spaCy's."""
    tokens = [("Dogs", 0, "NOUN"), ("do", 5, "AUX"), ("bark", 8, "VERB")]
    pipeline = [SimpleNamespace(text=text, idx=start, pos_=tag) for text, start, tag in tokens]
    monkeypatch.setattr(module, "_spacy", lambda: lambda text: pipeline)
    for name in ("spacy", "auto"):
        found = content_words("Dogs do bark", find_tagger(name))
        assert found == [Word("Dogs", 0, "NOUN"), Word("bark", 8, "VERB")]


def test_spacy_tags():
    pytest.importorskip("spacy")
    if module._spacy() is None:
        pytest.skip("spaCy's en_core_web_sm is not installed")
    found = content_words("Is there a red dog on the sofa?", find_tagger("spacy"))
    assert [word.text for word in found] == ["red", "dog", "sofa"]
