"""CHAIR: the three scorers in circulation against the goldens, ground truth from COCO's files, the demo."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from collections import defaultdict

import pytest
from typer.testing import CliRunner

from regaze.cli import app
from regaze.errors import InputError
from regaze.eval import catalogue
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.benchmarks.chair.ground_truth import GroundTruth, read_ground_truth
from regaze.eval.benchmarks.chair.scorers import ChairScorer, official_scorers
from regaze.eval.benchmarks.chair.words import (
    DOUBLE_WORDS,
    SynonymReader,
    join_double_words,
    pattern_forms,
    read_synonyms,
    wordnet_forms,
)
from regaze.eval.benchmarks.common.language import singular
from regaze.eval.benchmarks.common.vocabulary import ClosedVocabulary

FORMS = {"pattern": pattern_forms, "wordnet": wordnet_forms}


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "goldens/benchmarks/chair"


@pytest.fixture(scope="module")
def synonyms(shared):
    return shared / "benchmarks/data/chair/synonyms.txt"


@pytest.fixture(scope="module")
def nltk_data():
    """Skips where NLTK or its data packages are not installed."""
    try:
        wordnet_forms("a word")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pattern():
    try:
        singular("words")
    except InputError as error:
        pytest.skip(str(error))


def unpack(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def test_tables_are_those_of_the_official_scorer(folder, synonyms):
    tables = json.loads((folder / "tables_as_parsed.json").read_text())
    # The stand-alone port's table also maps the empty string to itself, which no token is.
    assert {k: v for k, v in tables["synonym_to_node"].items() if k} == read_synonyms(synonyms)
    assert tables["double_words"] == DOUBLE_WORDS


def test_pattern_singulars(folder, pattern):
    expected = unpack(folder / "singularize.json.gz")
    assert len(expected) > 7000
    assert {word: singular(word) for word in expected} == expected


@pytest.mark.parametrize("variant", FORMS)
def test_objects_of_edge_case_captions(folder, synonyms, variant, nltk_data, pattern):
    words = SynonymReader(read_synonyms(synonyms), FORMS[variant])
    rows = json.loads((folder / "caption_to_words.json").read_text())["rows"]
    assert len(rows) == 60
    for row in rows:
        mentions, forms = words.read(row["caption"])
        found = {
            "words": [mention.word for mention in mentions],
            "node_words": [mention.category for mention in mentions],
            "idxs": [mention.token for mention in mentions],
            "raw_words": forms,
        }
        assert found == row[variant], row["caption"]


@pytest.mark.parametrize("variant", FORMS)
def test_objects_follow_from_given_base_forms(folder, synonyms, variant):
    """As above without NLTK's data: joining, dropping and looking up start from the golden base forms."""
    rows = json.loads((folder / "caption_to_words.json").read_text())["rows"]
    for row in rows:
        expected = row[variant]
        words = SynonymReader(read_synonyms(synonyms), lambda caption, forms=expected["raw_words"]: forms)
        assert [mention.word for mention in words.read("")[0]] == expected["words"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["greedy", "ours"])
def test_released_captions_have_the_golden_figures(folder, synonyms, run, nltk_data, pattern):
    captions = unpack(folder / f"llava-1.5_{run}.captions.json.gz")
    objects = unpack(folder / "opera_images_gt_objects.json.gz")
    truths = [GroundTruth(frozenset(objects[str(entry["image_id"])])) for entry in captions]
    texts = [entry["caption"] for entry in captions]
    expected = json.loads((folder / "real_captions.expected.json").read_text())[f"llava-1.5_{run}.jsonl"]
    each = unpack(folder / f"llava-1.5_{run}.per_caption.json.gz")
    opera, original, standalone = official_scorers(synonyms)
    for scorer, name in ((opera, "wordnet"), (standalone, "pattern"), (original, "pattern")):
        scores, target = scorer.score(truths, texts), expected[name]
        assert (scores["chair_s"], scores["chair_i"]) == (target["CHAIRs"], target["CHAIRi"])
        if "recall" in scores:
            assert scores["recall"] == target["Recall"]
        if "Len" in target:
            assert scores["length"] / 100 == pytest.approx(target["Len"], rel=1e-12)
        for (number, nodes, wrong, places, *_), entry, truth in zip(
            each[name], captions, truths, strict=True
        ):
            named, bad, _, _ = scorer.caption_objects(truth, entry["caption"])
            assert number == entry["image_id"]
            assert [mention.category for mention in named] == nodes
            assert [[mention.word, mention.category] for mention in bad] == wrong
            assert [mention.token for mention in bad] == places


