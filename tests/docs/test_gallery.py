"""The gallery: its lines run as they stand there, its pictures are there and small, none is left out."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import pytest
from paths import DOCS
from scripts import load_script

from regaze.toolkit import plot

PAGE = (DOCS / "gallery.md").read_text(encoding="utf-8")
WRITTEN = re.findall(r'path="(assets/gallery/[\w.-]+)"', PAGE)
#: Drawn on another page, or no picture.
ELSEWHERE = {"cross_attention", "answer_map", "style_and_save"}


@pytest.fixture(scope="module")
def gallery():
    return load_script(DOCS / "gallery.py")


@pytest.mark.slow
def test_the_lines_run(gallery, tmp_path):
    """On the demo model; the section on text, too, where a folder of SmolLM2-135M-Instruct is named."""
    before = Path.cwd()
    smollm = os.environ.get("REGAZE_SMOLLM")
    gallery.draw(tmp_path, smollm)
    assert Path.cwd() == before
    page = PAGE if smollm else PAGE[: PAGE.index("\n## Text\n")]
    expected = re.findall(r'path="assets/gallery/([\w.-]+)"', page)
    assert len(expected) >= 12
    assert {path.name for path in tmp_path.iterdir()} == set(expected)
    assert all((tmp_path / name).stat().st_size > 1000 for name in expected)


def test_the_section_on_text_can_be_read(gallery):
    for _, code in gallery.blocks(PAGE[PAGE.index("\n## Text\n") :]):
        compile(code, "docs/gallery.md", "exec")
        for name, options in re.findall(r"plot\.(\w+)\((.*)\)", code):
            given = set(re.findall(r"\b(\w+)=", re.sub(r"\(.*?\)", "", options)))
            assert given <= set(inspect.signature(getattr(plot, name)).parameters)


def test_the_pictures_are_there_shown_and_small():
    shown = re.findall(r"!\[[^\]]+\]\((assets/gallery/[\w.-]+)\)", PAGE)
    assert shown == WRITTEN
    assert {path.name for path in (DOCS / "assets/gallery").iterdir()} == {Path(each).name for each in shown}
    sizes = [(DOCS / each).stat().st_size for each in shown]
    assert max(sizes) < 150_000
    assert sum(sizes) < 1_500_000


def test_every_picture_of_the_package_is_shown():
    functions = {name for name in plot.__all__ if inspect.isfunction(getattr(plot, name))}
    assert set(re.findall(r"plot\.(\w+)\(", PAGE)) | ELSEWHERE == functions
