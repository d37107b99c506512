"""POPE: question files and their published versions."""

from __future__ import annotations

import gzip
import json

import pytest

from regaze.errors import InputError
from regaze.eval.benchmarks.common.scoring import compare
from regaze.eval.benchmarks.common.yes_no import OFFICIAL
from regaze.eval.benchmarks.pope.benchmark import Pope, PopeV2, read_questions
from regaze.eval.benchmarks.pope.published import FILES, SPLITS


@pytest.fixture(scope="module")
def data(shared):
    return shared / "benchmarks/data/pope"


def lay_out(data, folder):
    """The shared files as they lie after a download."""
    images = folder / "images"
    images.mkdir()
    for version in ("head", "e3e3926", "7ef3026"):
        for path in (data / version).glob("*.json.gz"):
            target = (
                folder / (version if path.name.startswith("coco") else "") / path.name.removesuffix(".gz")
            )
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(gzip.decompress(path.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def downloaded(data, tmp_path_factory):
    return lay_out(data, tmp_path_factory.mktemp("pope"))


@pytest.mark.parametrize(
    ("version", "counts", "imange"),
    [
        ("head", [3000, 3000, 3000], [0, 0, 0]),
        ("e3e3926", [2910, 3000, 3000], [144, 44, 58]),
        ("7ef3026", [3000, 3000, 3000], [0, 0, 0]),
    ],
)
def test_published_coco_versions(downloaded, version, counts, imange):
    pope = Pope.load(downloaded, version=version)
    assert [sum(item.split == split for item in pope.items) for split in SPLITS] == counts
    typos = [sum("imange" in item.question for item in pope.items if item.split == split) for split in SPLITS]
    assert typos == imange
    assert {file["version"] for file in pope.describe()["files"].values()} == {version}


@pytest.mark.parametrize("dataset", ["aokvqa", "gqa"])
def test_seem_versions(tmp_path, dataset):
    (tmp_path / "images").mkdir()
    for split in SPLITS:
        (tmp_path / FILES[dataset].format(split=split)).write_text("\n".join([GOOD] * 9))
    pope = Pope.load(tmp_path, dataset=dataset, limit=7)
    assert len(pope.items) == 21
    assert FILES[dataset].format(split="random") == pope.describe()["files"]["random"]["file"]


def test_what_is_not_published_is_refused(tmp_path):
    for wrong in ({"dataset": "flickr"}, {"version": "1"}, {"splits": ["hard"]}):
        with pytest.raises(InputError, match="POPE has the data sets coco, aokvqa, gqa, versions head"):
            Pope.load(tmp_path, **wrong)
    with pytest.raises(InputError, match=r"has no coco_pope_random\.json"):
        Pope.load(tmp_path, tmp_path)


def test_popev2_pairs_an_image_with_its_edited_copy(tmp_path):
    """Its file names the copy first, with a slash before."""
    records = [
        {"image_id": number, "image_name": f"/{folder}/{number:012d}.jpg", "target_object": "remote"}
        | {"query": "Is there a remote in the image?", "label": label}
        for number in range(46207, 46707)
        for folder, label in (("images", "No"), ("coco/train2017", "Yes"))
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(records))
    bench = PopeV2.load(tmp_path)
    assert len(bench.items) == 1000
    edited, original = bench.items[:2]
    assert (edited.label, original.label) == ("no", "yes")
    assert edited.image != original.image
    assert bench.cluster(edited) == bench.cluster(original)
    assert original.image == tmp_path / "coco/train2017/000000046207.jpg"
    assert len(PopeV2.load(tmp_path, limit=3).items) == 4
    scores = bench.score({"plain": ["yes"] * 1000}, seed=0)["popev2"]
    assert scores["official"]["plain"]["recall"]["value"] == 1.0


def test_intervals_are_over_images_and_the_shipped_scenes_are_loaded():
    pope = Pope.of_demo(limit=6)
    assert {item.split for item in pope.items} == set(SPLITS)
    labels = {"plain": [item.label for item in pope.items]}
    scores = pope.score(labels, seed=0)
    assert list(scores) == [*SPLITS, "all"]
    assert scores["all"]["regaze"]["plain"]["accuracy"]["value"] == 1.0
    references, images = [item.label for item in pope.items], [str(item.image) for item in pope.items]
    expected = compare(OFFICIAL, references, labels, clusters=images, seed=0)
    assert scores["all"]["official"] == expected


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
        (b"\xff\xfe\x00", r"q\.json:1: not UTF-8 text"),
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
