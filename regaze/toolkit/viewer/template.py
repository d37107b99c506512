"""The HTML file of a page: assets/page.html with the data, the style and the scripts put into it."""

from __future__ import annotations

from typing import Any

from regaze.visible import render_page

_STYLE, _SCRIPTS = "viewer.css", ("weights.js", "panels.js", "viewer.js", "keys.js", "build.js")


def render(content: dict[str, Any]) -> str:
    """The page of some content, as the script expects it.

    Texts of the prompt occur only in the JSON, which is escaped, and in the escaped title.
    """
    return render_page("regaze.toolkit.viewer", "assets", "page.html", [_STYLE], _SCRIPTS, content=content)
