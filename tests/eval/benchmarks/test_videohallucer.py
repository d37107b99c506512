"""VideoHallucer: pairs scored as in the goldens, its files, and a run with a tiny model that takes videos."""

from __future__ import annotations

import gzip
import json

import pytest
from PIL import Image
from zoo.videos import gaze_with_videos

from regaze.errors import InputError
from regaze.eval import EvalConfig, EvalTask, evaluate
from regaze.eval.benchmarks.videohallucer.benchmark import VideoHallucer
from regaze.eval.benchmarks.videohallucer.scorers import OFFICIAL, REGAZE, TABLE, has_word
from regaze.eval.run.requests import Condition, ImageHashes, build_requests

EXACT = {"rel": 1e-12}
CASES = ("good_model", "odd_strings", "every answer: 'Yes and no'", "every answer: 'yes'")


@pytest.fixture(scope="module")
def data(shared):
    return shared / "benchmarks/data/videohallucer"


@pytest.fixture(scope="module")
def bench(data):
    return VideoHallucer.load(data)


def answers_of(case, golden, bench):
    """One answer per item."""
    if case.startswith("every answer: "):
        return [case.removeprefix("every answer: ").strip("'")] * len(bench.items)
    with gzip.open(golden / f"{case}.predictions.json.gz") as file:
        by_set = json.load(file)
    references = [item.reference for item in bench.items]
    return [by_set[r.set][r.pair][("basic", "hallucination").index(r.side)] for r in references]


@pytest.mark.parametrize("case", CASES)
def test_figures_are_the_golden_ones(case, shared, bench):
    golden = shared / "goldens/benchmarks/videohallucer"
    target = json.loads((golden / "expected.json").read_text())[case]
    answers = answers_of(case, golden, bench)
    groups = bench.groups()
    assert list(groups) == [*TABLE, "all"]
    for group, indices in groups.items():
        figures = OFFICIAL.score([bench.items[i].reference for i in indices], [answers[i] for i in indices])
        if group != "all":
            assert figures == pytest.approx(target["official_cal_score"][group], **EXACT)
        elif "overall_as_in_table" in target:
            assert figures["accuracy"] == pytest.approx(target["overall_as_in_table"], **EXACT)


def test_ours_takes_yes_and_no_for_no_answer(bench):
    references = [item.reference for item in bench.items]
    figures = REGAZE.score(references, ["Yes and no"] * len(references))
    assert figures["accuracy"] == figures["basic_accuracy"] == figures["halluc_accuracy"] == 0
    assert figures["unreadable"] == 1
    right = REGAZE.score(references, [reference.label for reference in references])
    assert right["accuracy"] == 1
    assert right["yes_ratio"] == 0.5


def test_words_are_whole():
    assert [has_word("no", text) for text in ("No.", "know", "NO", "there is no dog", "")] == [
        *(True, False, True, True, False)
    ]


def test_sets_and_sizes(data, bench):
    assert bench.describe()["pairs"] == dict(zip(TABLE, (200, 176, 200, 200, 200), strict=True))
    older = VideoHallucer.load(data, sets=["temporal"], before_2025_10=True)
    assert older.describe()["pairs"] == {"temporal": 200}
    beside = VideoHallucer.load(data, sets=["interaction", "fact_detect"])
    assert beside.describe()["pairs"] == {"interaction": 124, "fact_detect": 50}
    assert list(beside.groups()) == ["interaction", "fact_detect"]
    assert {item.label for item in beside.items if item.split == "fact_detect"} == {"no"}
    assert bench.prompt(bench.items[0]) == (
        "Is there a baby in the video?\nAnswer the question using 'yes' or 'no'."
    )


def test_pairs_that_share_a_video_are_one_cluster(bench):
    clusters = {}
    for item in bench.items:
        clusters.setdefault(item.video.name, set()).add(bench.cluster(item))
        clusters.setdefault((item.split, item.reference.pair), set()).add(bench.cluster(item))
    assert all(len(numbers) == 1 for numbers in clusters.values())
    assert len({bench.cluster(item) for item in bench.items}) > 500


