"""The HTML file of a page: assets/page.html with the data, the style and the scripts put into it."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from markupsafe import Markup

from regaze.visible import html_environment

#: The scripts run one after the other in one scope.
_STYLE, _SCRIPTS = "viewer.css", ("weights.js", "panels.js", "viewer.js", "keys.js", "build.js")


def render(content: dict[str, Any]) -> str:
    """The page of some content, as the script expects it.

    Texts of the prompt occur only in the JSON, where the template's `tojson` escapes "<", ">" and "&", and in
    the escaped title. The content security policy allows this style and this script, and no request.
    """
    environment = html_environment("regaze.toolkit.viewer", "assets")
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    style, script = (
        _source(environment, _STYLE),
        '"use strict";\n' + "\n".join(_source(environment, name) for name in _SCRIPTS),
    )
    return environment.get_template("page.html").render(
        content=content,
        policy=(
            f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
        ),
        style=Markup(style),  # a file of this package
        script=Markup(script),
    )


def _source(environment: Any, name: str) -> str:
    """The text of an asset, which is not a template itself."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _digest(text: str) -> str:
    """The name of an inline style or script in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
