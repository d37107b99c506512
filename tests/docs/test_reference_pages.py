"""The pages of the reference that come from the registries are those of the code as it is now."""

from __future__ import annotations

import pytest
from paths import DOCS
from scripts import load_script


@pytest.fixture(scope="module")
def reference():
    return load_script(DOCS / "reference_pages.py")


@pytest.mark.parametrize("name", ["cli.md", "benchmarks.md", "scorers.md"])
def test_a_page_is_what_the_registry_says(reference, name):
    written = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name](), "run: python docs/reference_pages.py"


def test_help_is_as_the_command_prints_it(reference):
    assert "| `-h, --help` | Show" in reference.command("inspect")


def test_text_that_markdown_would_take_for_markup(reference):
    assert reference.plain("a <b> | c * d") == r"a \<b> \| c \* d"
    assert reference.plain("attn_implementation and `a | b <c>`") == "attn_implementation and `a | b <c>`"
    assert (
        reference.linked("Li, arXiv 2305.10355") == "Li, [arXiv:2305.10355](https://arxiv.org/abs/2305.10355)"
    )