def test_ground_truth_and_figures_from_annotation_files(folder, synonyms, nltk_data, pattern):
    place = folder / "mini_coco"
    lines = (place / "generated.jsonl").read_text().splitlines()
    captions = {entry["image_id"]: entry["caption"] for entry in map(json.loads, lines)}
    truth = read_ground_truth(place, captions)
    truths, texts = [truth[number] for number in captions], list(captions.values())
    expected = json.loads((place / "expected.json").read_text())
    opera, original, standalone = official_scorers(synonyms)
    for scorer, name in ((original, "original_LisaAnne(2to3)"), (standalone, "maxlinn"), (opera, "opera")):
        target = expected[name]
        overall = target.get("overall", target)
        scores = scorer.score(truths, texts)
        assert (scores["chair_s"], scores["chair_i"]) == (overall["CHAIRs"], overall["CHAIRi"])
        if "Recall" in overall:
            assert scores["recall"] == overall["Recall"]
        for sentence in target["sentences"]:
            number = sentence["image_id"]
            named, bad, there, _ = scorer.caption_objects(truth[number], captions[number])
            assert sorted(there) == sentence["gt"]
            assert [mention.category for mention in named] == sentence["generated"]
            assert [[mention.word, mention.category] for mention in bad] == sentence["hallucinated"]


CLOSED = ChairScorer("closed", "", ClosedVocabulary(("dog", "hot dog", "cat", "bus")))


def test_figures_by_hand():
    truths = [GroundTruth(frozenset({"dog", "bus"})), GroundTruth(frozenset({"cat"}))]
    captions = [
        "A dog, a cat and a cat by the bus.",
        "A hot dog. A hot dog. A hot dog. A hot dog. No animals.",
    ]
    scores = CLOSED.score(truths, captions)
    assert scores["chair_s"] == 1.0
    assert scores["chair_i"] == pytest.approx((2 + 4) / (4 + 4))
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["chair_distinct"] == pytest.approx((1 + 1) / (3 + 1))
    assert scores["words"] == pytest.approx((10 + 14) / 2)
    # The second has eleven 4-grams: three that are new, six that repeat them, and the two that reach "No".
    assert scores["repeated_4grams"] == pytest.approx(6 / (7 + 11))


def test_joining_is_greedy_from_the_left():
    words = ["baby", "hot", "dog", "bow", "tie", "potted"]
    assert join_double_words(words) == (["baby", "hot dog", "tie", "potted"], [0, 1, 3, 5])


def test_no_object_named_leaves_chair_i_undefined():
    scores = CLOSED.score([GroundTruth(frozenset())], ["Nothing."])
    assert scores["chair_s"] == 0.0
    assert scores["chair_i"] != scores["chair_i"]


def write_coco(folder, ids=(9, 139)):
    (folder / "val2014").mkdir(exist_ok=True)
    for number in ids:
        (folder / "val2014" / f"COCO_val2014_{number:012d}.jpg").write_bytes(b"")
    objects = {"names": ["cat", "dog"], "images": {"9": [0], "139": [0, 1]}}
    (folder / "coco2014_trainval_objects.json").write_text(json.dumps(objects))
    (folder / "synonyms.txt").write_text("cat, kitten\ndog, puppy\n")


