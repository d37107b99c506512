"""Needle in a haystack: where the needle goes, the grid, the scores with and without a judge."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re

import pytest

from regaze.errors import InputError
from regaze.eval import catalogue
from regaze.eval.benchmarks.niah import (
    JudgedNiah,
    Niah,
    RatingScorer,
    insert_needles,
    needle_depths,
    read_rating,
)
from regaze.interventions.retrieval_heads.needles import NEEDLES


class Toy:
    """The golden's tokenizer: runs of white space, words, single marks."""

    def encode(self, text, *, add_special_tokens):
        return re.findall(r"\s+|\w+|[^\w\s]", text)

    def decode(self, tokens):
        return "".join(tokens)


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "goldens/benchmarks/niah/insert.json").read_text())


def test_needles_are_where_the_official_tester_puts_them(shared, golden):
    packed = shared / "benchmarks/data/haystack/us_inaugural_addresses.txt.gz"
    text = gzip.decompress(packed.read_bytes()).decode()[:30000]
    assert len(golden["rows"]) > 40
    for row in golden["rows"]:
        context = insert_needles(
            text, [golden["needle"]], row["context_length"], row["depth_percent"], Toy(), 50
        )
        assert len(context) == row["chars"]
        assert context.index(golden["needle"]) == row["needle_at_char"]
        assert hashlib.sha256(context.encode()).hexdigest() == row["sha256"]


def test_several_needles_start_at_the_depth_and_go_on_evenly():
    assert needle_depths(40, 3) == [40, 60, 80]
    text = "one two. " * 100
    context = insert_needles(text, ["<A>", "<B>"], 200, 50, Toy(), buffer=0)
    assert len(Toy().encode(context, add_special_tokens=False)) == 200
    assert context.index("<A>") == pytest.approx(len(context) * 0.5, abs=20)
    assert context.index("<B>") == pytest.approx(len(context) * 0.75, abs=20)
    assert context[context.index("<A>") - 1] == "."


@pytest.mark.parametrize(
    ("length", "depth", "message"), [(60, 101, "0..100, got 101"), (12, 50, "length 12 is too")]
)
def test_what_cannot_be_placed_is_refused(length, depth, message):
    with pytest.raises(InputError, match=re.escape(message)):
        insert_needles("one two. " * 20, ["a needle here"], length, depth, Toy(), buffer=10)


def test_a_grid_of_prompts_and_its_scores():
    niah = Niah.build("Some text. " * 50, Toy(), lengths=[300, 600], depths=[0, 100], needles=NEEDLES[:1])
    assert [item.key for item in niah.items] == ["300/0/0", "300/100/0", "600/0/0", "600/100/0"]
    prompt = niah.prompt(niah.items[0])
    assert NEEDLES[0].text in prompt
    assert prompt.count(NEEDLES[0].question) == 2
    assert all(item.images == () for item in niah.items)
    right, half = NEEDLES[0].answer.upper(), "flour, I think"
    scores = niah.score({"plain": [half] * 4, "edited": [right, half, right, right]}, seed=0)
    assert list(scores) == ["300", "600", "all"]
    assert scores["600"]["words"]["edited"]["found"]["value"] == 1.0
    assert scores["all"]["words"]["plain"]["recall"]["value"] == pytest.approx(1 / 6)
    assert scores["all"]["images"] == 0


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Fine. Rating: [[7]]", 7.0),
        ("[[3]] or rather [[10]]", 10.0),
        ("7", None),
        ("[[11]]", None),
        ("", None),
    ],
)
def test_ratings_are_read_from_double_brackets(text, rating):
    value = read_rating(text)
    assert math.isnan(value) if rating is None else value == rating


class Judge:
    name = "strict"

    def judge(self, prompts):
        return [
            "Rating: [[10]]" if "chestnut" in prompt.split("Answer:")[1] else "no idea" for prompt in prompts
        ]


def test_a_judge_rates_and_what_it_does_not_rate_is_counted():
    grid = {"lengths": [300], "depths": [0, 100]}
    niah = JudgedNiah.build("Some text. " * 50, Toy(), **grid, judge=Judge())
    scores = niah.score({"plain": ["chestnut flour", "what?"]}, seed=0)["300"]["judge"]["plain"]
    assert scores["rating"]["value"] == 10.0
    assert scores["unreadable"]["value"] == 0.5
    with pytest.raises(InputError, match="none is configured"):
        JudgedNiah.build("Some text. " * 50, Toy(), **grid)
    assert RatingScorer().score([None] * 3, [1.0, 10.0, float("nan")]) == pytest.approx(
        {"rating": 5.5, "unreadable": 1 / 3}
    )


def test_both_are_made_by_name(tmp_path):
    (tmp_path / "text.txt").write_text("Some text. " * 50)
    grid = {"lengths": "[300]", "depths": "[0, 100]"}
    options = {"data": str(tmp_path), "settings": grid, "load_tokenizer": Toy}
    plain = catalogue.make_benchmark("niah", **options)
    judged = catalogue.make_benchmark("niah-judged", **options, judge=Judge())
    assert judged.items == plain.items
    assert judged.describe()["judge"] == "strict"
    with pytest.raises(InputError, match="none is configured"):
        catalogue.make_benchmark("niah-judged", **options)
    (tmp_path / "prompt").write_text("{question} {reference} {answer}: [[1]] to [[10]]?")
    own = catalogue.make_benchmark(
        "niah-judged", **{**options, "settings": {**grid, "prompt": str(tmp_path / "prompt")}}, judge=Judge()
    )
    assert own.scorers()[0].version != judged.scorers()[0].version
