"""RULER's needle tasks: string match against the golden, what is hidden, how long prompts get, and files."""

from __future__ import annotations

import json
import random
import re

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.common import language
from regaze.eval.benchmarks.ruler import (
    ANSWER_TOKENS,
    TASKS,
    PromptBuilder,
    Ruler,
    StringMatchScorer,
)

ESSAY = "It was a long day. Nobody came, and nothing happened. Then it rained. " * 200


class Words:
    """Every word and every mark is a token."""

    def encode(self, text, *, add_special_tokens):
        return re.findall(r"\w+|[^\w\s]", text)


@pytest.fixture(autouse=True)
def sentences_without_nltk(monkeypatch):
    """Where NLTK's data is absent, sentences end at ". ": of the essay above NLTK finds the same."""
    try:
        assert language.sentences("One. Two.") == ["One.", "Two."]
    except InputError:
        monkeypatch.setattr(language, "sentences", lambda text: re.split(r"(?<=\.) ", text))


def test_string_match_is_the_golden_one(goldens):
    scorer = StringMatchScorer()
    golden = json.loads((goldens / "benchmarks/ruler/expected.json").read_text())
    assert round(scorer.score(golden["refs"], golden["preds"])["score"], 2) == golden[scorer.name]
    for references, answer, target in zip(golden["refs"], golden["preds"], golden["each_all"], strict=True):
        assert round(scorer.score([references], [answer])["score"], 2) == target


@pytest.mark.parametrize("name", TASKS)
def test_what_is_asked_for_is_hidden_once(name):
    task = TASKS[name]
    sample = PromptBuilder(task, tuple(ESSAY.split())).draw(400, random.Random(3))
    assert len(sample.values) == task.values * task.queries
    for value in sample.values:
        assert sample.prompt.count(f"is: {value}.") == 1
    hidden = sample.prompt.count("One of the special magic")
    assert hidden == task.keys * task.values + (400 if task.haystack == "needle" else 0)
    question = sample.prompt.rsplit("\n", 1)[1]
    assert question.startswith("What is the" if task.form == "one" else "What are all the")
    assert sample.prefix.endswith("is" if task.form == "one" else "are")
    assert "{" not in sample.prompt + sample.prefix


def test_needles_are_spread_over_the_text():
    builder = PromptBuilder(TASKS["niah_multivalue"], tuple(ESSAY.split()))
    places = [
        sample.prompt.index(value) / len(sample.prompt)
        for sample in (builder.draw(500, random.Random(seed)) for seed in range(30))
        for value in sample.values
    ]
    assert min(places) < 0.2
    assert max(places) > 0.8


@pytest.mark.parametrize("length", [600, 1000])
def test_prompts_are_as_long_as_the_length_allows_and_no_longer(length):
    tokens = Words()
    ruler = Ruler.build(tokens, lengths=[length], essay=ESSAY, samples=3)
    assert len(ruler.items) == 3 * len(TASKS)
    for item in ruler.items:
        used = (
            len(tokens.encode(item.question + item.reference.prefix, add_special_tokens=False))
            + ANSWER_TOKENS
        )
        assert used <= length
        assert used > length - 120, item.key
        assert item.max_new_tokens == ANSWER_TOKENS


def test_the_same_seed_draws_the_same_and_another_others():
    def questions(seed):
        built = Ruler.build(Words(), lengths=[600], tasks=["niah_single_1"], samples=2, seed=seed)
        return [item.question for item in built.items]

    assert questions(1) == questions(1)
    assert questions(1) != questions(2)


def test_scores_and_prefixes():
    ruler = Ruler.build(Words(), lengths=[600], tasks=["niah_single_1"], samples=2, prefixed=True)
    assert ruler.prompt(ruler.items[0]).endswith(" mentioned in the provided text is")
    answers = [f"It is {ruler.items[0].label}.", "I forgot."]
    scores = ruler.score({"plain": answers}, seed=0)["niah_single_1/600"]
    assert scores["string_match_all"]["plain"]["score"]["value"] == 50.0


def test_what_cannot_be_built_is_refused():
    with pytest.raises(InputError, match=r"expected samples of niah_single_1.*; got 20 of vt"):
        Ruler.build(Words(), tasks=["vt"])
    with pytest.raises(InputError, match="hides needles in prose: give a text as `essay`"):
        Ruler.build(Words(), tasks=["niah_single_2"])
    with pytest.raises(InputError, match="length 150 is too short"):
        Ruler.build(Words(), tasks=["niah_single_1"], lengths=[150])


def test_prepared_files_are_read(tmp_path):
    folder = tmp_path / "niah_multivalue"
    folder.mkdir()
    rows = [{"index": 0, "input": "Find it.", "outputs": ["1", "2"], "answer_prefix": " They are"}]
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ruler = Ruler.load(tmp_path, prefixed=True)
    assert ruler.prompt(ruler.items[0]) == "Find it. They are"
    assert ruler.score({"plain": ["2 and 3"]}, seed=0)["niah_multivalue"]["string_match_all"]["plain"][
        "score"
    ]["value"] == pytest.approx(50.0)
    (folder / "validation.jsonl").write_text('{"input": "Find it.", "outputs": []}')
    with pytest.raises(InputError, match=r"validation\.jsonl:1: 'outputs' must be a list of texts"):
        Ruler.load(tmp_path)
    with pytest.raises(InputError, match=r"has no <task>/validation\.jsonl"):
        Ruler.load(tmp_path / "niah_multivalue")
