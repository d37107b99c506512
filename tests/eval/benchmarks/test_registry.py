"""Benchmarks by name, what each says of itself, and their copies on the hub."""

from __future__ import annotations

import io
import json
import re
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from PIL import Image

from regaze.errors import InputError
from regaze.eval import benchmarks, catalogue
from regaze.eval.benchmarks.common.base import BaseBenchmark, Item, limit_items


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_every_benchmark_says_its_licence_and_where_its_images_come_from(name):
    cls = benchmarks.load_class(name)
    assert issubclass(cls, BaseBenchmark)
    for text in (cls.about.title, cls.about.paper, cls.about.licence, cls.about.images, cls.about.home):
        assert text.strip()
    for remote in cls.about.files:
        assert re.match(r"https://(raw\.githubusercontent\.com|huggingface\.co)/", remote.url)
        assert remote.sha256 is None or re.fullmatch("[0-9a-f]{64}", remote.sha256)
        # What is pinned by a hash is also asked for at a fixed revision.
        assert remote.sha256 is None or re.search("/[0-9a-f]{40}/", remote.url)
    assert len({remote.path for remote in cls.about.files}) == len(cls.about.files)


def test_pinned_hashes_are_those_of_the_published_files(shared):
    data = shared / "benchmarks/data"
    listed = {
        match
        for path in data.glob("*/SOURCES.md")
        for match in re.findall(r"\b[0-9a-f]{64}\b", path.read_text())
    }
    pinned = {
        remote.sha256
        for name in benchmarks.NAMES
        for remote in benchmarks.load_class(name).about.files
        if remote.sha256
    }
    assert len(pinned) >= 20
    assert pinned <= listed


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(InputError, match="unknown benchmark 'popes'; did you mean 'pope'"):
        benchmarks.load_class("popes")
    with pytest.raises(
        InputError, match=r"MME has no files to download here; it is at https://github.*on the hub"
    ):
        benchmarks.download("mme")


def items(*groups):
    return [Item(str(i), "s", None, "?", "") for i, _ in enumerate(groups)]


def test_a_limit_keeps_groups_whole():
    listed = items("a", "a", "b", "b", "c")
    groups = dict(zip(map(str, range(5)), "aabbc", strict=True))
    assert len(limit_items(listed, None)) == 5
    assert [item.key for item in limit_items(listed, 3)] == ["0", "1", "2"]
    assert [item.key for item in limit_items(listed, 3, groups)] == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match="limit 0"):
        limit_items(listed, 0)


PICTURE = Image.new("RGB", (4, 4), "red")
ROWS = {
    "pope": {"question": "Is there a dog in the image?", "answer": "yes", "category": "popular"},
    "chair": {"question_id": 9, "gt_object": ["dog"]},
    "mme": {
        "question_id": "a.jpg",
        "question": "Is it? Please answer yes or no.",
        "answer": "Yes",
        "category": "count",
    },
    "hallusionbench": {
        "category": "VS",
        "subcategory": "map",
        "visual_input": "1",
        "set_id": "0",
        "figure_id": "1",
        "question_id": "0",
        "question": "Is it?",
        "gt_answer": "1",
        "gt_answer_details": "It is.",
    },
    "mmhal": {"question_type": "other", "image_content": ["dog"], "question": "What?", "gt_answer": "A dog."},
    "vstar": {
        "text": "What?\n(A) a dog\n(B) a cat",
        "label": "A",
        "category": "direct_attributes",
        "question_id": 1,
    },
    "mmstar": {
        "index": 1,
        "question": "What?\nOptions: A: a dog, B: a cat",
        "answer": "A",
        "category": "math",
        "l2_category": "geometry",
    },
    "mm-vet": {"question_id": "v1_0", "question": "What?", "answer": "A dog.", "capability": "rec,ocr"},
    "textvqa": {"question_id": 1, "question": "what?", "answers": ["dog"] * 10},
}


class Judge:
    name = "silent"


@pytest.mark.parametrize("name", ROWS)
def test_every_hub_copy_is_read(name, tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    rows = [{"image": PICTURE, **ROWS[name]} for _ in range(2)]
    if isinstance(rows[0].get("question_id"), int):
        rows[1]["question_id"] += 1
    if "index" in rows[0]:
        rows[1]["index"] += 1
    if name == "mm-vet":
        rows[1]["question_id"] = "v1_1"
    if "set_id" in rows[0]:
        rows[1]["set_id"] = "1"
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *args, **kwargs: rows))
    options = {
        "mmhal": {"judge": Judge()},
        "mm-vet": {"judge": Judge()},
        "chair": {"synonyms": tmp_path / "synonyms.txt"},
    }.get(name, {})
    (tmp_path / "synonyms.txt").write_text("dog, puppy\n")
    cls = benchmarks.load_class(name)
    bench = cls.from_hub(**options)
    assert len(bench.items) == 2
    for item in bench.items:
        assert item.image is not None
        assert item.image.is_file()
        assert bench.prompt(item).strip()
        assert item.reference is not None


