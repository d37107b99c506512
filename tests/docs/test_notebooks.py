"""The notebooks run, show what is stored in them, and open in Colab."""

from __future__ import annotations

import base64
import io
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import yaml
from paths import DOCS, ROOT
from PIL import Image
from scripts import load_script

run_notebooks = load_script(DOCS / "run_notebooks.py")
PATHS = run_notebooks.paths()
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
#: Another processor may round otherwise, and one of forty answers then differ.
SMALLEST_DIFFERENCE = 0.03
every = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def repository() -> str:
    """owner/name on GitHub."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return str(citation["repository-code"]).removeprefix("https://github.com/")


def pictures(notebook: nbformat.NotebookNode) -> list[Image.Image]:
    found = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            for kind in ("image/png", "image/jpeg"):
                if kind in data:
                    found.append(Image.open(io.BytesIO(base64.b64decode(data[kind]))).convert("RGB"))
    return found


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What each output shows, without pictures."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [
        each.get("text", "")
        + "".join(each.get("data", {}).get(kind, "") for kind in ("text/plain", "text/html"))
        for each in outputs
    ]


def test_there_are_three():
    assert [path.stem for path in PATHS] == ["compare-methods", "see-where-it-looked", "write-a-method"]


@every
def test_a_reader_sees_all_without_running_it(path):
    """With outputs, small, and nothing of the machine that made them."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 300_000
    assert not re.search(r"/(?:home|root|tmp|work|usr)/", "\n".join(texts(notebook)))
    for cell in code_cells(notebook):
        assert cell.execution_count, cell.source
        assert all(output.output_type != "error" for output in cell.outputs)
    assert max(picture.width for picture in pictures(notebook)) <= 1000
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.cells[0].source.startswith("# ")  # the title of its page


@every
def test_colab_opens_it_and_installs_what_is_missing(path):
    notebook = nbformat.read(path, as_version=4)
    here = f"https://colab.research.google.com/github/{repository()}/blob/main/docs/notebooks/{path.name}"
    assert f"]({here})" in notebook.cells[0].source
    first = code_cells(notebook)[0].source
    assert 'if importlib.util.find_spec("regaze") is None' in first
    assert f'%pip install --quiet "regaze @ git+https://github.com/{repository()}"' in first


@every
def test_links_between_pages_hold(path):
    notebook = nbformat.read(path, as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    place = f"https://github.com/{repository()}/blob/main/"
    linked = re.findall(rf"\]\({re.escape(place)}([^)#]+)", prose)
    assert linked
    assert [link for link in linked if not (ROOT / link).is_file()] == []
    assert "](../" not in prose  # Colab does not know where that is


def test_on_the_site_they_link_pages_of_the_site():
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    hooks, url = load_script(DOCS / "site_hooks.py"), "https://example.org/regaze"

    class Files(dict):
        get_file_from_path = dict.get

    def file(path: str) -> SimpleNamespace:
        return SimpleNamespace(url_relative_to=lambda _: f"../../{path}")

    files = Files({"gallery.md": file("gallery/"), hooks.OWN_BADGE: file(hooks.OWN_BADGE)})
    assert (DOCS / hooks.OWN_BADGE).is_file()
    page = f'<a href="{url}/blob/main/docs/gallery.md#text"> <img src="{hooks.BADGE}"> <a href="{url}/i">'
    assert hooks.link_pages(page, SimpleNamespace(file=None), files, url) == (
        f'<a href="../../gallery/#text"> <img src="../../{hooks.OWN_BADGE}"> <a href="{url}/i">'
    )
    for path in PATHS:
        assert f"[![Open in Colab]({hooks.BADGE})]" in nbformat.read(path, as_version=4).cells[0].source


def test_what_a_slow_cell_prints_bit_by_bit_is_one_output(tmp_path):
    notebook = nbformat.v4.new_notebook(metadata=nbformat.read(PATHS[0], as_version=4).metadata)
    notebook.cells.append(nbformat.v4.new_code_cell("for n in (1, 2):\n    print(n, flush=True)"))
    nbformat.write(notebook, tmp_path / "prints.ipynb")
    ran = run_notebooks.execute(tmp_path / "prints.ipynb", tmp_path)
    assert texts(ran) == ["1\n2\n"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=[pytest.mark.exhaustive] * (path.stem != "see-where-it-looked")
        )
        for path in PATHS
    ],
)
def test_a_new_run_shows_what_is_stored(path, tmp_path):
    """Where it carries figures: a caption may end in another way, for words that are as likely."""
    stored, ran = nbformat.read(path, as_version=4), run_notebooks.execute(path, tmp_path)
    for old, new in zip(texts(stored), texts(ran), strict=True):
        new, old = ("\n".join(filter(NUMBER.search, text.splitlines())) for text in (new, old))
        assert NUMBER.sub("#", new) == NUMBER.sub("#", old)
        numbers = [[float(each) for each in NUMBER.findall(text)] for text in (new, old)]
        np.testing.assert_allclose(*numbers, rtol=0.05, atol=SMALLEST_DIFFERENCE)
    drawn = [pictures(stored), pictures(ran)]
    for old, new in zip(*drawn, strict=True):
        assert new.size == old.size
        small = [np.asarray(each.resize((64, 64)), dtype=float) for each in (new, old)]
        assert np.abs(small[0] - small[1]).mean() < 8  # of 255