def test_a_limit_keeps_pairs(data):
    limited = VideoHallucer.load(data, sets=["temporal", "semantic_detail"], limit=3)
    assert [item.key for item in limited.items[:4]] == [
        f"temporal/{pair}/{side}" for pair in (0, 1) for side in ("basic", "hallucination")
    ]
    assert len(limited.items) == 8
    assert (
        OFFICIAL.score([i.reference for i in limited.items], [i.label for i in limited.items])["accuracy"]
        == 1
    )


def record(number, **changes):
    basic = {"video": f"{number}.mp4", "question": "Is there a dog?", "answer": "yes"}
    return {"basic": basic | changes, "hallucination": {**basic, "question": "A cat?", "answer": "no"}}


def write(folder, records):
    (folder / "temporal").mkdir(exist_ok=True)
    (folder / "temporal/temporal.json").write_text("[" + ",\n".join(map(json.dumps, records)) + "]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "maybe"}, "basic: expected answer yes or no"),
        ({"video": ""}, "basic: 'video' must be a non-empty string"),
        ({"question": "<image>?"}, "basic: expected answer yes or no and a question without <image>"),
    ],
)
def test_malformed_pairs_are_named_by_line(tmp_path, changes, message):
    write(tmp_path, [record(0), record(1, **changes)])
    with pytest.raises(InputError, match=f"temporal.json:2: {message}"):
        VideoHallucer.load(tmp_path, sets=["temporal"])


def test_unknown_sets_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"VideoHallucer has the sets object_relation, .*, got tempo"):
        VideoHallucer.load(tmp_path, sets=["tempo"])


@pytest.fixture
def folder(tmp_path):
    """Three pairs; the videos of two are folders of frames, that of the third is missing."""
    write(tmp_path, [record(number) for number in range(3)])
    for number in range(2):
        frames = tmp_path / f"temporal/videos/{number}.mp4"
        frames.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (56, 56), (60 * i, 90 * number, 0)).save(frames / f"{i}.png")
    return tmp_path


def test_a_run_asks_about_the_videos(folder):
    gaze = gaze_with_videos("llava_next_video")
    bench = VideoHallucer.load(folder, sets=["temporal"], frames=2)
    task = EvalTask(bench, {"max_new_tokens": 3})
    results = evaluate(gaze, [task], {}, folder / "out", model_name="tiny", config=EvalConfig(batch_size=4))
    plain = results["benchmarks"]["videohallucer"]["plain"]
    scores = plain["figures"]["temporal"]
    assert [scores["questions"], scores["videos"], scores["images"]] == [4, 2, 0]
    assert [plain["failed"], plain["left_out"]] == [2, 2]
    rows = [json.loads(line) for line in (folder / "out/answers.jsonl").read_text().splitlines()]
    assert [row["video"] for row in rows] == ["0.mp4", "0.mp4", "1.mp4", "1.mp4", "2.mp4", "2.mp4"]
    expected = gaze.ask([[bench.items[0].video]], [bench.prompt(bench.items[0])], max_new_tokens=3)
    assert rows[0]["answer"] == expected[0]
    assert "2.mp4" in rows[4]["error"]


def test_requests_tell_videos_and_numbers_of_frames_apart(folder):
    condition, hashes = Condition("model", None, {}, 0), ImageHashes()
    two, four = (
        build_requests(VideoHallucer.load(folder, sets=["temporal"], frames=frames), condition, hashes)
        for frames in (2, 4)
    )
    assert len(two.requests) == len(four.requests) == 4
    assert set(two.requests).isdisjoint(four.requests)
    assert set(two.unreadable) == {4, 5}
    (folder / "temporal/videos/1.mp4/0.png").write_bytes(b"other")
    again = build_requests(VideoHallucer.load(folder, sets=["temporal"], frames=2), condition, ImageHashes())
    assert [a == b for a, b in zip(again.item_keys, two.item_keys, strict=True)] == [
        *(True, True, False, False, True, True)
    ]
