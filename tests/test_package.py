"""What a user installs: wheel and sdist, built by the backend that pyproject.toml names."""

from __future__ import annotations

import email.message
import re
import subprocess
import sys
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from fresh_environment import install
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from readme_block import python_block
from readme_renderer import markdown

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
    """The demo's model comes with its model card; nothing is there that tests or training leave behind."""
    there = {name for name in names if name.startswith("regaze/")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "regaze").rglob("*.py*")}
    assert {name for name in sources if "__pycache__" not in name} <= there
    assert {"regaze/py.typed", "regaze/cli/failures.html"} <= there
    assert {f"regaze/demo/model/{name}" for name in ("model.safetensors", "README.md")} <= there
    assert [name for name in there if "__pycache__" in name or "test" in Path(name).parts] == []


def test_the_wheel_holds_no_file_that_git_ignores(names):
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "regaze"]
    known = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if known.returncode:
        pytest.skip("no checkout of git")
    assert {name for name in names if name.startswith("regaze/")} <= set(known.stdout.splitlines())


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
    block = python_block(ROOT / "README.md")
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

    apart = {"all", "dev", "docs", "mutation", "harness", "inspect", "vllm"}
    users = set(metadata.get_all("Provides-Extra")) - apart
    assert {"eval", "triton"} <= users
    assert brought("all") == set().union(*map(brought, users))


def test_the_start_page_says_what_every_extra_brings(metadata):
    table = read("docs/start.md").partition("## Extras")[2]
    named = [name for cell in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in cell.split(", ")]
    assert sorted(named) == sorted(f"`{extra}`" for extra in metadata.get_all("Provides-Extra"))


def test_the_citation_is_of_this_version_in_both_places(metadata):
    citation = yaml.safe_load(read("CITATION.cff"))
    (bibtex,) = re.findall(r"```bibtex\n(.*?)```", read("README.md"), re.DOTALL)
    fields = dict(re.findall(r"(\w+)\s*= \{+(.*?)\}+,?$", bibtex, re.MULTILINE))
    assert citation["version"] == fields["version"] == __version__
    assert citation["repository-code"] == fields["url"]
    assert str(citation["date-released"])[:4] == fields["year"]
    assert citation["title"] == fields["title"]
    assert citation["license"] == fields["license"] == metadata["License-Expression"]
    assert [author["name"] for author in citation["authors"]] == [fields["author"]]


def test_hooks_run_what_make_lint_runs():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    (group,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [hook["entry"] for hook in group["hooks"]] == commands


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", ".github/workflows/*.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/*.yml"),
        ("vendor.dependabot", ".github/dependabot.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/*[!g].yml"),
        ("vendor.github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_github_and_citations_fit_their_schemas(schema, files):
    found = [str(path) for path in sorted(ROOT.glob(files))]
    assert found
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--default-filetype",
        "yaml",
        "--builtin-schema",
        schema,
    ]
    done = subprocess.run([*command, *found], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_name_files_that_exist():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    named = re.findall(
        r"(?:uses: \./|python |run: |constraint )((?:\.ci|\.github|tests)/\S+|\S+\.txt)", "".join(texts)
    )
    assert {".ci/run", ".github/workflows/package.yml", "tests/support/readme_block.py"} <= set(named)
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_python_that_is_named_is_tried(metadata):
    jobs = yaml.safe_load(read(".github/workflows/package.yml"))["jobs"]
    tried = jobs["install"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    named = [each.removeprefix(prefix) for each in metadata.get_all("Classifier") if each.startswith(prefix)]
    assert [each for each in named if "." in each] == tried
    assert metadata["Requires-Python"] == f">={tried[0]}"


def test_the_changelog_begins_with_this_version_and_what_is_not_released():
    headings = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d\d-\d\d))?$", read("CHANGELOG.md"), re.MULTILINE)
    released = yaml.safe_load(read("CITATION.cff"))["date-released"]
    assert headings[:2] == [("Unreleased", ""), (__version__, str(released))]


def test_security_says_that_this_version_gets_fixes():
    assert f"| {__version__.rpartition('.')[0]} | yes |" in read("SECURITY.md")


# The page of a package index -------------------------------------------------------------------------------


class Targets(HTMLParser):
    """What links lead to, and where pictures are."""

    def __init__(self, page: str):
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "href":
                self.links.append(value)
            elif name in ("src", "srcset"):
                self.pictures.append(value)


def test_links_and_pictures_work_on_the_page_of_a_package_index(metadata):
    """It shows the description alone, with no files of the repository beside it."""
    page = markdown.render(metadata.get_payload(), stream=sys.stderr)
    assert page is not None
    targets = Targets(page)
    source = dict(url.split(", ") for url in metadata.get_all("Project-URL"))["Source"]
    files = f"{source}/blob/v{__version__}/"
    raw = files.replace("github.com", "raw.githubusercontent.com").replace("/blob/", "/")
    assert len(targets.links) > 10
    assert targets.pictures
    for start, found in ((files, targets.links), (raw, targets.pictures)):
        ours = [each for each in found if not each.startswith("#") and source.split("/")[-1] in each]
        assert [each for each in found if not each.startswith(("https://", "mailto:", "#"))] == []
        assert [each for each in ours if each.startswith(start)]
        paths = [each.removeprefix(start).partition("#")[0] for each in ours if each.startswith(start)]
        assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_page_of_a_package_index_has_readmes_code_and_no_marks(metadata):
    blocks = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
    text = metadata.get_payload()
    assert blocks.findall(text) == blocks.findall(re.sub(r"<!--.*?-->", "", read("README.md")))
    assert "<!--" not in text


def test_one_place_says_where_the_repository_is(metadata):
    """Whatever else names it agrees with pyproject.toml's project.urls."""
    source = dict(url.split(", ") for url in metadata.get_all("Project-URL"))["Source"]
    assert yaml.safe_load(read("CITATION.cff"))["repository-code"] == source
    owner = source.removeprefix("https://github.com/")
    for path in [*ROOT.glob("*.*"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.yml")]:
        if path.is_file() and path.suffix in (".md", ".toml", ".yml", ".cff"):
            text = path.read_text(encoding="utf-8")
            named = re.findall(r"(?:github\.com|githubusercontent\.com)/([\w-]+/regaze)\b", text)
            assert set(named) <= {owner}, path
