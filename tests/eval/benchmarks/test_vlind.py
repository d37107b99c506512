"""VLind-Bench: the goldens of the official script, its stages, prompts of both scripts, its file."""

from __future__ import annotations

import gzip
import json
import math

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.vlind.benchmark import VlindBench
from regaze.eval.benchmarks.vlind.scorers import OFFICIAL, REGAZE, read_official, read_truth

FIGURES = ("S_CK", "S_VP", "S_CB", "S_LP", "acc_CB", "acc_LP")


def golden_cases(shared):
    folder = shared / "goldens/benchmarks/vlind"
    for case, expected in json.loads((folder / "expected.json").read_text()).items():
        yield folder / f"{case}.data.json.gz", expected


def answers_in(path, bench):
    """The responses that the scripts wrote into the file of questions."""
    records = {str(record["global_id"]): record for record in json.loads(gzip.decompress(path.read_bytes()))}
    found = []
    for item in bench.items:
        number, test, *image = item.key.split("/")
        record = records[number]
        given = next(
            record[f"m_pred_{test}{end}"] for end in ("_image", "") if f"m_pred_{test}{end}" in record
        )
        given = given[image[0]] if image else given
        assert {"True": True, "False": False, "NA": None}[given["answer"]] is read_official(given["response"])
        found.append(given["response"])
    return found


def test_official_figures_are_the_golden_ones(shared, tmp_path):
    checked = 0
    for path, expected in golden_cases(shared):
        (tmp_path / "data.json.gz").write_bytes(path.read_bytes())
        for key, style in (
            ("official_score_pipeline", "all"),
            ("official_style_illustration", "illustration"),
        ):
            if key in expected:
                bench = VlindBench.load(tmp_path, style=style)
                figures = OFFICIAL.score([item.reference for item in bench.items], answers_in(path, bench))
                shown = {name: float(f"{100 * figures[name]:.1f}") for name in FIGURES}
                assert shown == expected[key]
                checked += 1
        bench = VlindBench.load(tmp_path)
        instances = {item.reference.instance for item in bench.items}
        assert len(instances) == expected.get("instances_counted", len(instances))
    assert checked >= 5


def test_single_answers_are_read_as_by_the_script_and_by_people(shared):
    rows = json.loads((shared / "goldens/benchmarks/answer_readings/true_false.json").read_text())["rows"]
    scripts, careful = {"True": True, "False": False, "NA": None}, {"true": True, "false": False, None: None}
    for row in rows:
        assert read_official(row["text"]) is scripts[row["vlind"]], row["text"]
        assert read_truth(row["text"]) is careful[row["careful"]], row["text"]


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("**True**", True),
        ("FALSE!", False),
        ("The statement is not true.", False),
        ("It isn't false", True),
        ("It is not entirely true.", False),
        ("<think>It looks true.</think>False", False),
        ("Untrue", False),
        ("No", False),
        ("true or false", None),
        ("True-ish", None),
        ("The statement could be true.", None),
        ("It is unclear whether it is true.", None),
        ("True, but the second statement may be false.", None),
        ("True. It might be cold.", True),
        ("- True", True),
        ("Based on the image, the statement is false, since the sky is green.", False),
        ("", None),
    ],
)
def test_our_reading(answer, truth):
    assert read_truth(answer) is truth


RECORD = {
    "global_id": 5,
    "concept": "animal",
    "context_id": 3,
    "context": "A whale in the sky.",
    "factual_context": "A whale in the sea.",
    "true_statement": "Whales fly.",
    "false_statement": "Whales swim.",
    "existent_noun": "a whale",
    "non-existent_noun": "a tower",
    "best_img_id": "4",
    "aggregated_human_label_good_images": {"0": 1, "4": 3, "9": 2},
}


def write(folder, *records, **options):
    (folder / "data.json").write_text(json.dumps(records or [RECORD]))
    return VlindBench.load(folder, **options)


