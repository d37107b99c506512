"""HaloQuest: the published file, verdicts, groups."""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.haloquest import FILE, HaloQuest, VerdictScorer, read_verdict

ROW = {
    "": "0",
    "image_name": "a cat.png",
    "url": "https://host/a%20cat_o.png",
    "image type": "generated",
    "hallucination type": "false premises",
    "question": "What is on the collar?",
    "groundtruth responses": "There is no collar; No collar is visible;",
    "split": "eval",
}
OTHER = {**ROW, "": "1", "image type": "real", "hallucination type": "insufficient context"}


class Judge:
    """Gives the verdicts it was made with, and records the prompts."""

    name = "scripted"

    def __init__(self, *verdicts):
        self.verdicts, self.prompts = list(verdicts), []

    def judge(self, prompts):
        self.prompts += prompts
        return self.verdicts[: len(prompts)]


def write(folder, *rows):
    with (folder / FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_the_published_file(shared, tmp_path):
    packed = (shared / f"benchmarks/data/haloquest/{FILE}.gz").read_bytes()
    (tmp_path / FILE).write_bytes(gzip.decompress(packed))
    bench = HaloQuest.load(tmp_path, judge=Judge())
    assert Counter(item.split for item in bench.items) == {
        "false premises": 304,
        "visual challenge": 183,
        "insufficient context": 121,
    }
    assert {name: len(rows) for name, rows in bench.groups().items() if name.endswith("pictures")} == {
        "generated pictures": 391,
        "real pictures": 217,
    }
    assert len(bench.groups()["all"]) == 608
    assert {len(item.label.split("; ")) for item in bench.items} == {1, 2, 3, 4, 5}
    assert len(HaloQuest.load(tmp_path, judge=Judge(), limit=2).items) == 6


@pytest.mark.parametrize(
    ("verdict", "right"),
    [
        ('{"correct": true}', True),
        ('Both say that it is blue.\n{"correct": false}', False),
        ("```json\n{'correct': True}\n```", True),
        ("PredictionEvaluation(question='?', is_prediction_correct=False)", False),
        ("True.", True),
        ('{"correct": true} or {"correct": false}', None),
        ("It is correct.", None),
        ('{"correct": 1}', None),
        ("", None),
    ],
)
def test_verdicts_are_boolean(verdict, right):
    assert read_verdict(verdict) is right


def test_a_verdict_that_cannot_be_read_stops_the_official_script():
    verdicts = ['{"correct": true}', '{"correct": false}', "Hm."]
    own = VerdictScorer("regaze", "", stops=False).score([None] * 3, verdicts)
    assert own == {"accuracy": 1 / 2, "unreadable": pytest.approx(1 / 3)}
    official = VerdictScorer("official", "", stops=True)
    assert math.isnan(official.score([None] * 3, verdicts)["accuracy"])
    assert official.score([None] * 2, verdicts[:2])["accuracy"] == 1 / 2


def test_the_judge_reads_all_references_and_groups_have_their_own_figures(tmp_path):
    judge = Judge('{"correct": true}', '{"correct": false}')
    bench = HaloQuest.load(write(tmp_path, ROW, OTHER), judge=judge)
    scores = bench.score({"plain": ["It has none.", "Red."]}, seed=0)
    found = {group: each["official"]["plain"]["accuracy"]["value"] for group, each in scores.items()}
    assert found == {
        "false premises": 1.0,
        "insufficient context": 0.0,
        "all": 0.5,
        "generated pictures": 1.0,
        "real pictures": 0.0,
    }
    for part in ("What is on the collar?", "There is no collar; No collar is visible\n", "It has none."):
        assert part in judge.prompts[0]


def test_pictures_are_found_by_name_or_as_in_their_url(tmp_path):
    write(tmp_path, ROW)
    images = tmp_path / "images"
    images.mkdir()
    assert HaloQuest.load(tmp_path, judge=Judge()).items[0].image == images / "a cat.png"
    (images / "a cat_o.png").write_bytes(b"")
    assert HaloQuest.load(tmp_path, judge=Judge()).items[0].image == images / "a cat_o.png"
    (images / "a cat.png").write_bytes(b"")
    assert HaloQuest.load(tmp_path, judge=Judge()).items[0].image == images / "a cat.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image type": "drawn"}, r"eval\.csv:3: image type 'drawn' and .*; there are generated, real, and"),
        ({"hallucination type": "other"}, r"eval\.csv:3: image type 'real' and hallucination type 'other'"),
        ({"groundtruth responses": " ; "}, r"eval\.csv:3: expected a number, an image_name, a question and"),
        ({"": "0"}, r"eval\.csv:3: a second question '0', after .*eval\.csv:2"),
    ],
)
def test_malformed_rows_are_named_with_their_line(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        HaloQuest.load(write(tmp_path, ROW, {**OTHER, **change}), judge=Judge())


def test_without_a_judge_nothing_is_made(tmp_path):
    with pytest.raises(InputError, match="HaloQuest is graded by a judge, and none is configured"):
        HaloQuest.load(write(tmp_path, ROW))
