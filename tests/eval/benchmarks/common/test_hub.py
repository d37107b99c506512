"""Data sets of the Hugging Face hub: rows with their images on disk, and files."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from PIL import Image

from regaze.errors import InputError
from regaze.eval.benchmarks.common import hub


def test_hub_rows_have_their_images_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
        return [
            {"image": red, "question": "q"},
            {"image": None, "question": "r"},
            {"image": blue, "question": "s"},
            {"image": red.copy(), "question": "t"},
        ]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = list(hub.read_rows("some/set", split="test"))
    assert calls == [(("some/set",), {"split": "test"})]
    with Image.open(rows[0].image) as picture:
        assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert rows[1].image is None
    assert rows[3].image == rows[0].image != rows[2].image  # one picture: one cluster, one prefix
    assert rows[0].values == {"question": "q"}
    assert rows[0].source == "some/set test[0]"
    assert len(list(hub.read_rows("some/set", split="test", limit=1))) == 1


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(InputError, match=r"some/set \(test\) cannot be loaded from the hub: offline"):
        list(hub.read_rows("some/set", split="test"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'regaze\[eval\]'"):
        list(hub.read_rows("some/set", split="test"))


def test_files_are_fetched_by_their_names(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repository, **options):
        calls.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "data.json").touch()
    folder = hub.fetch_files("some/set", ["data.json", "images/*"], optional=["more/*"], revision="v2")
    assert folder == tmp_path
    options = {
        "repo_type": "dataset",
        "revision": "v2",
        "allow_patterns": ["data.json", "images/*", "more/*"],
    }
    assert calls == [("some/set", options)]
    with pytest.raises(InputError, match=r"some/set on the hub .* has no videos/\*; .*--data FOLDER"):
        hub.fetch_files("some/set", ["data.json", "videos/*"])


def test_offline_the_files_are_those_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    place, commit = tmp_path / "datasets--some--set", 20 * "ab"
    for path, text in (("refs/main", commit), (f"snapshots/{commit}/data.json", "[]")):
        (place / path).parent.mkdir(parents=True)
        (place / path).write_text(text)
    assert (hub.fetch_files("some/set", ["data.json"]) / "data.json").read_text() == "[]"
    with pytest.raises(InputError, match=r"other/set at v2 cannot be fetched from the hub: .*--data FOLDER"):
        hub.fetch_files("other/set", ["data.json"], revision="v2")