def test_images_are_drawn_or_given_and_the_setting_is_told(tmp_path):
    write_coco(tmp_path)
    drawn = Chair.load(tmp_path, max_new_tokens=64)
    assert {item.key for item in drawn.items} == {"9", "139"}
    assert {item.max_new_tokens for item in drawn.items} == {64}
    described = drawn.describe()
    assert (described["max_new_tokens"], described["drawn"]) == (64, "2 of 2 with seed 0")
    assert set(described["scorers"]) == {"original", "standalone", "opera"}
    (tmp_path / "ids.txt").write_text("139\n")
    given = Chair.load(tmp_path, ids=tmp_path / "ids.txt")
    assert [item.key for item in given.items] == ["139"]
    assert given.items[0].reference == GroundTruth(frozenset({"cat", "dog"}))
    assert given.items[0].image == tmp_path / "val2014/COCO_val2014_000000000139.jpg"


@pytest.mark.parametrize(
    "text",
    [
        "139\n9",
        "139, 9",
        "COCO_val2014_000000000139.jpg\nval2014/COCO_val2014_000000000009.jpg\n",
        "[139, 9]",
        '{"image_id": 139, "caption": "A dog."}\n{"image_id": "000000000009", "caption": "A cat."}',
    ],
)
def test_ids_stand_in_a_file_however_they_are_spelt(tmp_path, text):
    write_coco(tmp_path)
    (tmp_path / "ids.txt").write_text(text)
    benchmark = catalogue.make_benchmark("chair", data=tmp_path, settings={"ids": str(tmp_path / "ids.txt")})
    assert [item.key for item in benchmark.items] == ["139", "9"]
    assert benchmark.describe()["drawn"] == "ids of ids.txt"


@pytest.mark.parametrize(("text", "keys"), [("139,9", ["139", "9"]), ("[9]", ["9"]), ("9", ["9"])])
def test_ids_stand_in_the_option(tmp_path, text, keys):
    write_coco(tmp_path)
    benchmark = catalogue.make_benchmark("chair", data=tmp_path, settings={"ids": text})
    assert [item.key for item in benchmark.items] == keys
    assert benchmark.describe()["drawn"] == "given ids"


def write_own_set(folder):
    """Three images that are not COCO's: a dog, a cat that only the caption names, and nothing."""
    data = {
        "images": [{"id": n, "file_name": f"holiday {n}.png"} for n in (1, 2, 3)],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1}],
    }
    (folder / "instances_holidays.json").write_text(json.dumps(data))
    (folder / "synonyms.txt").write_text("cat, kitten\ndog, puppy\n")


def test_a_set_of_ones_own_names_its_images(tmp_path):
    write_own_set(tmp_path)
    own = Chair.load(tmp_path, tmp_path / "photos", ids="1,3")
    assert [item.image for item in own.items] == [tmp_path / f"photos/holiday {n}.png" for n in (1, 3)]
    assert [item.reference.objects for item in own.items] == [{"dog"}, set()]
    captions = {"annotations": [{"image_id": 2, "caption": "My kitten."}]}
    (tmp_path / "captions_holidays.json").write_text(json.dumps(captions))
    assert Chair.load(tmp_path, ids=[2]).items[0].reference.captions == ("My kitten.",)
    with pytest.raises(InputError, match=r"1 images have no ground truth in .*, the first is 4"):
        Chair.load(tmp_path, ids="1,4")
    with pytest.raises(InputError, match=r"val2014 does not exist .*; without one, say by ids which images"):
        Chair.load(tmp_path)
    (tmp_path / "val2014").mkdir()
    with pytest.raises(InputError, match="of a set of your own say which by ids"):
        Chair.load(tmp_path)


