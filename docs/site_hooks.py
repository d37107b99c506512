"""What the site makes of pages that are plain Markdown in the repository; mkdocs.yml names this file.

- Links to folders, and to files outside of docs/, go to the repository that pyproject.toml names.
- Comments that mark figures (benchmarks/pages.py) are left out: beside a table they would end it.
- Notebooks have whole addresses, for GitHub and Colab; here pages, and Colab's badge, are the site's own.
- Pages with diagrams load Mermaid from the site itself; the package mermaidx brings npm's script along.
"""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = re.compile(r'^\[project\.urls\]$.*?^Source = "(?P<url>[^"]+)"', re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (?:figures: [^>]*?|end) -->")
DIAGRAM = re.compile(r'<pre class="mermaid">.*?</pre>', re.DOTALL)
MERMAID = "assets/mermaid.min.js"
#: of mermaid.min.js in npm's mermaid 11.16.0
MERMAID_SHA256 = "74d7c46dabca328c2294733910a8aa1ed0c37451776e8d5295da38a2b758fb9b"
#: Colab's badge, and the site's own in its place: a page loads nothing from elsewhere.
BADGE, OWN_BADGE = "https://colab.research.google.com/assets/colab-badge.svg", "assets/open-in-colab.svg"
LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>(?![a-z]+:)[^()\s#]+)(?P<anchor>#[^()\s]*)?\)")


def repository() -> str:
    """The address that pyproject.toml names."""
    found = REPOSITORY.search((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError("pyproject.toml has no Source under [project.urls], where links to sources go")
    return found["url"].rstrip("/")


def link_sources(markdown: str, page: Path, docs: Path, url: str) -> str:
    """A page whose links to files outside of `docs` go to the repository."""

    def link(match: re.Match[str]) -> str:
        target = (page.parent / match["target"]).resolve()
        if not target.exists() or (target.is_file() and target.is_relative_to(docs)):
            return match[0]  # mkdocs warns of what is not there
        kind = "tree" if target.is_dir() else "blob"
        place = f"{kind}/main/{target.relative_to(ROOT).as_posix()}{match['anchor'] or ''}"
        return f"[{match['text']}]({url}/{place})"

    return LINK.sub(link, markdown)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs for every page."""
    markdown = COMMENT.sub("", markdown)
    return link_sources(markdown, Path(page.file.abs_src_path), Path(config.docs_dir).resolve(), repository())


def mermaid_script() -> bytes:
    """The script that draws diagrams.

    Raises:
        ValueError: mermaidx brings another one.
    """
    spec = find_spec("mermaidx")
    if spec is None or spec.origin is None:
        raise ValueError("the site needs mermaidx: pip install 'regaze[docs]'")
    script = (Path(spec.origin).parent / "assets" / "mermaid.js").read_bytes()
    if (found := hashlib.sha256(script).hexdigest()) != MERMAID_SHA256:
        raise ValueError(
            f"mermaidx has another mermaid.js, {found}: compare it with npm's and note its digest"
        )
    return script


def on_files(files: Any, *, config: Any) -> None:
    """Called by mkdocs with all files of the site."""
    files.append(File.generated(config, MERMAID, content=mermaid_script()))


def link_pages(html: str, page: Any, files: Any, url: str) -> str:
    """A notebook's page whose links to pages in the repository, and whose badge, are the site's."""

    def link(match: re.Match[str]) -> str:
        target = files.get_file_from_path(match["path"])
        there = f"{target.url_relative_to(page.file)}{match['anchor'] or ''}" if target else match["whole"]
        return f'href="{there}"'

    address = rf'href="(?P<whole>{re.escape(url)}/blob/main/docs/(?P<path>[^"#]+)(?P<anchor>#[^"]*)?)"'
    return re.sub(address, link, html).replace(
        BADGE, files.get_file_from_path(OWN_BADGE).url_relative_to(page.file)
    )


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs with the content of a page: what diagrams need."""
    if page.file.src_uri.endswith(".ipynb"):
        html = link_pages(html, page, files, repository())
    if 'class="mermaid"' not in html:
        return html
    html = DIAGRAM.sub(r'<div class="diagram">\g<0></div>', html)
    script = files.get_file_from_path(MERMAID)
    return f'<script src="{script.url_relative_to(page.file)}"></script>\n{html}'