def test_each_test_has_its_pictures_statements_and_prompt(tmp_path):
    bench = write(tmp_path)
    pictures = tmp_path / "images"
    made_up = pictures / "counterfactual/animal/3_A whale in the sky."
    shown = {item.key: (item.image, item.question, item.label) for item in bench.items}
    assert shown["5/a1"] == (
        pictures / "factual/animal/3_A whale in the sea./0.jpg",
        "Statement: Whales swim.",
        "True",
    )
    assert shown["5/a2"][1:] == ("Statement: Whales fly.", "False")
    assert shown["5/b2"] == (made_up / "4.jpg", "Statement: There is a tower in the given image.", "False")
    context = "Context: A whale in the sky.\nStatement: Whales fly."
    assert shown["5/c1"] == (made_up / "4.jpg", context, "True")
    assert shown["5/d2/9"] == (made_up / "9.jpg", "Statement: Whales swim.", "False")
    assert len(shown) == 10
    by_key = {item.key: item for item in bench.items}
    assert bench.prompt(by_key["5/a1"]) == (
        "Statement: Whales swim.\nBased on the common sense, is the given statement true or false? "
        "Only respond in True or False."
    )
    assert bench.prompt(by_key["5/c1"]) == (
        f"{context}\nBased on the context, is the given statement true or false? Forget real-world common "
        "sense and just follow the information provided in the context. Only respond in True or False."
    )
    other = VlindBench(bench.items, prompts="instructblip")
    assert other.prompt(by_key["5/a1"]) == (
        "Only respond in True or False.\nStatement: Whales swim.\nBased on common sense, is the given "
        "statement true or false?"
    )
    assert "Forget" not in other.prompt(by_key["5/d1/4"])


def test_votes_style_and_limit_choose_instances_and_pictures(tmp_path):
    second = {**RECORD, "global_id": 6}
    tests = [item.key for item in write(tmp_path, RECORD, second, votes=3).items]
    assert [key for key in tests if "/d1" in key] == ["5/d1/4", "6/d1/4"]
    assert {item.reference.instance for item in VlindBench.load(tmp_path, limit=1).items} == {"5"}
    cartoons = VlindBench.load(tmp_path, style="cartoon")
    assert [item.reference.image for item in cartoons.items if item.split == "LP"] == ["9"] * 4
    with pytest.raises(InputError, match="no instance has a picture of style 'photorealistic' with 2 votes"):
        VlindBench.load(tmp_path, style="photorealistic")
    with pytest.raises(InputError, match="has the styles all, photorealistic"):
        VlindBench.load(tmp_path, style="photo")


def test_a_test_counts_among_those_that_passed_the_ones_before(tmp_path):
    bench = write(tmp_path, *({**RECORD, "global_id": number} for number in range(4)))
    wrong = {"0/a1", "1/b2", "2/d1/4"}  # of the fourth everything is right
    answers = ["unsure" if item.key in wrong else item.label for item in bench.items]
    scores = bench.score({"plain": answers}, seed=0)["all"]
    expected = {"S_CK": 3 / 4, "S_VP": 3 / 4, "S_CB": 1.0, "S_LP": 3 / 4, "acc_CB": 1.0, "acc_LP": 7 / 8}
    for scorer in ("official", "regaze"):
        figures = {name: scores[scorer]["plain"][name]["value"] for name in expected}
        assert figures == pytest.approx(expected)
    assert scores["regaze"]["plain"]["all_tests"]["value"] == pytest.approx(1.5 / 4)
    assert scores["regaze"]["plain"]["unreadable"]["value"] == pytest.approx(3 / 40)
    assert scores["regaze"]["statistics"]["clusters"] == 4
    references = [item.reference for item in bench.items]
    nothing = ["False"] * len(references)
    assert OFFICIAL.score(references, nothing)["S_LP"] == 0.0
    assert math.isnan(REGAZE.score(references, nothing)["S_LP"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": ""}, r"data\.json:1: 'context' must be a non-empty string"),
        ({"non-existent_noun": None}, r"data\.json:1: 'non-existent_noun' must be"),
        ({"aggregated_human_label_good_images": {"1": "3"}}, r"data\.json:1: '1' must be int, got '3'"),
        ({"true_statement": "<image>"}, r"data\.json:1: <image> cannot be part of a statement"),
    ],
)
def test_malformed_instances_are_named_with_their_line(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path, {**RECORD, **change})