def test_captions_of_a_set_of_ones_own_are_scored(tmp_path, nltk_data, pattern):
    write_own_set(tmp_path)
    rows = [{"image_id": 3, "caption": "A puppy."}, {"image_id": 1, "caption": "A dog and a cat."}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--data", str(tmp_path), "--bench", f"ids={tmp_path / 'captions.jsonl'}", "--json"]
    result = CliRunner().invoke(app, ["score", "chair", str(tmp_path / "captions.jsonl"), *options])
    assert result.exit_code == 0, result.output
    scored = json.loads(result.stdout)
    assert scored["joined_by"] == {"plain": "image_id"}
    figures = scored["plain"]["figures"]["captions"]["opera"]["plain"]
    assert figures["chair_i"]["value"] == pytest.approx(2 / 3)


class CHAIR:
    """Stands in for the class that stand-alone ports pickle."""


def test_the_pickled_evaluator_is_read_and_nothing_else_is(tmp_path, monkeypatch):
    write_coco(tmp_path)
    (tmp_path / "coco2014_trainval_objects.json").unlink()
    monkeypatch.setattr(sys.modules["__main__"], "CHAIR", CHAIR, raising=False)
    monkeypatch.setattr(CHAIR, "__module__", "__main__")
    evaluator = CHAIR()
    evaluator.imid_to_objects = defaultdict(list, {9: {"cat"}, 139: {"dog"}})
    (tmp_path / "chair.pkl").write_bytes(pickle.dumps(evaluator))
    assert read_ground_truth(tmp_path, [139]) == {139: GroundTruth(frozenset({"dog"}))}
    (tmp_path / "chair.pkl").write_bytes(pickle.dumps(print))
    with pytest.raises(
        InputError, match=r"chair\.pkl is no pickle of plain data: it asks for builtins.print"
    ):
        read_ground_truth(tmp_path)


def damage(folder, what):
    if what == "truth":
        (folder / "coco2014_trainval_objects.json").unlink()
    elif what == "index":
        (folder / "coco2014_trainval_objects.json").write_text('{"names": ["cat"], "images": {"9": [3]}}')
    elif what == "synonyms":
        (folder / "synonyms.txt").write_text("cat\n\ndog\n")
    elif what == "annotations":
        (folder / "instances_val2014.json").write_text('{"categories": [], "annotations": [{"image_id": 9}]}')
    elif what == "images":
        for path in (folder / "val2014").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([9, 139, 9], r"ids, number 3: image 9 a second time, after ids, number 1"),
        ("9,9", r"ids: image 9 a second time"),
        ([], r"expected at least one id of an image"),
        ([True], r"ids, number 1: expected the id of an image, got True"),
        ("nowhere.txt", r"nowhere\.txt cannot be read"),
    ],
)
def test_bad_ids_are_refused(tmp_path, ids, message):
    write_coco(tmp_path)
    with pytest.raises(InputError, match=message):
        Chair.load(tmp_path, ids=ids)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truth", r"has no ground truth: expected instances_val2014\.json"),
        ("index", r"objects\.json: 'images' must map ids to indices"),
        ("synonyms", r"synonyms\.txt:2: expected a category"),
        (
            "annotations",
            r"instances_val2014\.json: annotations\[0\] must have image_id .int. and",
        ),
        ("images", r"val2014 has no photographs named COCO_val2014_000000000000\.jpg"),
    ],
)
def test_malformed_folders_are_named(tmp_path, what, message):
    write_coco(tmp_path)
    damage(tmp_path, what)
    with pytest.raises(InputError, match=message):
        Chair.load(tmp_path)


def test_images_without_ground_truth_and_bad_ids(tmp_path):
    write_coco(tmp_path)
    with pytest.raises(InputError, match=r"1 images have no ground truth in .*, the first is 7"):
        Chair.load(tmp_path, ids=[9, 7])
    (tmp_path / "ids.txt").write_text("139\nx9\n")
    with pytest.raises(InputError, match=r"ids\.txt:2: expected the id of an image, got 'x9'"):
        Chair.load(tmp_path, ids=tmp_path / "ids.txt")


def test_demo_scenes_are_captioned_and_compared():
    chair = Chair.of_demo(4)
    truthful = ["There is " + " and ".join(sorted(item.reference.objects)) + "." for item in chair.items]
    ghost = [text + " There is also a surfboard and a toaster and a giraffe." for text in truthful]
    scores = chair.score({"plain": ghost, "edited": truthful}, seed=0)["captions"]["chair"]
    assert scores["edited"]["chair_i"]["value"] == 0.0
    assert scores["plain"]["chair_s"]["value"] == 1.0
    assert scores["difference"]["recall"]["value"] == 0.0
    assert scores["difference"]["only_edited_correct"] == 4
    assert scores["difference"]["mcnemar_p"] == pytest.approx(0.125)
    assert chair.prompt(chair.items[0]) == "Please describe this image in detail."
