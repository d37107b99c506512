"""CRPE: the goldens of all scorers, grouping by place and by question, its files, the demo's questions."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import Counter

import pytest

from regaze.demo import scenes
from regaze.errors import InputError
from regaze.eval.benchmarks.crpe.benchmark import LMMS_EVAL_SUFFIX, Crpe
from regaze.eval.benchmarks.crpe.questions import rotations
from regaze.eval.benchmarks.crpe.scorers import CATEGORIES, read_lmms_eval

EXACT = {"rel": 1e-12}
OFFICIAL, LETTER, TEXT, LMMS_EVAL = "official", "vlmevalkit-letter", "vlmevalkit-text", "lmms-eval"


def scorer_of(bench, name):
    return next(scorer for scorer in bench.scorers() if scorer.name == name)


@pytest.fixture(scope="module")
def cases(shared, tmp_path_factory):
    """{case: (benchmark, answers, expected figures)} of those that have questions."""
    folder = shared / "goldens/benchmarks/crpe"
    found = {}
    for case, expected in json.loads((folder / "expected.json").read_text()).items():
        if (folder / f"{case}.questions.jsonl.gz").exists():
            place = tmp_path_factory.mktemp(case)
            name = "crpe_exist.jsonl.gz"  # the goldens have all categories in one file
            (place / name).write_bytes((folder / f"{case}.questions.jsonl.gz").read_bytes())
            answers = json.loads(gzip.decompress((folder / f"{case}.answers.json.gz").read_bytes()))
            found[case] = Crpe.load(place, splits=["exist"]), answers, expected
    return found


def score(bench, name, answers):
    return scorer_of(bench, name).score([item.reference for item in bench.items], answers)


def test_official_figures_are_the_golden_ones(cases):
    for bench, answers, expected in cases.values():
        figures = score(bench, OFFICIAL, answers)
        golden = expected["official_eval_crpe"]
        if isinstance(golden, str):
            assert all(map(math.isnan, figures.values()))
            continue
        numbers = Counter(item.split for item in bench.items)
        for category, target in golden.items():
            assert round(100 * figures[category], 2) == target["acc"]
            assert numbers[category] == 4 * target["samples"]
        overall = sum(figures[name] for name in CATEGORIES[1:]) / 3
        assert figures["overall"] == pytest.approx(overall, **EXACT)


def test_figures_of_the_harnesses_are_the_golden_ones(cases):
    for bench, answers, expected in cases.values():
        present = [answer or "-" for answer in answers]
        for name, given, key in (
            (LETTER, answers, "vlmevalkit_if_answer_column_is_a_letter"),
            (LETTER, present, "same_without_empty_answers"),
            (TEXT, present, "vlmevalkit_if_answer_column_is_letter_and_text_without_empty"),
            (LMMS_EVAL, answers, "lmms_eval_crpe_relation_per_row"),
        ):
            figures, golden = score(bench, name, given), expected[key]
            if isinstance(golden, str):
                assert all(map(math.isnan, figures.values()))
            else:
                assert {each: figures[each] for each in golden} == pytest.approx(golden, **EXACT)


def test_single_answers_are_read_as_by_the_harnesses(shared):
    golden = json.loads((shared / "goldens/benchmarks/answer_readings/choice.json").read_text())
    options = list(golden["options"].values())
    for row in golden["rows"]:
        read = read_lmms_eval(row["text"], options)
        assert read == row["crpe_lmms_eval_filter"], row["text"]
        assert (read.upper() if read.upper() in "ABCD" else "") == (row["crpe_lmms_eval"] or ""), row["text"]


def test_lmms_eval_takes_the_last_answer_that_is_closed():
    options = ("dog", "cat", "cup", "bus")
    for text, letter in (
        ("<answer>A</answer> <answer>B</answer> C", "B"),
        ("<answer>A</answer><answer>B", "A"),
        ("<answer>the cat<answer></answer> dog", "B"),
        ("</answer>D", "answerD"),
    ):
        assert read_lmms_eval(text, options) == letter
    assert read_lmms_eval("<answer>" * 250_000, options)[:6] == "answer"  # in quadratic time an hour


def question(number, right="dog", category="object"):
    record = {"image": f"coco/val2017/{number:012}.jpg", "category": category}
    rows = rotations(record, "What is on the table?", [right, "cat", "cup", "bus"])
    return [{"question_id": 4 * number + i, **row} for i, row in enumerate(rows)]


def write(folder, rows, split="relation"):
    (folder / f"crpe_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Crpe.load(folder, splits=[split])


def letters(bench, wrong=()):
    """The right letters, but for the rows of these ids."""
    return ["Z" if item.id in wrong else item.label for item in bench.items]


def test_the_official_script_groups_by_place_and_ours_by_question(tmp_path):
    rows = [row for number in range(8) for row in question(number)]
    wrong = {str(4 * number) for number in range(8)}  # one rotation of every question
    bench = write(tmp_path, rows)
    assert score(bench, OFFICIAL, letters(bench, wrong))["object"] == 0.0
    assert score(bench, "regaze", letters(bench, wrong))["questions"] == 0.0
    random.Random(1).shuffle(rows)
    bench = write(tmp_path, rows)
    assert score(bench, OFFICIAL, letters(bench, wrong))["object"] > 0.0
    ours = score(bench, "regaze", letters(bench, wrong))
    assert (ours["questions"], ours["rows"]) == (0.0, 0.75)


def test_a_question_that_is_there_twice_is_two(tmp_path):
    rows = question(1) + [{**row, "question_id": 100 + i} for i, row in enumerate(question(1))]
    bench = write(tmp_path, rows)
    assert score(bench, "regaze", letters(bench, {"4"}))["questions"] == 0.5


def test_where_the_scripts_stop_figures_are_undefined(tmp_path):
    bench = write(tmp_path, [*question(0), *question(1, category="subject")[:3]])
    right = letters(bench)
    figures = score(bench, OFFICIAL, right)
    assert figures["object"] == 1.0
    assert math.isnan(figures["subject"])
    assert all(map(math.isnan, score(bench, LETTER, right).values()))
    assert score(bench, "regaze", right)["questions"] == 1.0  # all that are there
    long = [
        f"{answer}." if item.split == "object" else answer
        for item, answer in zip(bench.items, right, strict=True)
    ]
    assert math.isnan(score(bench, OFFICIAL, long)["object"])


def test_vlmevalkit_reads_no_row_behind_a_wrong_one(tmp_path):
    bench = write(tmp_path, question(0))
    right = letters(bench)
    assert score(bench, LETTER, ["Z", "", "", ""])["total"] == 0.0
    assert math.isnan(score(bench, LETTER, [right[0], "", right[2], right[3]])["total"])
    assert score(bench, LETTER, ["None"] * 4)["total"] == 1.0
    assert score(bench, TEXT, ["None"] * 4)["total"] == 0.0
    assert score(bench, TEXT, ["a frog"] * 4)["total"] == 1.0  # "dog" without its first letter


def test_rows_of_both_files_are_read(tmp_path):
    write(tmp_path, question(0))
    write(tmp_path, question(0, category="exist"), "exist")
    bench = Crpe.load(tmp_path, tmp_path / "photos")
    assert [item.key for item in bench.items][3:5] == ["exist/3", "relation/0"]
    item = bench.items[0]
    assert item.image == tmp_path / "photos/coco/val2017/000000000000.jpg"
    assert bench.prompt(item) == item.question
    asked = Crpe.load(tmp_path, style="lmms-eval")
    assert asked.prompt(item) == item.question + LMMS_EVAL_SUFFIX
    scores = bench.score({"plain": letters(bench), "edited": letters(bench, {"1"})}, seed=0)
    assert list(scores) == ["all"]
    assert scores["all"]["regaze"]["edited"]["exist"]["value"] == 0.0
    assert len(Crpe.load(tmp_path, limit=2).items) == 8  # questions stay whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "What?\nA. dog"}, r"crpe_relation\.jsonl:1: expected a question with four lines"),
        ({"text": "What?\nA. x\nB. x\nC. y\nD. z"}, r":1: expected 2 to 10 different options"),
        ({"correct_option": "E"}, r":1: expected a correct_option of A to D"),
        ({"category": "colour"}, r":1: expected a correct_option of A to D and a category of exist, subject"),
        ({"image": 3}, r":1: 'image' must be a non-empty string"),
        ({"text": "<image>\nA. w\nB. x\nC. y\nD. z"}, r":1: <image> cannot be part of a question"),
    ],
)
def test_malformed_rows_are_named_with_their_line(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path, [{**question(0)[0], **change}])


def test_unknown_splits_are_refused(tmp_path):
    with pytest.raises(InputError, match="CRPE has the splits exist, relation, got objects"):
        Crpe.load(tmp_path, splits=["objects"])


def test_the_demo_knows_its_relations():
    bench = Crpe.of_demo()
    things = {scene.path: {thing.category: thing for thing in scene.objects} for scene in scenes()}
    checked = Counter()
    for item in bench.items:
        if item.split != "predicate":
            continue
        subject, _, rest = item.reference.answer.removeprefix("The ").removesuffix(".").partition(" is ")
        relation, other = next(
            (each, rest.removeprefix(f"{each} the "))
            for each in ("left of", "right of", "above", "below")
            if rest.startswith(each)
        )
        (x, y), (other_x, other_y) = (things[item.image][name].centre for name in (subject, other))
        truth = {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}
        assert truth[relation]
        checked[relation] += 1
    assert len(checked) == 4
    right = [item.reference.answer for item in bench.items]
    assert bench.score({"plain": right}, seed=0)["all"]["regaze"]["plain"]["questions"]["value"] == 1.0
    requests = {(item.image, bench.prompt(item), item.options) for item in bench.items}
    assert 4 * len(requests) == len(bench.items)  # rotations are asked once
    lettered = Crpe.of_demo(likelihood=False)
    assert score(lettered, OFFICIAL, letters(lettered))["overall"] == 1.0
