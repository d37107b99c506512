"""Haystacks, needles and prompts of an exact length."""

from __future__ import annotations

import re

import numpy as np
import pytest
from copying_model import (
    HAYSTACK,
    NEEDLE,
    OPTIONS,
)
from needle_tokenizers import BOOK, trained_tokenizer
from transformers import LlamaConfig

from regaze.errors import BadParameterError, InputError, RegazeError
from regaze.interventions.retrieval_heads import (
    NEEDLES,
    Needle,
    find_retrieval_heads,
    read_haystack,
)
from regaze.interventions.retrieval_heads.haystack import Haystack, sentence_ends
from regaze.interventions.retrieval_heads.prompt_builder import PromptBuilder
from regaze.toolkit.prompts.families import family_of
from regaze.toolkit.prompts.prompt_reader import PromptReader


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("chat", [False, True])
def test_prompts_are_exact(kind, chat):
    tokenizer = trained_tokenizer(kind)
    if chat:
        tokenizer.chat_template = "<s>{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    reader = PromptReader(tokenizer, family_of(LlamaConfig()))
    builder = PromptBuilder(
        reader, [BOOK, BOOK[300:]], NEEDLES, "About: {question}\n\n{context}\n\nSay: {question}"
    )
    plain = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" " + BOOK, " " + BOOK[300:])
    ]
    for number, needle in enumerate(NEEDLES):
        for length in (301, 1500):  # more than the text has: it is repeated
            for depth in (0, 12.5, 50, 100):
                prompt = builder.build(number, length, depth)
                assert len(prompt.ids) == length
                assert (prompt.number, prompt.depth) == (number, depth)
                text = tokenizer.decode(prompt.ids[slice(*prompt.span)])
                assert text.strip().rstrip(".") == needle.answer  # "flour." may be one token
                assert list(prompt.ids).count(tokenizer.bos_token_id) == 1
                assert prompt.ids[0] == tokenizer.bos_token_id
                whole = tokenizer.decode(prompt.ids, skip_special_tokens=True)
                ending = "]" if chat else "\nAnswer:"
                assert whole.endswith(f"Say: {needle.question}{ending} {needle.cue}")
                assert whole.count(needle.text) == 1
                before, _ = whole.split(needle.text)
                if 0 < depth < 100:
                    assert re.search(r"[.!?]”?\s*$", before)
                    assert not re.search(r"\b(Mr|Dr|St|J|a\.m)\.\s*$", before)
                # Apart from the needle, the context is the text's own tokens.
                (head, tail), (hidden, (start, _)) = builder._frames[number], builder._hidden[number]
                place, count = prompt.span[0] - start, length - len(head) - len(tail) - len(hidden)
                rest = list(prompt.ids[:place] + prompt.ids[place + len(hidden) :])
                assert rest == head + (plain[number % 2] * 30)[:count] + tail


def test_the_needle_is_as_in_running_text():
    for kind in ("bytes", "metaspace"):
        tokenizer = trained_tokenizer(kind)
        reader = PromptReader(tokenizer, family_of(LlamaConfig()))
        builder = PromptBuilder(reader, [BOOK], NEEDLES, "{question} {context}")
        running = tokenizer("word " + NEEDLES[1].text, add_special_tokens=False)["input_ids"]
        ids, _ = builder._hidden[1]
        assert running[-len(ids) :] == ids


def test_sentence_ends_in_characters_and_tokens():
    text = "Mr. Fox ran. He (the fox!) fell.\n\nThen what?” Nobody, e.g. the cat, knew… he said. 終わり。次"
    ends = [match + 1 for match in range(len(text))]  # a token per character
    where = [text[: int(end)][-6:] for end in sentence_ends(text, np.asarray(ends))]
    assert where == ["x ran.", " fell.", "what?”", " said.", ". 終わり。"]
    # A token that reaches over the white space behind the stop is split off after it, others never.
    assert sentence_ends("It is. So", np.asarray([2, 7, 9])).tolist() == [2]
    assert sentence_ends("It is. So", np.asarray([2, 8, 9])).tolist() == []
    assert sentence_ends("It is. So", np.asarray([2, 6, 9])).tolist() == [2]


def test_depths_find_the_nearest_sentence_end(tokenizer):
    hay = Haystack("One two three . " * 10, tokenizer)
    assert len(hay.ids) == 40
    assert [hay.place(100, depth) for depth in (0, 1, 5, 50, 57, 100)] == [0, 4, 4, 48, 56, 100]
    with pytest.raises(InputError, match="no sentence of the haystack ends within its first 3 tokens"):
        hay.place(3, 50)


def test_reading_haystacks(tmp_path):
    import gzip

    book = "First line\r\nsecond line.\r\n\r\nNew paragraph\r\n  goes on.\r\n"
    (tmp_path / "a.txt").write_bytes(book.encode("utf-8-sig"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(book.encode()))
    for name in ("a.txt", "b.txt.gz"):
        assert read_haystack(tmp_path / name) == "First line second line.\n\nNew paragraph goes on."
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("empty", "is empty"),
        ("binary", "1: not UTF-8 text"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            read_haystack(tmp_path / name)


def test_prompts_that_cannot_be(copier, tokenizer):
    def refused(message, lengths=(60,), depths=(50,), needles=(NEEDLE,), haystack=HAYSTACK, **options):
        with pytest.raises(RegazeError, match=message):
            find_retrieval_heads(
                copier, tokenizer, haystack, needles, lengths, depths, **{**OPTIONS, **options}
            )

    refused("length 20 is too short: needle and question alone take", lengths=(20,))
    refused(r"percentage in 0\.\.100, got 101", depths=(101,))
    refused("needle and one haystack", needles=())
    refused("needle and one haystack", haystack=[])
    refused("at least one length", lengths=())
    refused(r"\{context\} exactly once", template="{question}")
    refused("do not fit into the model's context of 512", lengths=(510,))
    refused("the haystack is empty", haystack="  ")
    with pytest.raises(BadParameterError, match="must occur exactly once in the needle"):
        Needle("a b", "what?", "c")
    with pytest.raises(BadParameterError, match="has no question"):
        Needle("a b", " ", "a")
