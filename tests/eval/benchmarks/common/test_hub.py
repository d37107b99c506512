"""Rows of the Hugging Face hub, with their images on disk."""

from __future__ import annotations

import sys
from types import SimpleNamespace

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
