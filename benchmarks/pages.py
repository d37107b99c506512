"""Write the figures on pages from the results that measured them.

    python benchmarks/pages.py                  # write every page anew
    python benchmarks/pages.py --check          # exit 1, naming what is not as the results say
    python benchmarks/pages.py --measure demo   # measure first what needs the bundled model alone

A region of a page is what stands between `<!-- figures: NAME -->` and `<!-- end -->`: a table, sentences, or
one number within a line. The function of that name in `figures/` makes it, from files that
`figures/sources.py` lists with the command that measures each.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from figures import RENDERERS
from figures.sources import FILES, ROOT, SOURCES, Source

REGION = re.compile(r"(<!-- figures: (?P<name>[^>]*?) -->)(?P<body>.*?)(?P<end><!-- end -->)", re.DOTALL)
#: a table's row with an interval, which only a measurement can have
INTERVAL = re.compile(r"^\|.*\d [(]?\[[-+]?[\d.]+, [-+]?[\d.]+\]", re.MULTILINE)
#: a table that the tests compare with what the command above it prints
OUTPUT = re.compile(r"<!-- output -->\n\n?(?:\|.*\n)+")
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "docs/**/*.md",
    "regaze/demo/model/README.md",
)


def pages(root: Path = ROOT) -> list[Path]:
    """Every page that may hold figures."""
    return sorted(path for pattern in PAGES for path in root.glob(pattern))


def rendered(text: str) -> str:
    """A page with its regions as the results say.

    Raises:
        KeyError: a region that no function makes.
    """

    def region(match: re.Match[str]) -> str:
        name, *arguments = match["name"].split()
        body = RENDERERS[name](*arguments)
        if "\n" in match["body"]:
            body = f"\n{body.strip()}\n"
        return match[1] + body + match["end"]

    return REGION.sub(region, text)


def problems(root: Path = ROOT) -> Iterator[str]:
    """What is wrong: stale and broken regions, functions without a region, results without a page."""
    FILES.clear()
    named: set[str] = set()
    for path in pages(root):
        text, page = path.read_text(encoding="utf-8"), path.relative_to(root)
        regions = list(REGION.finditer(text))
        named |= {match["name"].split()[0] for match in regions}
        if text.count("<!-- figures:") != len(regions) or text.count("<!-- end -->") != len(regions):
            yield f"{page}: a region that does not end, or ends twice"
            continue
        if INTERVAL.search(OUTPUT.sub("", REGION.sub("", text))):
            yield f"{page}: a table with intervals that no region makes"
        for match in regions:
            if match["name"].split()[0] not in RENDERERS:
                yield f"{page}: nothing makes the figures {match['name']!r}"
            elif rendered(match[0]) != match[0]:
                yield f"{page}: {match['name']!r} is not what the results say: python benchmarks/pages.py"
    known = {source.file for source in SOURCES if (ROOT / source.file).exists()}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks/results").glob("*.json")}
    yield from (f"{file}: sources.py names no command" for file in sorted(there - FILES - known))
    yield from (f"no page shows the figures {name!r}" for name in sorted(set(RENDERERS) - named))
    yield from (f"{file}: a page reads it, and sources.py names no command" for file in sorted(FILES - known))
    yield from (f"{file}: no page reads it" for file in sorted(known - FILES))


def write() -> None:
    """Write every page that has regions."""
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if (new := rendered(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


def measure(kind: str) -> None:
    """Run the commands of the sources of a kind, one after the other."""
    for source in SOURCES:
        if source.kind == kind:
            run(source)


def run(source: Source) -> None:
    """Measure one file anew."""
    print(f"{source.file}: {source.command}", flush=True)
    command = source.command.replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, check=True, cwd=ROOT)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    kinds = sorted({source.kind for source in SOURCES})
    parser.add_argument("--measure", choices=kinds, help="measure the results of this kind before")
    given = parser.parse_args()
    if given.check:
        found = list(problems())
        print("\n".join(found))
        sys.exit(bool(found))
    if given.measure:
        measure(given.measure)
    write()


if __name__ == "__main__":
    main()
