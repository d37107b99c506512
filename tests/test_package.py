"""What a user installs: the wheel, built by the backend that pyproject.toml names."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from regaze.version import __version__

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> list[str]:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_puts_nothing_beside_the_package(names):
    """A .pth file, or a module of another name, would act on all that runs in a user's environment."""
    assert {name.split("/")[0] for name in names} == {"regaze", f"regaze-{__version__}.dist-info"}
    assert [name for name in names if name.endswith(".pth")] == []


def test_the_wheel_holds_the_package_with_its_data(names):
    """Of the sources all that git has; nothing that tests or training leave behind."""
    there = {name for name in names if name.startswith("regaze/")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "regaze").rglob("*.py*")}
    assert {name for name in sources if "__pycache__" not in name} <= there
    assert {"regaze/py.typed", "regaze/demo/model/model.safetensors", "regaze/cli/failures.html"} <= there
    assert [name for name in there if "__pycache__" in name] == []
