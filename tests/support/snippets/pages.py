"""A page as blocks, each with the markers in front of it. CONTRIBUTING.md has their form.

sybil reads the pages: of the libraries for this it alone has lexers for every language and takes evaluators
of one's own, in the order of the page. mktestdocs runs Python and shell blocks and neither compares nor
skips; pytest-examples knows Python alone. sybil's collector is not used: a page is one test here, since its
blocks build on each other, and pages lie outside of the folders that pytest collects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

#: Pages whose code runs, wherever they are moved: a new page is found by itself.
PATTERNS = (
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "examples/README.md",
    "regaze/demo/model/README.md",
    "docs/**/*.md",
)

#: `<!-- skip: reason -->`, or of the lines alone that contain a text: <!-- skip `text`: reason -->.
SKIP = re.compile(r"skip(?: `(?P<only>[^`]+)`)?: (?P<reason>.+)", re.DOTALL)
_MARKER = re.compile(
    r"^[ \t]*<!-- (?P<text>(?:skip|slow|setup|output)\b.*?)\s*-->[ \t]*\n", re.MULTILINE | re.DOTALL
)
_TABLE = re.compile(r"\n?(?P<table>(?:\|.*\|[ \t]*\n)+)")
_INFO = re.compile(r"[ \t]*(?P<language>[\w+-]*)(?P<options>[^\n]*)\n")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Skip:
    """Why a block, or its lines that contain `only`, cannot run here."""

    reason: str
    only: str | None = None


@dataclass(frozen=True)
class Block:
    """What stands between two fences, or in a marker.

    Attributes:
        language: of the fence; "setup" for Python that readers do not see, "table" for a table of output.
        title: the file that the block is, where its fence names one.
        slow: runs among the slow tests only.
    """

    language: str
    source: str
    title: str | None = None
    skips: tuple[Skip, ...] = ()
    slow: bool = False

    def skipped(self, line: str = "") -> Skip | None:
        """The marker that leaves this line out, or (without a line) the whole block."""
        return next((skip for skip in self.skips if skip.only is None or (line and skip.only in line)), None)


Evaluator = Callable[[Example], "str | None"]


def pages() -> list[Path]:
    """All pages, in the same order everywhere."""
    return sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def is_generated(page: Path) -> bool:
    """Whether it is written from the code, whose own tests try what it shows (tests/cli/test_examples.py)."""
    return page.is_relative_to(ROOT / "docs/reference")


def examples(page: Path, evaluator: Evaluator | None = None) -> list[Example]:
    """The blocks of a page in order, as sybil's examples whose `parsed` is a `Block`.

    Raises:
        ValueError: a marker that is not directly in front of what it is about, or of another form.
    """
    return list(Sybil([lambda document: _regions(document, evaluator)]).parse(page).examples())


def _regions(document: Document, evaluator: Evaluator | None) -> Iterator[Region]:
    fences = list(RawFencedCodeBlockLexer(_INFO)(document))
    covered = [range(fence.start, fence.end) for fence in fences]
    markers = [
        match
        for match in _MARKER.finditer(document.text)
        if not any(match.start() in fence for fence in covered)
    ]
    ahead: list[str] = []  # markers whose block has not come yet
    end = 0
    for token in sorted([*fences, *markers], key=_start):
        if ahead and document.text[end : _start(token)].strip():
            break
        if isinstance(token, Region):
            block = _fenced(token.lexemes, ahead)
            ahead, end = [], token.end
            yield Region(token.start, end, block, evaluator)
        elif token["text"].startswith("setup"):
            end = token.end()
            yield Region(token.start(), end, Block("setup", token["text"].removeprefix("setup")), evaluator)
        elif token["text"] == "output":
            table = _TABLE.match(document.text, token.end())
            if table is None:
                raise ValueError(f"{document.path}: no table after {token[0].strip()}")
            end = table.end()
            yield Region(token.start(), end, Block("table", table["table"]), evaluator)
        else:
            ahead.append(token["text"])
            end = token.end()
    if ahead:
        raise ValueError(f"{document.path}: no block directly after <!-- {ahead[-1]} -->")


def _start(token: Region | re.Match[str]) -> int:
    return token.start if isinstance(token, Region) else token.start()


def _fenced(lexemes: Mapping[str, str], markers: Sequence[str]) -> Block:
    title = _TITLE.search(lexemes["options"])
    skips = [SKIP.fullmatch(text) for text in markers if text != "slow"]
    if None in skips:
        raise ValueError(f"not the form of a marker: {markers}")
    return Block(
        lexemes["language"],
        str(lexemes["source"]),
        title and title[1],
        tuple(Skip(" ".join(match["reason"].split()), match["only"]) for match in skips),
        "slow" in markers,
    )
