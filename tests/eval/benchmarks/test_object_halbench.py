"""Object HalBench: both ways of finding objects against the goldens, files, replies of judges."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math

import pytest
from paths import SHARED
from PIL import Image
from typer.testing import CliRunner

from regaze.cli import app
from regaze.errors import InputError
from regaze.eval.answer_files import read_answer_rows
from regaze.eval.answer_join import join_rows
from regaze.eval.benchmarks.chair.ground_truth import GroundTruth, read_ground_truth
from regaze.eval.benchmarks.chair.words import SynonymReader
from regaze.eval.benchmarks.object_halbench.benchmark import QUESTIONS, SYNONYMS, ObjectHalBench
from regaze.eval.benchmarks.object_halbench.objects import (
    UnreadableReplyError,
    listed_names,
    official_names,
    parse_reply,
    read_words,
)
from regaze.eval.benchmarks.object_halbench.scorers import Listed, OfficialScorer, RegazeScorer

GOLDENS = SHARED / "goldens/benchmarks/object_halbench"
EXPECTED = (
    json.loads((GOLDENS / "expected.json").read_text()) if (GOLDENS / "expected.json").is_file() else {}
)
CASES = sorted(set(EXPECTED) - {"judge_reply_parsing"})
#: The names of the official script -> ours.
FIGURES = {
    "CHAIRs": "chair_s",
    "CHAIRs_refine": "response_hall",
    "CHAIRi": "mention_hall",
    "obj_rec": "recall",
    "avg_word_len": "length",
}


@pytest.fixture(scope="module")
def words(shared):
    reader = read_words(shared / "benchmarks/data/object_halbench" / SYNONYMS)
    try:
        reader.read("a word")
    except InputError as error:
        pytest.skip(str(error))
    return reader


def unpack(name):
    return json.loads(gzip.decompress((GOLDENS / name).read_bytes()))


def answers_of(case):
    lines = gzip.decompress((GOLDENS / f"{case}.answers.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("way", ["without_judge", "with_objects_given"])
@pytest.mark.parametrize("case", CASES)
def test_figures_and_objects_are_those_of_the_official_script(shared, words, case, way):
    given = answers_of(case)
    truths = read_ground_truth(
        shared / "goldens/benchmarks/chair/mini_coco", {each["image_id"] for each in given}
    )
    references = [truths[each["image_id"]] for each in given]
    answers, listed = [each["text"] for each in given], ""
    if way == "with_objects_given":
        lists = unpack(f"{case}.objects.json.gz")
        answers, listed = (
            [Listed(*each) for each in zip(answers, map(json.dumps, lists), strict=True)],
            ".objects",
        )
    scorer = OfficialScorer("official", "", words, json.loads)
    counts = scorer.count(references, answers).sum(0)
    scores = {name: float(value) for name, value in scorer.compute(counts).items()}
    target = EXPECTED[case][f"official_RLHF-V_{way}"]
    if not isinstance(target, dict) or "CHAIRi" not in target:  # the script stopped
        assert all(map(math.isnan, scores.values()))
        return
    for name, own in FIGURES.items():
        assert scores[own] == pytest.approx(target[name], rel=1e-12), name
    assert scores["response_hall"] == pytest.approx(1 - target["correct_rate"], rel=1e-12)
    details = scorer.details(counts)
    assert details == {name: target[name] for name in details}
    each = unpack(f"{case}{listed}.per_answer.json.gz")
    for (number, named, wrong, places, _), record, truth, answer in zip(
        each, given, references, answers, strict=True
    ):
        found = scorer.answer_objects(truth, answer)
        assert number == record["image_id"]
        assert [[mention.word, mention.category] for mention in found.named] == named
        assert [mention.word for mention in found.hallucinated] == [word for word, _ in wrong]
        assert [mention.token for mention in found.hallucinated] == places


@pytest.mark.parametrize("number", range(len(EXPECTED.get("judge_reply_parsing", ()))))
def test_replies_are_parsed_as_the_official_script_parses_them(number):
    reply, expected = EXPECTED["judge_reply_parsing"][number]
    if expected == "ValueError":
        with pytest.raises(UnreadableReplyError):
            parse_reply(reply)
    else:
        assert parse_reply(reply) == expected


# Scores ----------------------------------------------------------------------------------------------------

TABLE = SynonymReader(
    {"dog": "dog", "puppy": "dog", "cat": "cat"}, lambda text: text.lower().strip(".").split()
)
TRUTH = GroundTruth(frozenset({"dog", "bus"}))


def of_names(reply):
    if reply == "?":
        raise UnreadableReplyError(reply)
    return reply.split()


OFFICIAL = OfficialScorer("official", "", TABLE, of_names)
REGAZE = RegazeScorer("regaze", "", TABLE, of_names, RegazeScorer.metrics)


def test_answers_that_name_nothing_leave_the_official_share():
    answers = ["A dog cat cat.", "Assistant: puppy dog.", "Nothing.", "Nothing."]
    official, own = OFFICIAL.score([TRUTH] * 4, answers), REGAZE.score([TRUTH] * 4, answers)
    assert official == {
        "response_hall": 1 / 2,
        "mention_hall": 2 / 5,
        "chair_s": 1 / 4,
        "recall": 2 / 8,
        "length": (4 + 2 + 1 + 1) / 4,
    }
    assert (own["response_hall"], own["mention_hall"], own["no_objects"]) == (1 / 4, 1 / 3, 1 / 2)


def test_without_any_object_the_official_script_stops():
    assert all(map(math.isnan, OFFICIAL.score([TRUTH], ["Nothing."]).values()))
    assert REGAZE.score([TRUTH], ["Nothing."])["no_objects"] == 1.0


def test_objects_that_a_judge_lists_count_once_and_bad_replies_are_counted():
    answers = [
        Listed("A dog and a cat.", "dog puppy dog cat"),
        Listed("Dogs.", None),
        Listed("A big cat.", "?"),
    ]
    own = REGAZE.score([TRUTH] * 3, answers)
    assert (own["response_hall"], own["mention_hall"]) == (1 / 2, 1 / 2)
    assert (own["no_objects"], own["unreadable"]) == (1 / 2, 1 / 3)
    assert all(map(math.isnan, OFFICIAL.score([TRUTH] * 3, answers).values()))
    official = OFFICIAL.score([TRUTH] * 2, answers[:2])
    assert (official["response_hall"], official["mention_hall"]) == (1.0, 1 / 3)
    assert list(REGAZE.correct(REGAZE.count([TRUTH] * 3, answers))) == [False, True, False]


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('["dogs", "a sports ball"]', ["dog", "sport ball"]),  # which the list of words has not
        ('Here:\n["teddy bears"]', ["teddy bear"]),
        ('{"hot dog": 1}', ["hot dog"]),
        ('["of the"]', []),
        ("7", None),
        ("null", None),
        ("none", None),
        ("[" * 5000, None),
    ],
)
def test_listed_objects_become_nouns(words, reply, names):
    if names is None:
        with pytest.raises(UnreadableReplyError):
            official_names(reply, words.double_words)
    else:
        assert official_names(reply, words.double_words) == names


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('["dog", "cat"]', ["dog", "cat"]),
        ('```json\n["dog"]\n```', ["dog"]),
        ('Sure!\n["dog"]\nDone', ["dog"]),
        ("[]", []),
        ("()", None),
        ('] "dog" [', None),
        ("no list]", None),
        ("[" * 2_000_000, None),  # in quadratic time an hour
        ('"dog"', None),
        ('[["dog"]]', None),
        ("[7]", None),
        ("['dog']", None),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_our_own_scorer_takes_lists_of_texts_only(reply, names):
    if names is None:
        with pytest.raises(UnreadableReplyError):
            listed_names(reply)
    else:
        assert listed_names(reply) == names


# Files -----------------------------------------------------------------------------------------------------


def picture(color):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(out, "png")
    return base64.b64encode(out.getvalue()).decode()


RECORDS = [
    {"org_idx": 0, "image_id": 9, "question": "What is this photo about?", "image": picture("red")},
    {"org_idx": 1, "image_id": 139, "question": "Describe it.", "image": picture("blue")},
]


def lay_out(folder, records=RECORDS, truth=((9, [0]), (139, [0, 1]))):
    (folder / QUESTIONS).write_text("\n".join(map(json.dumps, records)))
    (folder / SYNONYMS).write_text("cat, kitten\ndog, puppy\n")
    objects = {"names": ["cat", "dog"], "images": {str(number): each for number, each in truth}}
    (folder / "coco2014_trainval_objects.json").write_text(json.dumps(objects))
    return folder


def test_pictures_in_the_questions_file_are_saved_once(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    bench = ObjectHalBench.load(lay_out(tmp_path), limit=1)
    assert Image.open(bench.items[0].image).getpixel((0, 0)) == (255, 0, 0)
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 1  # the others are not decoded
    bench = ObjectHalBench.load(tmp_path)
    assert [item.key for item in bench.items] == ["9", "139"]
    assert bench.items[1].reference == GroundTruth(frozenset({"cat", "dog"}))
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 2
    assert bench.describe()["ground_truth"].startswith("finished sets")


def test_photographs_of_coco_are_taken_from_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    bench = ObjectHalBench.load(lay_out(tmp_path), tmp_path / "photos")
    assert bench.items[0].image == tmp_path / "photos/COCO_val2014_000000000009.jpg"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "no base64!"}, r"with_image\.jsonl:2: the picture is not base64 text"),
        ({"image": base64.b64encode(b"text").decode()}, r"jsonl:2: the base64 text is no JPEG, PNG or WebP"),
        ({"image": None}, r"jsonl:2: no picture under 'image'; say where .* by --images"),
        ({"image_id": "x"}, r"jsonl:2: 'image_id' must be the number of a COCO image, got 'x'"),
        ({"image_id": 9}, r"jsonl:2: a second question '9'"),
        ({"image_id": 7}, r"jsonl:2: image 7 has no ground truth in"),
        ({"question": " "}, r"jsonl:2: 'question' must be a non-empty string"),
    ],
)
def test_malformed_questions_are_named_with_their_line(tmp_path, monkeypatch, change, message):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    lay_out(tmp_path, [RECORDS[0], {**RECORDS[1], **change}])
    with pytest.raises(InputError, match=message):
        ObjectHalBench.load(tmp_path)


@pytest.mark.parametrize("ids", [True, False])
def test_answers_are_joined_by_image_else_by_place(tmp_path, ids):
    bench = ObjectHalBench.load(lay_out(tmp_path), tmp_path)
    rows = [
        {
            **({"image_id": each["image_id"]} if ids else {}),
            "question": each["question"],
            "answer": f"to {at}",
        }
        for at, each in enumerate(RECORDS)
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows[::-1] if ids else rows)))
    join = join_rows(bench, read_answer_rows(tmp_path / "answers.jsonl"))
    assert [row.values["answer"] for row in join.rows] == ["to 0", "to 1"]


class Judge:
    """Gives the verdicts it was made with, and records the prompts."""

    name = "scripted"

    def __init__(self, *verdicts):
        self.verdicts, self.prompts = list(verdicts), []

    def judge(self, prompts):
        self.prompts += prompts
        return self.verdicts[: len(prompts)]


def test_a_judge_lists_objects_of_answers_of_more_than_three_words(tmp_path, words):
    judge = Judge('["kitten", "dog"]')
    bench = ObjectHalBench.load(lay_out(tmp_path), tmp_path, judge=judge)
    scores = bench.score({"plain": ["Assistant: A kitten beside a dog.", "Only a dog."]}, seed=0)
    own = scores["object-halbench"]["regaze"]["plain"]
    assert own["response_hall"]["value"] == 1 / 2
    assert own["no_objects"]["value"] == 1 / 2
    assert own["unreadable"]["value"] == 0.0
    assert scores["object-halbench"]["official"]["plain"]["response_hall"]["value"] == 1.0
    (prompt,) = judge.prompts
    assert "What is this photo about?" in prompt
    assert "Answer: A kitten beside a dog.\n" in prompt
    assert bench.describe()["judge"] == "scripted"
    unjudged = ObjectHalBench.load(tmp_path, tmp_path, judge=judge, judged=False)
    by_words = unjudged.score({"plain": ["A kitten beside a dog.", "Only a dog."]}, seed=0)
    assert by_words["object-halbench"]["official"]["plain"]["mention_hall"]["value"] == 1 / 3
    assert "unreadable" not in by_words["object-halbench"]["regaze"]["plain"]
    with pytest.raises(InputError, match="Object HalBench is graded by a judge, and none is configured"):
        ObjectHalBench.load(tmp_path, tmp_path, judged=True)


def test_what_is_not_at_hand_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    lay_out(tmp_path)
    (tmp_path / SYNONYMS).write_text("dog, puppy\n")
    with pytest.raises(InputError, match=r"image 9 has 'cat', which begins no line of synonyms_refine\.txt"):
        ObjectHalBench.load(tmp_path)
    (tmp_path / SYNONYMS).unlink()
    with pytest.raises(InputError, match=r"has no synonyms_refine\.txt: copy it there, or get it by `regaze"):
        ObjectHalBench.load(tmp_path)
    (tmp_path / QUESTIONS).unlink()
    with pytest.raises(
        InputError, match=r"has no obj_halbench_300_with_image\.jsonl; RLHF-V and RLAIF-V publish it"
    ):
        ObjectHalBench.load(tmp_path)


def test_recorded_verdicts_replace_the_judge(tmp_path, words):
    lay_out(tmp_path)
    (tmp_path / "answers.jsonl").write_text(
        "\n".join(json.dumps({"image_id": n, "answer": f"There is a kitten in {n}."}) for n in (139, 9))
    )
    judge = Judge('["kitten"]', "none")
    ObjectHalBench.load(tmp_path, tmp_path, judge=judge).score(
        {"plain": ["There is a kitten in 9.", "There is a kitten in 139."]}, seed=0
    )
    records = [
        {"key": str(at), "judge": {}, "prompt": prompt, "verdict": verdict}
        for at, (prompt, verdict) in enumerate(zip(judge.prompts, judge.verdicts, strict=True))
    ]
    (tmp_path / "verdicts.jsonl").write_text("\n".join(map(json.dumps, records)))
    options = ["--data", tmp_path, "--images", tmp_path, "--judge", tmp_path / "verdicts.jsonl", "--json"]
    command = ["score", "object-halbench", tmp_path / "answers.jsonl", *options]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["plain"]["figures"]["object-halbench"]
    assert figures["regaze"]["plain"]["response_hall"]["value"] == 0.0
    assert figures["regaze"]["plain"]["unreadable"]["value"] == 1 / 2
    assert figures["official"]["plain"]["response_hall"]["value"] is None  # the script would have stopped
