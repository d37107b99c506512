"""AMBER: descriptions and answers against the official script's output, word similarities, the demo."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.amber.benchmark import Amber
from regaze.eval.benchmarks.amber.scorers import AmberScorer, YesNoReference
from regaze.eval.benchmarks.amber.similarity import (
    EXACT,
    Similarity,
    read_similarity,
    spacy_similarity,
)
from regaze.eval.benchmarks.amber.words import AnnotatedObjects, NounMatcher, caption_nouns

SECTIONS = {
    "Descriminative Task": "",
    "Exsitence": "existence_",
    "Attribute": "attribute_",
    "State": "state_",
    "Number": "number_",
    "Action": "action_",
    "Relation": "relation_",
    "Generative Task": "",
}


@pytest.fixture(scope="module")
def data(shared):
    return shared / "benchmarks/data/amber"


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "goldens/benchmarks/amber"


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


@pytest.fixture(scope="module")
def nltk_data():
    try:
        caption_nouns("a word")
    except InputError as error:
        pytest.skip(str(error))


def read_responses(path):
    return {record["id"]: record["response"] for _, record in files.read_records(path)}


@dataclass(frozen=True)
class Golden:
    """Files of AMBER, answers to them, and what its script prints of those."""

    data: Path
    folder: Path

    def read(self, name):
        return json.loads((self.folder / name).read_text())

    def answers(self):
        (path,) = self.folder.glob("discriminative.responses.json*")
        return read_responses(path)


@pytest.fixture(scope="session")
def each(goldens):
    """The official files and output, where they are at hand, and those of our own."""
    folder = goldens / "benchmarks/amber"
    own = folder / "data"
    return Golden(own if own.is_dir() else goldens.parent / "benchmarks/data/amber", folder)


def flat(printed):
    """What the official script prints, under our figures' names."""
    figures = {
        SECTIONS[section] + name.lower(): value
        for section, values in printed.items()
        if section in SECTIONS
        for name, value in values.items()
    }
    if "AMBER_score_by_paper_formula" in printed:
        figures["amber_score"] = printed["AMBER_score_by_paper_formula"]
    return figures


def official(amber, responses):
    answers = [responses[int(item.key)] for item in amber.items]
    return amber.scorers()[0].score([item.reference for item in amber.items], answers)


@pytest.mark.parametrize("table", ["exact", "glove50"])
def test_descriptions_have_the_golden_figures(data, golden, expected, table, nltk_data):
    similarity = EXACT if table == "exact" else golden / f"similarity_pairs_{table}.json"
    responses = read_responses(golden / "generative.responses.json")
    amber = Amber.load(data, task="g", similarity=similarity, ids=responses)
    assert len(amber.items) == len(responses) == 150
    assert official(amber, responses) == flat(expected[f"g_{table}"])
    references = {int(item.key): item.reference for item in amber.items}
    for target in json.loads((golden / "generative.per_answer.json").read_text()):
        scores = amber.scorers()[0].score([references[target["id"]]], [responses[target["id"]]])
        assert scores == {name.lower(): value for name, value in target[table].items()}, target["id"]


def test_nouns_are_the_golden_ones(data, golden, nltk_data):
    responses = read_responses(golden / "generative.responses.json")
    amber = Amber.load(data, task="g", similarity=EXACT, ids=responses)
    for target in json.loads((golden / "generative.nouns.json").read_text()):
        caption = responses[target["id"]]
        assert list(caption_nouns(caption)) == target["nouns"]
        scene = amber.items[target["id"] - 1].reference
        assert list(amber.matcher.match(scene, caption).nouns) == target["kept"]


def test_figures_follow_from_given_nouns(each):
    """As above without NLTK's data."""
    nouns = {row["id"]: row["nouns"] for row in each.read("generative.nouns.json")}
    amber = Amber.load(each.data, task="g", similarity=EXACT, ids=nouns)
    words = NounMatcher(amber.matcher.associations, amber.matcher.safe, EXACT, str.split)
    answers = [" ".join(nouns[int(item.key)]) for item in amber.items]
    scores = AmberScorer("official", "", words, "g").score([item.reference for item in amber.items], answers)
    assert scores == flat(each.read("expected.json")["g_exact"])