@pytest.mark.parametrize("form", ["decoded", "bytes", "record"])
def test_a_downloaded_data_set_is_read_whatever_its_pictures_are(form, tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    file = io.BytesIO()
    PICTURE.save(file, format="png")
    picture = {"decoded": PICTURE, "bytes": file.getvalue(), "record": {"bytes": file.getvalue()}}[form]
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return [{"image": picture, **ROWS["mmstar"]}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (tmp_path / "mmstar.parquet").write_bytes(b"PAR1")
    item = benchmarks.load_class("mmstar").load(tmp_path).items[0]
    path = str(tmp_path / "mmstar.parquet")
    assert asked == [(("parquet",), {"data_files": path, "split": "train"})]
    assert Image.open(item.image).tobytes() == PICTURE.tobytes()
    assert item.source == f"{path}[0]"


YES_NO = {"yes_question": "Is it?", "no_question": "Is it not?", "task": "object"}
PHOTOGRAPH = {**YES_NO, "image_id": "9", "context": {"iac": "It rains.", "icc": "It snows."}}
CHOICE = {"text": "What?\nA. dog\nB. cat\nC. cup\nD. bus", "correct_option": "A", "category": "object"}
PAIR = {
    "basic": {"video": "a.mp4", "question": "Is it?", "answer": "yes"},
    "hallucination": {"video": "a.mp4", "question": "Is it not?", "answer": "no"},
}
INSTANCE = {
    "global_id": 5,
    "concept": "animal",
    "context_id": 3,
    "context": "It flies.",
    "factual_context": "It swims.",
    "true_statement": "Whales fly.",
    "false_statement": "Whales swim.",
    "existent_noun": "a whale",
    "non-existent_noun": "a tower",
    "best_img_id": "4",
    "aggregated_human_label_good_images": {"4": 3},
}
#: benchmark -> files of its data set on the hub, and names of what the questions show
FILES = {
    "crpe": (
        {
            "crpe_exist.jsonl": [{**CHOICE, "question_id": 0, "image": "abnormal_images/a.jpg"}],
            "crpe_relation.jsonl": [{**CHOICE, "question_id": 1, "image": "coco/val2017/b.jpg"}],
            "abnormal_images/a.jpg": None,
        },
        {"a.jpg", "b.jpg"},
    ),
    "phd": (
        {
            "data.json": [PHOTOGRAPH, {**YES_NO, "image_id": 1, "ccs_description": "odd"}],
            "images/CCS_images/1.png": None,
            "images/train2014/COCO_train2014_000000000009.jpg": None,
        },
        {"1.png", "COCO_train2014_000000000009.jpg"},
    ),
    "vlind": (
        {
            "data.json": [INSTANCE],
            "images/counterfactual/animal/3_It flies./4.jpg": None,
            "images/factual/animal/3_It swims./0.jpg": None,
        },
        {"4.jpg", "0.jpg"},
    ),
    "videohallucer": (
        {"temporal/temporal.json": [PAIR], "temporal/videos/a.mp4": None},
        {"a.mp4"},
    ),
}


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A function that puts files on a stand-in of the hub; it returns the list of the names asked for."""

    def publish(files):
        names = []
        for name, records in files.items():
            path = tmp_path / "hub" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("" if records is None else "\n".join(map(json.dumps, records)))

        def snapshot_download(repository, *, repo_type, revision, allow_patterns):
            assert (repo_type, revision) == ("dataset", "v2")
            names.extend(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns))
            return str(tmp_path / "hub")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return names

    return publish


def make(name, images=None):
    settings = {"revision": "v2"} | ({"sets": '["temporal"]'} if name == "videohallucer" else {})
    return catalogue.make_benchmark(name, data="hub", images=images, settings=settings)


@pytest.mark.parametrize("name", FILES)
def test_every_data_set_of_files_is_read_from_the_hub(name, tmp_path, fetched):
    files, shown = FILES[name]
    names = fetched(files)
    photographs = tmp_path / "photographs"
    (photographs / "coco/val2017").mkdir(parents=True)
    (photographs / "coco/val2017/b.jpg").touch()
    bench = make(name, photographs if name == "crpe" else None)
    assert sorted(names) == sorted(files)
    paths = {item.image or item.video.path for item in bench.items}
    assert all(path.is_file() for path in paths)
    assert {path.name for path in paths} == shown


@pytest.mark.parametrize("name", ["phd", "vlind", "videohallucer"])
def test_pictures_that_are_at_hand_are_not_fetched(name, tmp_path, fetched):
    names = fetched(FILES[name][0])
    bench = make(name, tmp_path / "mine")
    assert [name for name in names if not name.endswith(".json")] == []
    assert all(tmp_path / "mine" in (item.image or item.video.path).parents for item in bench.items)


def test_crpe_from_the_hub_needs_the_photographs(fetched):
    fetched(FILES["crpe"][0])
    with pytest.raises(InputError, match="none of COCO's photographs: --images FOLDER with coco/val2017"):
        make("crpe")


def test_phd_fetches_the_pictures_of_its_modes_alone(fetched):
    names = fetched(FILES["phd"][0])
    catalogue.make_benchmark("phd", data="hub", settings={"revision": "v2", "modes": '["ccs"]'})
    assert sorted(names) == ["data.json", "images/CCS_images/1.png"]
