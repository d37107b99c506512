"""Benchmarks by name, what each says of itself, downloads that are checked, rows of the hub."""

from __future__ import annotations

import hashlib
import re
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from regaze.errors import InputError
from regaze.eval import benchmarks
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, Item, Scored, first
from regaze.eval.benchmarks.common.download import Remote, benchmark_folder, fetch
from regaze.eval.benchmarks.pope.benchmark import PopeItems


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_every_benchmark_says_its_licence_and_where_its_images_come_from(name):
    cls = benchmarks.find(name)
    assert issubclass(cls, Scored)
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
        for remote in benchmarks.find(name).about.files
        if remote.sha256
    }
    assert len(pinned) >= 20
    assert pinned <= listed


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(InputError, match="unknown benchmark 'popes'; there are pope, popev2, chair"):
        benchmarks.find("popes")
    with pytest.raises(
        InputError, match=r"MME has no files to download here; it is at https://github.*on the hub"
    ):
        benchmarks.download("mme")


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "published.json"
    path.write_bytes(b"[1]")
    return path.as_uri(), hashlib.sha256(b"[1]").hexdigest()


def test_downloads_are_kept_and_checked(published, tmp_path):
    url, digest = published
    said = []
    remotes = [Remote(url, "sub/a.json", digest), Remote(url, "b.json", None)]
    paths = fetch(remotes, tmp_path / "cache", said.append)
    assert [path.read_bytes() for path in paths] == [b"[1]", b"[1]"]
    assert paths[0] == tmp_path / "cache/sub/a.json"
    assert "as pinned" in said[0]
    assert "no hash is published" in said[1]
    # A second time nothing is downloaded: the address may be gone.
    gone = [Remote(url.replace("published", "gone"), "sub/a.json", digest)]
    assert fetch(gone, tmp_path / "cache") == paths[:1]


def test_what_is_not_the_published_file_is_not_kept(published, tmp_path):
    url, _ = published
    with pytest.raises(InputError, match=r"has sha256 .* expected 0{64}: not the published file"):
        fetch([Remote(url, "a.json", "0" * 64)], tmp_path / "cache")
    assert not (tmp_path / "cache/a.json").exists()
    with pytest.raises(InputError, match=r"gone\.json cannot be downloaded: "):
        fetch([Remote(url.replace("published", "gone"), "a.json", None)], tmp_path / "cache")


def test_the_cache_can_be_put_elsewhere(published, tmp_path, monkeypatch):
    url, digest = published
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "elsewhere"))
    gavie = benchmarks.find("gavie")
    about = About("t", "p", "l", "i", "h", files=(Remote(url, "a.json", digest),))
    monkeypatch.setattr(gavie, "about", about)
    assert benchmarks.download("gavie") == [benchmark_folder("gavie") / "a.json"]
    assert (tmp_path / "elsewhere/benchmarks/gavie/a.json").exists()


def items(*groups):
    return [Item(str(i), "s", None, "?", "") for i, _ in enumerate(groups)]


def test_a_limit_keeps_groups_whole():
    listed = items("a", "a", "b", "b", "c")
    whole = dict(zip(map(str, range(5)), "aabbc", strict=True))
    assert len(first(listed, None)) == 5
    assert [item.key for item in first(listed, 3)] == ["0", "1", "2"]
    assert [item.key for item in first(listed, 3, whole)] == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match="limit 0"):
        first(listed, 0)


def test_hub_rows_have_their_images_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
        return [
            {"image": red, "question": "q"},
            {"image": None, "question": "r"},
            {"image": blue, "question": "s"},
            {"image": red.copy(), "question": "t"},
        ]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = list(hub.rows("some/set", split="test"))
    assert asked == [(("some/set", None), {"split": "test"})]
    with Image.open(rows[0].image) as picture:
        assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert rows[1].image is None
    assert rows[3].image == rows[0].image != rows[2].image  # one picture: one cluster, one prefix
    assert rows[0].values == {"question": "q"}
    assert rows[0].source == "some/set test[0]"
    assert len(list(hub.rows("some/set", split="test", limit=1))) == 1


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(InputError, match=r"some/set \(test\) cannot be had from the hub: offline"):
        list(hub.rows("some/set", split="test"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'regaze\[eval\]'"):
        list(hub.rows("some/set", split="test"))


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
    "textvqa": {"question_id": 1, "question": "what?", "answers": ["dog"] * 10},
}


class Judge:
    name = "silent"


@pytest.mark.parametrize("name", ROWS)
def test_every_hub_copy_is_read(name, tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    rows = [{"image": PICTURE, **ROWS[name]}, {"image": PICTURE, **ROWS[name]}]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *args, **kwargs: rows))
    options = {"mmhal": {"judge": Judge()}, "chair": {"synonyms": tmp_path / "synonyms.txt"}}.get(name, {})
    (tmp_path / "synonyms.txt").write_text("dog, puppy\n")
    cls = {"pope": PopeItems}.get(name) or benchmarks.find(name)
    bench = cls.from_hub(**options)
    assert len(bench.items) == 2
    for item in bench.items:
        assert item.image is not None
        assert item.image.is_file()
        assert bench.prompt(item).strip()
        assert item.reference is not None
