"""MMStar: the goldens of its three scorers, options in three shapes, its files, the demo's questions."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math

import pytest
from PIL import Image

from regaze.errors import InputError
from regaze.eval.benchmarks.mmstar.benchmark import Mmstar
from regaze.eval.benchmarks.mmstar.questions import SHAPES, join_options, split_options
from regaze.eval.benchmarks.mmstar.scorers import read_official
from regaze.eval.files import table_text

EXACT = {"rel": 1e-12}


@pytest.fixture(scope="module")
def published(shared, tmp_path_factory):
    """The published questions, with the released answers of LLaVA-NeXT-34B."""
    folder = tmp_path_factory.mktemp("mmstar")
    source = shared / "benchmarks/data/mmstar/questions_and_released_answers.jsonl.gz"
    (folder / "MMStar.jsonl.gz").write_bytes(source.read_bytes())
    rows = [json.loads(line) for line in gzip.decompress(source.read_bytes()).decode().splitlines()]
    return Mmstar.load(folder), {str(row["index"]): row["prediction"] for row in rows}


@pytest.fixture(scope="module")
def cases(shared, published):
    """{case: (expected figures, answers in the order of the questions)}."""
    bench, released = published
    folder = shared / "goldens/benchmarks/mmstar"
    found = {}
    for case, figures in json.loads((folder / "expected.json").read_text()).items():
        path = folder / f"{case}.predictions.json.gz"
        if "every_answer" in figures:
            answers = [figures["every_answer"]] * len(bench.items)
        else:
            by_index = json.loads(gzip.decompress(path.read_bytes())) if path.exists() else released
            answers = [by_index[item.id] for item in bench.items]
        found[case] = figures, answers
    return found


def scorer_of(bench, name):
    return next(scorer for scorer in bench.scorers() if scorer.name == name)


def test_official_figures_are_the_golden_ones(published, cases):
    bench, references = published[0], [item.reference for item in published[0].items]
    assert bench.scorers()[0].name == "official"
    for expected, answers in cases.values():
        scorer = scorer_of(bench, "official")
        figures = scorer.score(references, answers)
        details = scorer.details(scorer.count(references, answers).sum(0))
        golden = dict(expected["official_MMStar_eval"])
        assert figures.pop("accuracy") == pytest.approx(golden.pop("final score"), **EXACT)
        assert {**figures, **details} == pytest.approx(golden, **EXACT)


def test_figures_of_lmms_eval_are_the_golden_ones(published, cases):
    bench, references = published[0], [item.reference for item in published[0].items]
    for expected, answers in cases.values():
        figures = scorer_of(bench, "lmms-eval").score(references, answers)
        golden = dict(expected["lmms_eval_mmstar"])
        assert figures.pop("accuracy") == pytest.approx(golden.pop("share_right"), **EXACT)
        assert figures == pytest.approx(golden, **EXACT)


def test_the_published_figure_of_the_released_answers(published, cases):
    bench, references = published[0], [item.reference for item in published[0].items]
    _, answers = cases["llava_next_yi_34b_released"]
    assert 100 * scorer_of(bench, "official").score(references, answers)["accuracy"] == pytest.approx(
        52.07, abs=0.005
    )
    for name in ("vlmevalkit", "regaze"):  # mostly bare letters, which all read alike
        assert scorer_of(bench, name).score(references, answers)["accuracy"] == pytest.approx(
            0.5207, abs=0.01
        )


def test_what_no_reader_can_read_is_counted(published):
    bench, references = published[0], [item.reference for item in published[0].items]
    figures = scorer_of(bench, "regaze").score(references, ["", "I cannot tell."] * (len(references) // 2))
    assert figures["unreadable"] == 1.0
    assert figures["accuracy"] == 0.0


def test_all_published_questions_hold_options(published):
    bench, _ = published
    assert len(bench.items) == 1500
    assert sorted({len(item.reference.options) for item in bench.items}) == [3, 4]
    by_index = {item.id: item for item in bench.items}
    assert by_index["49"].reference.options == ("The first image", "The second image", "nan", "nan")
    assert by_index["49"].question == "Which image is more brightful?" + by_index["49"].question[30:]
    for item in bench.items:
        assert item.image.name == f"{item.id}.jpg"
    ranked = Mmstar(bench.items, likelihood=True)
    assert ranked.items[49].options == ("The first image", "The second image")
    for item in ranked.items:
        assert item.reference.options["ABCD".index(item.label)] in item.options
        assert item.options[-1] != "nan"
    assert ranked.prompt(ranked.items[49]) == "Which image is more brightful?"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_three_shapes_are_read_as_they_are_made(shape):
    options = ("a dog, B or not", "nan", "T-shirt", "A: on")
    text = join_options("Hint: choose.\nQuestion: What is (A)?", options, shape)
    assert split_options(text, "here") == ("Hint: choose.\nQuestion: What is (A)?", options)
    assert split_options(join_options("What?", options[:2], shape) + " \n", "here")[1] == options[:2]


@pytest.mark.parametrize(
    "text", ["What?", "What?\nOptions: A: dog", "(A) dog\n(B) cat", "\n(A) dog\n(B) cat"]
)
def test_a_question_without_options_is_named(text):
    with pytest.raises(InputError, match="here: expected a question that ends in"):
        split_options(text, "here")


def test_a_subset_has_our_figures_and_lmms_eval_s_but_no_official_ones(published):
    bench = Mmstar(published[0].items[:40])
    scores = bench.score({"plain": [item.label for item in bench.items]}, seed=0)["all"]
    names = [name for name in scores if isinstance(scores[name], dict)]
    assert names == ["regaze", "official", "lmms-eval", "vlmevalkit"]
    assert scores["regaze"]["plain"]["accuracy"]["value"] == 1.0
    assert scores["lmms-eval"]["plain"]["average"]["value"] == 1.0
    assert math.isnan(scores["official"]["plain"]["accuracy"]["value"])


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Because", "B"),
        ("(c)", "C"),
        ("Option d", "D"),
        ("the answer is a dog", "A"),
        ("**B**", ""),
        ("", ""),
    ],
)
def test_the_official_reading(answer, letter):
    assert read_official(answer) == letter


ROW = {
    "index": 7,
    "question": "Which?\nOptions: A: dog, B: cat",
    "answer": "B",
    "category": "math",
    "l2_category": "geometry",
}


def write_table(folder, *rows):
    columns = list(rows[0])
    table = [columns, *([row[column] for column in columns] for row in rows)]
    (folder / "MMStar.tsv").write_text(table_text(table, "\t"))


def test_a_table_brings_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    file = io.BytesIO()
    Image.effect_noise((400, 400), 90).save(file, format="png")
    encoded = base64.b64encode(file.getvalue()).decode()
    assert len(encoded) > 2**17  # longer than a field of other tables may be
    write_table(tmp_path, {**ROW, "image": encoded}, {**ROW, "index": 8, "image": encoded})
    bench = Mmstar.load(tmp_path)
    assert [item.id for item in bench.items] == ["7", "8"]
    assert bench.items[0].image == bench.items[1].image
    assert bench.items[0].image.read_bytes() == file.getvalue()
    assert [item.image for item in Mmstar.load(tmp_path, blind=True).items] == [None, None]
    for text, message in (
        ("no picture!", "the picture is not base64 text"),
        ("bm8gcGljdHVyZQ==", "the base64 text is no JPEG, PNG or WebP picture"),
    ):
        write_table(tmp_path, {**ROW, "image": text})
        with pytest.raises(InputError, match=rf"MMStar\.tsv:3: {message}"):
            Mmstar.load(tmp_path)


def test_pictures_may_lie_beside_the_questions(tmp_path):
    (tmp_path / "MMStar.jsonl").write_text(json.dumps(ROW))
    item = Mmstar.load(tmp_path).items[0]
    assert item.image == tmp_path / "images/7.jpg"
    assert item.max_new_tokens == 32
    official, lettered = (Mmstar.load(tmp_path, style=style) for style in ("official", "lmms-eval"))
    assert official.prompt(item) == f"Question: {ROW['question']}\n"
    suffix = "\nAnswer with the option's letter from the given choices directly"
    assert lettered.prompt(item) == ROW["question"] + suffix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer": "C"},
            r"MMStar\.jsonl:1: expected a number as index and the letter of one of the 2 options",
        ),
        ({"index": "x"}, r"MMStar\.jsonl:1: expected a number as index"),
        ({"question": "Which?"}, r"MMStar\.jsonl:1: expected a question that ends in"),
        ({"question": "<image>\nWhich?\n(A) a\n(B) b"}, r"MMStar\.jsonl:1: <image> cannot be part"),
        ({"l2_category": ""}, r"MMStar\.jsonl:1: 'l2_category' must be a non-empty string"),
    ],
)
def test_malformed_questions_are_named_with_their_line(tmp_path, change, message):
    (tmp_path / "MMStar.jsonl").write_text(json.dumps({**ROW, **change}))
    with pytest.raises(InputError, match=message):
        Mmstar.load(tmp_path)


def test_a_folder_without_questions_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no mmstar\.parquet or MMStar\.tsv or MMStar\.jsonl"):
        Mmstar.load(tmp_path)


def test_the_demo_asks_one_question_about_each_scene():
    bench = Mmstar.of_demo()
    assert len({item.image for item in bench.items}) == len(bench.items) == 120
    for item in bench.items:
        question, options = split_options(item.question, item.source)
        assert bench.prompt(item) == question
        assert item.options == options == item.reference.options
        assert len(set(options)) == 4
    right = [item.reference.options["ABCD".index(item.label)] for item in bench.items]
    scores = bench.score({"plain": right}, seed=0)
    assert list(scores) == ["all"]
    assert scores["all"]["regaze"]["plain"]["accuracy"]["value"] == 1.0
    assert scores["all"]["regaze"]["plain"]["unreadable"]["value"] == 0.0
    assert {item.question.count("\n") for item in Mmstar.of_demo(likelihood=False).items} == {1, 4, 5}
