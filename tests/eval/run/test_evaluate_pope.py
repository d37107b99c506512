"""POPE: both scorers against the goldens and by hand, and what a questions file may hold."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from regaze.errors import InputError
from regaze.eval import Pope
from regaze.eval.benchmarks.common import scoring
from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.common.yes_no import HARNESS, METRICS, OFFICIAL
from regaze.eval.benchmarks.pope.benchmark import read_questions

CASES = ["coco_random_first200", "coco_popular_first200", "all_yes_50", "all_no_50", "all_empty_50"]


def golden(shared: Path, case: str) -> tuple[list[str], list[str], dict]:
    folder = shared / "goldens/benchmarks/pope"
    read = [
        [json.loads(line) for line in (folder / f"{case}.{kind}.jsonl").read_text().splitlines()]
        for kind in ("questions", "answers")
    ]
    expected = json.loads((folder / "expected.json").read_text())[case]
    return [row["label"] for row in read[0]], [row["answer"] for row in read[1]], expected


@pytest.mark.parametrize("case", CASES)
def test_official_scorer_gives_the_golden_figures(shared, case):
    labels, answers, expected = golden(shared, case)
    expected = expected["official_AoiDragon_POPE"]
    scores = OFFICIAL.score(labels, answers)
    for figure in METRICS:
        if figure in expected:
            assert scores[figure] == expected[figure]
    if "error" in expected:  # the script stopped at a division by zero
        assert math.isnan(scores["precision"])
        assert math.isnan(scores["f1"])
        assert scores["recall"] == 0.0

    counts = compare(OFFICIAL, as_items(labels), {"plain": answers}, seed=0)["plain"]["counts"]
    assert counts == {
        "label_yes": {"yes": expected["TP"], "no": expected["FN"], "other": 0},
        "label_no": {"yes": expected["FP"], "no": expected["TN"], "other": 0},
    }


@pytest.mark.parametrize("case", CASES)
def test_harness_scorer_gives_the_golden_figures(shared, case):
    labels, answers, expected = golden(shared, case)
    expected = expected["lmms_eval_pope"]
    scores = HARNESS.score(labels, answers)
    assert scores["f1"] == pytest.approx(expected["f1_score"], rel=1e-15)
    for figure in ("accuracy", "precision", "recall", "yes_ratio"):
        assert scores[figure] == expected[figure]


def test_every_golden_answer_is_read_as_the_scorers_read_it(shared):
    rows = json.loads((shared / "goldens/benchmarks/pope/answer_parsing.json").read_text())["rows"]
    assert len(rows) > 100
    for row in rows:
        answer = row["answer"]
        assert OFFICIAL.read(answer) == row["pope_official"], answer
        read = HARNESS.read(answer)
        assert (read == "yes", read == "no") == (
            row["lmms_eval_correct_if_yes"],
            row["lmms_eval_correct_if_no"],
        )
        assert read in (row["lmms_eval_pope_prediction"], "other")


@pytest.mark.parametrize(
    ("answer", "official", "harness"),
    [
        ("Yes", "yes", "yes"),
        (" no ", "no", "no"),
        ("Yes.", "yes", "other"),
        ("No, there is not.", "no", "other"),
        ("no,", "no", "other"),
        ("Yes. No.", "yes", "other"),
        (".No", "yes", "other"),
        ("NO", "yes", "no"),
        ("No\nthere", "yes", "other"),
        ("I am not sure", "no", "other"),
        ("There isn't a dog", "yes", "other"),
        ("", "yes", "other"),
    ],
)
def test_reading_by_hand(answer, official, harness):
    assert (OFFICIAL.read(answer), HARNESS.read(answer)) == (official, harness)


def test_figures_by_hand():
    labels = ["yes", "yes", "yes", "no", "no"]
    answers = ["Yes", "yes", "No", "Yes.", "no"]
    assert OFFICIAL.score(labels, answers) == pytest.approx(
        {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 3 / 5}
    )
    # "Yes." is not an exact match: wrong, and no false positive either.
    assert HARNESS.score(labels, answers) == pytest.approx(
        {"accuracy": 3 / 5, "precision": 1.0, "recall": 2 / 3, "f1": 4 / 5, "yes_ratio": 3 / 5}
    )


@pytest.mark.parametrize(
    ("labels", "answers"), [([], []), (["yes", "no"], ["yes"]), (["yes"], ["yes", "no"])]
)
def test_answers_and_labels_must_pair_up(labels, answers):
    with pytest.raises(InputError, match="expected one each"):
        OFFICIAL.score(labels, answers)


def compare(scorer, items, answers, *, seed):
    references, clusters = [item.label for item in items], [str(item.image) for item in items]
    return scoring.compare(scorer, references, answers, clusters=clusters, seed=seed)


def as_items(labels: list[str], per_image: int = 2) -> list[Item]:
    return [
        Item(key=str(i), split="s", image=Path(f"{i // per_image}.png"), question="?", label=label)
        for i, label in enumerate(labels)
    ]


def test_comparison_is_paired_and_its_intervals_hold_the_figures():
    labels = ["yes", "no"] * 20
    plain = ["yes", "yes"] * 10 + ["yes", "no"] * 10  # 10 false alarms
    edited = ["yes", "no"] * 15 + ["yes", "yes"] * 2 + ["no", "no"] * 3  # 2 false alarms, 3 misses
    scores = compare(OFFICIAL, as_items(labels), {"plain": plain, "edited": edited}, seed=0)
    assert scores["plain"]["accuracy"]["value"] == 0.75
    assert scores["edited"]["accuracy"]["value"] == 35 / 40
    assert (scores["difference"]["only_plain_correct"], scores["difference"]["only_edited_correct"]) == (
        5,
        10,
    )
    # Ten images gain an answer, five lose one.
    assert "mcnemar_p" not in scores["difference"]
    assert scores["difference"]["permutation_p"] == pytest.approx(
        2 * sum(math.comb(15, k) for k in range(6)) / 2**15
    )
    assert scores["statistics"] == {
        "items": 40,
        "clusters": 20,
        "intervals": "bootstrap by cluster",
        "test": "permutation by cluster, exact",
        "share": "accuracy",
    }
    assert scores["difference"]["accuracy"]["value"] == pytest.approx(0.125)
    for condition in ("plain", "edited", "difference"):
        for figure in METRICS:
            low, value, high = (scores[condition][figure][key] for key in ("low", "value", "high"))
            assert low <= value <= high or (math.isnan(low) and figure == "recall" and value == 1.0)
    assert compare(OFFICIAL, as_items(labels), {"plain": plain, "edited": edited}, seed=0) == scores


def test_the_same_answers_differ_by_exactly_nothing():
    labels = ["yes", "no", "no", "yes"] * 5
    answers = ["yes", "no", "yes", "no"] * 5
    difference = compare(OFFICIAL, as_items(labels), {"plain": answers, "edited": answers}, seed=0)[
        "difference"
    ]
    assert difference["permutation_p"] == 1.0
    for figure in ("accuracy", "precision", "recall", "f1", "yes_ratio"):  # how much it might have varied
        assert difference[figure]["value"] == 0.0  # is more than answers that never did can tell
        assert math.isnan(difference[figure]["low"])


def test_intervals_are_wider_when_images_fail_as_a_whole():
    """40 questions right or wrong image by image are fewer observations than 40 independent ones."""
    labels = ["yes"] * 40
    answers = ["yes"] * 20 + ["no"] * 20

    def width(figure: str, per_image: int) -> float:
        plain = compare(OFFICIAL, as_items(labels, per_image), {"plain": answers}, seed=0)["plain"]
        return plain[figure]["high"] - plain[figure]["low"]

    assert width("recall", 10) > 1.5 * width("recall", 1)
    assert width("accuracy", 10) > 1.5 * width("accuracy", 1)


def test_a_gain_on_few_images_is_less_than_one_on_many():
    """Twelve answers gained: on twelve images, and on two of six questions each."""
    labels = ["yes"] * 72
    plain, spread, lumped = (["yes"] * 72 for _ in range(3))
    plain[:12] = ["no"] * 12
    alone = compare(OFFICIAL, as_items(labels, 1), {"plain": plain, "edited": spread}, seed=0)
    together = compare(OFFICIAL, as_items(labels, 6), {"plain": plain, "edited": lumped}, seed=0)
    assert alone["statistics"]["test"] == "McNemar, exact"
    assert alone["statistics"]["intervals"].startswith("Wilson (differences: Newcombe) of accuracy")
    assert alone["difference"]["mcnemar_p"] == pytest.approx(2 / 2**12)
    assert together["difference"]["permutation_p"] == pytest.approx(2 / 2**2)
    assert together["difference"]["design_effect"] > 5
    one, other = alone["difference"]["accuracy"], together["difference"]["accuracy"]
    assert one["value"] == other["value"] == pytest.approx(1 / 6)
    assert other["high"] - other["low"] > 1.5 * (one["high"] - one["low"])


def test_undefined_figures_have_no_interval():
    scores = compare(OFFICIAL, as_items(["yes", "no"] * 4), {"plain": ["no"] * 8}, seed=0)["plain"]
    assert all(math.isnan(scores["precision"][key]) for key in ("value", "low", "high"))
    one_image = compare(OFFICIAL, as_items(["yes", "no"]), {"plain": ["yes", "no"]}, seed=0)["plain"]
    assert one_image["recall"]["value"] == 1.0
    assert math.isnan(one_image["recall"]["low"])
    assert math.isnan(one_image["accuracy"]["low"])
    single = compare(OFFICIAL, as_items(["yes"]), {"plain": ["yes"]}, seed=0)["plain"]
    assert single["accuracy"]["low"] > 0  # Wilson needs no second image


QUESTIONS = [
    {"question_id": 1, "image": "a.png", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.png", "text": "Is there a line\u2028in the image?", "label": "No"},
    {"image": "b.png", "text": "Is there a cat in the image?", "label": "no"},
]
LINES = "\n".join(json.dumps(q, ensure_ascii=False) for q in QUESTIONS)


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES + "\n\n",
        "\ufeff" + LINES.replace("\n", "\r\n"),
        json.dumps(QUESTIONS),
        json.dumps(QUESTIONS, indent=4),
    ],
    ids=["lines", "blank", "bom-crlf", "array", "pretty"],
)
def test_every_official_layout_is_read(tmp_path, text):
    path = tmp_path / "questions.json"
    path.write_bytes(text.encode())
    items = read_questions(path, tmp_path / "images", "random")
    assert [item.label for item in items] == ["yes", "no", "no"]
    assert [item.question for item in items] == [q["text"] for q in QUESTIONS]
    assert [item.key for item in items] == ["random/1", "random/2", "random/3"]
    assert items[2].image == tmp_path / "images" / "b.png"


GOOD = '{"image": "a.png", "text": "?", "label": "yes"}'
PRETTY = "\n".join(["[", "  {", GOOD[1:-1], "  },", "  {", GOOD[1:-1].replace("yes", "maybe"), "  }", "]"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GOOD}\n\nnonsense\n", r"q\.json:3: not valid JSON"),
        (
            f'{GOOD}\n{{"image": "a.png", "text": "?"}}',
            r"q\.json:2: 'label' must be a non-empty string, got None",
        ),
        (f"{GOOD}\n{GOOD.replace('yes', 'perhaps')}", r"q\.json:2: label must be yes or no, got 'perhaps'"),
        (GOOD.replace('"a.png"', "7"), r"q\.json:1: 'image' must be a non-empty string, got 7"),
        (GOOD.replace("?", " "), r"q\.json:1: 'text' must be a non-empty string"),
        (f"{GOOD}\n[1]", r"q\.json:2: expected an object with image, text and label, got list"),
        (PRETTY, r"q\.json:5: label must be yes or no, got 'maybe'"),
        (PRETTY.replace("},", "}"), r"q\.json:5: not valid JSON"),
        (f"[{GOOD}, 3]", r"q\.json:1: expected an object"),
        ("", r"q\.json holds no questions"),
        ("[]", r"q\.json holds no questions"),
        (b"\xff\xfe\x00", r"q\.json cannot be read: not UTF-8 text"),
    ],
)
def test_malformed_files_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "q.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_questions(path, tmp_path, "random")


def test_missing_files_and_folders_and_a_senseless_limit(tmp_path):
    with pytest.raises(InputError, match=r"none\.json cannot be read: No such file"):
        Pope.from_files({"random": tmp_path / "none.json"}, tmp_path)
    with pytest.raises(InputError, match=r"image folder .*nowhere does not exist"):
        Pope.from_files({"random": tmp_path / "none.json"}, tmp_path / "nowhere")
    with pytest.raises(InputError, match="limit 0: expected at least 1"):
        Pope.from_files({"random": tmp_path / "none.json"}, tmp_path, limit=0)


def test_limit_suffix_and_splits(tmp_path):
    (tmp_path / "q.json").write_text(LINES)
    pope = Pope.from_files(
        {"random": tmp_path / "q.json", "popular": tmp_path / "q.json"}, tmp_path, suffix=" Why?", limit=2
    )
    assert [item.key for item in pope.items] == ["random/1", "random/2", "popular/1", "popular/2"]
    assert pope.prompt(pope.items[0]) == "Is there a dog in the image? Why?"
    scores = pope.score({"plain": ["yes", "no", "no", "no"]}, seed=0)
    assert list(scores) == ["random", "popular", "all"]
    assert [scores[name]["official"]["plain"]["accuracy"]["value"] for name in scores] == [1.0, 0.5, 0.75]
    assert scores["all"]["questions"] == 4
    assert scores["all"]["images"] == 1
    assert "difference" not in scores["all"]["official"]


@pytest.mark.parametrize(
    ("name", "questions"),
    [
        ("head/coco_pope_random", 3000),
        ("e3e3926/coco_pope_random", 2910),
        ("head/gqa_pope_seem_adversarial", 3000),
    ],
)
def test_published_files_are_read(shared, tmp_path, name, questions):
    path = tmp_path / "q.json"
    path.write_bytes(gzip.decompress((shared / f"benchmarks/data/pope/{name}.json.gz").read_bytes()))
    items = read_questions(path, tmp_path, "random")
    assert len(items) == questions
    assert len({item.image for item in items}) == 500
