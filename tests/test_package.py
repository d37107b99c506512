"""What a user installs: wheel and sdist, built by the backend that pyproject.toml names."""

from __future__ import annotations

import email.message
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from fresh_environment import install
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from regaze.version import __version__

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    return Path(built)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    (built,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    return Path(built)


@pytest.fixture(scope="module")
def names(wheel) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"regaze-{__version__}.dist-info/METADATA"))


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


def test_package_indexes_take_both(wheel, sdist):
    for tool in (
        ["twine", "check", "--strict", str(wheel), str(sdist)],
        ["check_wheel_contents", str(wheel)],
    ):
        done = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_sdist_makes_the_same_wheel(sdist, names, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert {"CITATION.cff", "SECURITY.md", "tests", "docs", "Makefile"} <= {
        p.name for p in unpacked.iterdir()
    }
    (again,) = WheelBuilder(str(unpacked)).build(directory=str(tmp_path))
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(names)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="links what is installed")
def test_the_readme_runs_where_the_wheel_alone_is_installed(wheel, tmp_path):
    python = install(wheel, tmp_path / "environment")
    (block,) = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    here = tmp_path / "here"
    here.mkdir()
    for code in (
        "import importlib.util as u; assert not any(map(u.find_spec, ['pytest', 'nltk', 'ruff']))",
        block,
    ):
        done = subprocess.run(
            [python, "-I", "-c", code], cwd=here, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['Yes']\n")
    assert "Record: 1 trace" in done.stdout
    made = {"heat.png", "roles.svg", "record.html", "record.safetensors"}
    assert {path.name for path in here.iterdir()} == made


def test_the_extra_all_is_every_extra_for_users(metadata):
    """The harnesses apart, which take care to install or bring much."""

    def brought(extra: str) -> set[str]:
        required = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
        return {
            one.name for one in required if one.marker and f'"{extra}"' in str(one.marker).replace("'", '"')
        }

    users = set(metadata.get_all("Provides-Extra")) - {"all", "dev", "docs", "mutation", "harness", "inspect"}
    assert {"eval", "triton"} <= users
    assert brought("all") == set().union(*map(brought, users))


def test_the_citation_is_of_this_version_in_both_places(metadata):
    citation = yaml.safe_load(read("CITATION.cff"))
    (bibtex,) = re.findall(r"```bibtex\n(.*?)```", read("README.md"), re.DOTALL)
    fields = dict(re.findall(r"(\w+)\s*= \{+(.*?)\}+,?$", bibtex, re.MULTILINE))
    assert citation["version"] == fields["version"] == __version__
    assert citation["title"] == fields["title"]
    assert citation["license"] == fields["license"] == metadata["License-Expression"]
    assert [author["name"] for author in citation["authors"]] == [fields["author"]]


def test_hooks_run_what_make_lint_runs():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    (group,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [hook["entry"] for hook in group["hooks"]] == commands


@pytest.mark.parametrize("name", ["bug", "method", "model-family"])
def test_issue_forms_have_what_forms_need(name):
    """Of GitHub's rules: texts to begin with, and parts of known types with unique ids and labels."""
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert form["name"]
    assert form["description"]
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in asked} <= {"input", "textarea", "dropdown", "checkboxes"}
    for unique in ([part["id"] for part in asked], [part["attributes"]["label"] for part in asked]):
        assert len(set(unique)) == len(asked) > 0