def test_the_vocabulary_is_the_golden_one(each):
    amber = Amber.load(each.data, task="g", similarity=EXACT, limit=1)
    assert sorted(amber.matcher.vocabulary()) == each.read("object_vocabulary.json")


@pytest.mark.parametrize("task", ["d", "de", "da", "dr"])
def test_answers_have_the_golden_figures(each, task):
    responses = each.answers()
    amber = Amber.load(each.data, task=task, ids=responses)
    assert official(amber, responses) == flat(each.read("expected.json")[task])


@pytest.mark.parametrize("answer", ["Yes", "No"])
def test_constant_answers_have_the_golden_figures(each, answer):
    responses = each.answers()
    amber = Amber.load(each.data, task="d", ids=responses)
    expected = flat(each.read("expected.json")[f"all_{answer}_d"])
    assert official(amber, dict.fromkeys(responses, answer)) == expected


@pytest.mark.parametrize("table", ["exact", "glove50"])
def test_both_parts_and_the_amber_score(data, golden, expected, table, nltk_data):
    similarity = EXACT if table == "exact" else golden / f"similarity_pairs_{table}.json"
    responses = {
        **read_responses(golden / "generative.responses.json"),
        **read_responses(golden / "discriminative.responses.json.gz"),
    }
    amber = Amber.load(data, task="a", similarity=similarity, ids=responses)
    scores = official(amber, responses)
    target = flat(expected[f"a_{table}"])
    assert scores.pop("amber_score") == pytest.approx(target.pop("amber_score"), abs=1e-9)
    assert scores == target


def test_all_questions_are_loaded_and_only_yes_no_ones_get_the_suffix(data):
    amber = Amber.load(data, similarity=EXACT)
    assert len(amber.items) == 15220
    assert amber.prompt(amber.items[0]) == "Describe this image."
    assert amber.prompt(amber.items[-1]).endswith("wall?\nAnswer the question using a single word or phrase.")
    assert len(Amber.load(data, task="de").items) == 4924
    assert len(Amber.load(data, task="dr").items) == 975 + 689
    assert "equal words only" in amber.describe()["scorers"]["official"]


WORDS = NounMatcher(
    {"car": ("vehicle",), "truck": ("vehicle",), "dog": (), "line": (), "bus": ()},
    frozenset({"line"}),
    Similarity("by hand", frozenset({frozenset({"bus", "car"}), frozenset({"bus", "truck"})})),
    str.split,
)


@pytest.mark.parametrize(
    ("caption", "wrong", "covered", "claimed"),
    [
        ("car dog tree", ["dog"], [True, False], [True]),
        ("vehicle", [], [True, False], [False]),  # of two that it may mean, the first
        ("line", [], [False, False], [False]),
        ("bus", [], [True, False], [False]),  # similar to both: the first again
        ("Car CAR", [], [False, False], [False]),  # not lower-cased, so none of AMBER's words
    ],
)
def test_reading_by_hand(caption, wrong, covered, claimed):
    seen = WORDS.match(AnnotatedObjects(("car", "truck"), ("dog",)), caption)
    assert (list(seen.wrong), list(seen.covered), list(seen.claimed)) == (wrong, covered, claimed)


def test_a_noun_can_mark_two_hallucinations():
    """It marks one that it equals and one that comes before and that it is similar to."""
    words = NounMatcher(
        {"car": (), "bus": ()}, frozenset(), Similarity("", frozenset({frozenset({"bus", "car"})}))
    )
    words = NounMatcher(words.associations, words.safe, words.similar, str.split)
    assert words.match(AnnotatedObjects((), ("car", "bus")), "bus").claimed == (True, True)


