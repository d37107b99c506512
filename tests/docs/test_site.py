"""The site is built without a warning, fits a phone, and needs nothing from elsewhere."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import Browser, headless
from paths import DOCS, ROOT
from scripts import load_script

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
VERSION = "0.2"


def test_links_to_sources_go_to_the_repository():
    hooks = load_script(DOCS / "site_hooks.py")
    page, url = DOCS / "guide" / "running.md", "https://example.org/regaze"

    def linked(target: str) -> str:
        return hooks.link_sources(f"See [it]({target}).", page, DOCS, url)

    assert linked("../../SECURITY.md#what") == f"See [it]({url}/blob/main/SECURITY.md#what)."
    assert linked("../../tests") == f"See [it]({url}/tree/main/tests)."
    assert linked("../studies/seeing") == f"See [it]({url}/tree/main/docs/studies/seeing)."
    page = DOCS / "studies" / "maps.md"
    assert linked("seeing") == f"See [it]({url}/tree/main/docs/studies/seeing)."
    for kept in ("speech.md", "../gallery.md#text", "../../no.md", "https://example.org"):
        assert linked(kept) == f"See [it]({kept})."
    assert hooks.repository().startswith("https://")


def test_entries_that_share_a_paragraph_are_told_apart():
    apart = load_script(DOCS / "site_docstrings.py").one_entry_per_paragraph
    text = """One line.

    Args:
        rows: of a block: all. layers, heads: which of
            them. unknown: no parameter.

    Raises:
        InputError: no rows. ShapeError: rows of
        another shape.

    More."""
    assert apart(inspect.cleandoc(text), {"rows", "layers", "heads"}) == inspect.cleandoc(
        """One line.

        Args:
            rows: of a block: all.
            layers, heads: which of them. unknown: no parameter.

        Raises:
            InputError: no rows.
            ShapeError: rows of another shape.

        More."""
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of one version, in a folder as mike makes it."""
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder / VERSION)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    versions = [{"version": VERSION, "title": VERSION, "aliases": ["stable"]}]
    (folder / "versions.json").write_text(json.dumps(versions), encoding="utf-8")
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Where the site is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{VERSION}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    pytest.importorskip("selenium", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium or chromedriver is not installed (Debian: chromium, chromium-driver)")
    driver = headless(CHROMIUM, DRIVER)
    yield Browser(driver, tmp_path_factory.mktemp("pages"))
    driver.quit()


def resize(browser: Browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


#: What sticks out of the window and is in nothing that scrolls.
STICKS_OUT = """const scrolls = (each) => {
  for (let up = each; up; up = up.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(up).overflowX)) return true;
  return false;
};
return [...document.querySelectorAll('.md-content *')]
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 1 && !scrolls(each))
  .map((each) => `${each.tagName} ${each.textContent.slice(0, 40)}`)
  .concat(document.documentElement.scrollWidth > innerWidth ? ['the page'] : [])"""
NOT_SHOWN = "return [...document.images].filter((each) => !each.naturalWidth).map((each) => each.src)"


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_pages_fit_a_phone_and_are_complete(site, address, browser, step):
    pages = sorted(path.parent.relative_to(site / VERSION) for path in (site / VERSION).rglob("index.html"))
    assert len(pages) > 30
    resize(browser, 400)
    found = {}
    for page in pages[::step]:
        browser.driver.get(f"{address}{page.as_posix()}/")
        browser.wait("document.readyState === 'complete'")
        elsewhere = [
            url
            for url in browser.requests()
            if not url.startswith((address.removesuffix(f"{VERSION}/"), "blob:"))
        ]
        wrong = browser.run(STICKS_OUT) + browser.run(NOT_SHOWN) + elsewhere + browser.complaints()
        if wrong:
            found[page.as_posix()] = wrong
    assert found == {}


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_search_finds_a_method(address, browser, width):
    resize(browser, width)
    browser.driver.get(address)
    browser.wait("document.readyState === 'complete'")
    browser.click(".md-header label[for='__search']" if width < 600 else ".md-search__input")
    browser.wait("document.activeElement.matches('.md-search__input')")
    browser.press("vcd")
    links = "[...document.querySelectorAll('.md-search-result__link')]"
    browser.wait(f"{links}.some((each) => each.href.match(/reference.methods.*#vcd$/))")


@pytest.mark.slow
@pytest.mark.browser
def test_diagrams_are_drawn(address, browser):
    resize(browser, 1280)
    browser.driver.get(f"{address}guide/architecture/")
    browser.wait("document.querySelector('div.mermaid')?.offsetHeight > 300")
    assert browser.run("return document.querySelector('pre.mermaid')") is None