def test_scorers_of_answers_differ_in_what_they_read():
    official, vlmevalkit, own = Amber((), "d").scorers()
    references = [YesNoReference("existence", True), YesNoReference("state", False)]
    answers = ["no.", "Yes, it is."]
    assert official.score(references, answers)["accuracy"] == 0.0
    assert vlmevalkit.score(references, answers)["mean_accuracy"] == 100.0
    assert own.score(references, ["no.", "perhaps"])["unreadable"] == 50.0


class FakeVectors:
    """A spaCy model whose words are similar when they share a first letter."""

    def __init__(self, n_keys):
        self.vocab = SimpleNamespace(vectors=SimpleNamespace(n_keys=n_keys))

    def __call__(self, text):
        other = SimpleNamespace(text=text)
        other.similarity = lambda doc: 0.9 if doc.text[0] == text[0] else 0.8
        return other


def test_spacy_table_and_its_file_agree(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: FakeVectors(9)))
    table = spacy_similarity(["cat", "cow", "dog"])
    assert (table("cat", "cow"), table("cow", "cat"), table("cat", "dog"), table("dog", "dog")) == (
        *(True, True, False, True),
    )
    pairs = [["cat", "cow", 0.9], ["cat", "dog", 0.8], ["cow", "dog", 0.8]]
    (tmp_path / "t.json").write_text(json.dumps({"model": "en_core_web_lg", "pairs": pairs}))
    assert read_similarity(tmp_path / "t.json") == table


def test_vectors_that_are_missing_are_refused(monkeypatch):
    def nothing(name):
        raise OSError(name)

    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match="give the table of similarities as a file"):
        spacy_similarity(["cat"])
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=nothing))
    with pytest.raises(InputError, match="spaCy has no model 'en_core_web_lg'"):
        spacy_similarity(["cat"])
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: FakeVectors(0)))
    with pytest.raises(InputError, match="has no word vectors"):
        spacy_similarity(["cat"], "en_core_web_sm")


def write(folder: Path, **changes) -> Path:
    content = {
        "relation.json": {"car": [], "dog": []},
        "query_all.json": [{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}],
        "annotations.json": [{"id": 1, "type": "generative", "truth": ["car"], "hallu": ["dog"]}],
        **changes,
    }
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "safe_words.txt").write_text("line")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation.json": {"car": 3}}, r"relation\.json: expected an object of words"),
        ({"query_all.json": [{"id": 2}]}, r"query_all\.json:1: id 2, but .* has 1 annotations"),
        ({"annotations.json": [{"id": 3, "type": "generative"}]}, r"annotations\.json:1: id 3 at place 1"),
        (
            {"annotations.json": [{"id": 1, "type": "generative", "truth": ["cat"], "hallu": []}]},
            r"annotations\.json:1: 'cat' is not in relation\.json",
        ),
        ({"annotations.json": [{"id": 1, "type": "relation"}]}, r"'truth' is not yes or no"),
    ],
)
def test_malformed_files_are_named_with_their_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        Amber.load(write(tmp_path, **changes), similarity=EXACT)


def test_malformed_tables_and_unknown_tasks(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('[["a", "b", 0.9], ["a", "b"]]')
    with pytest.raises(InputError, match=r"t\.json: entry 1 must be \[word, word, similarity\]"):
        read_similarity(path)
    with pytest.raises(InputError, match="AMBER has the tasks a, g, d, de, da, dr, not 'x'"):
        Amber.load(write(tmp_path), task="x")


def test_demo_scenes_are_described():
    amber = Amber.of_demo(3)
    truthful = ["A " + " and a ".join(item.reference.truth) + "." for item in amber.items]
    ghost = [
        f"{text} A {item.reference.hallucinations[0]}."
        for text, item in zip(truthful, amber.items, strict=True)
    ]
    scores = amber.score({"plain": ghost, "edited": truthful}, seed=0)["g"]["official"]
    assert scores["edited"]["cover"]["value"] == 100.0
    assert scores["plain"]["hal"]["value"] == 100.0
    assert scores["plain"]["cog"]["value"] == pytest.approx(100 / 3, abs=0.05)
    assert scores["difference"]["only_edited_correct"] == 3
