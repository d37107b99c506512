"""Text of files, models, judges and plug-ins as it is shown: nothing in it acts on what shows it.

A terminal obeys control characters, Markdown and HTML have their signs, and marks of direction make a text
read as another one. `visible` is for terminals, `markdown` for Markdown, `html_environment` and `render_page`
for pages; cells of tables are written by `regaze.eval.files.table_text`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

#: Categories of characters that are not seen: controls, formats, halves of pairs, separators of lines.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: Letters without a shape, and code points that no XML may hold.
_UNSEEN_TOO = frozenset("\u115f\u1160\u3164\uffa0\ufffe\uffff")
#: What scripts such as Persian and Hindi, and pictures of several people, are spelt with.
_JOINERS = "\u200c\u200d"

# What is Markdown in a line: signs of emphasis, code, tags, formulas and strikethrough; brackets that a link
# or a definition could follow; entities; addresses that GitHub makes links of; a backslash that would escape.
_SIGNS = re.compile(
    r"""[`*~<$|] | (?<![^\W_])_ | _(?![^\W_]) | \](?=[(\[:]) | (?<=\])[(\[:] | !(?=\[) | (?<=!)\[ | \[(?=\^)
      | &(?=\#?\w+;) | (?<=[a-z]):(?=//) | (?<=www)\. | \\(?=[!-/:-@\[-`{-~]|$)""",
    re.VERBOSE | re.IGNORECASE,
)
#: What begins a heading, a list, a quotation or a rule.
_START = re.compile(r"#{1,6}(?=\s|$)|>|\+(?=\s|$)|-(?=[\s-]|$)|(?<=\d)[.)](?=\s|$)")


def visible(text: str, keep: str = "\n\t") -> str:
    r"""`text` with a `\u....` in the place of each character that is not seen, as JSON spells it.

    A JSON text stays one, with the same value. Args: keep: characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or not _is_unseen(c) else _escaped(c) for c in text)


def one_line(text: str, most: int = 2_000) -> str:
    """`text` in one line of at most about `most` characters, the middle of a longer one left out."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 200]} ... {text[-200:]}"


def markdown(text: str) -> str:
    """`text` in one line of Markdown that shows it: no tag, picture, link, table or formula."""
    line = visible(" ".join(text.split()), _JOINERS)
    start = re.match(r"\d{0,9}", line)
    assert start is not None  # it may be empty
    first = _START.match(line, start.end())
    if first and (first[0] in ".)") == bool(start[0]):
        head, rest = line[: first.start()], line[first.start() :]
        return f"{head}\\{rest[0]}{_SIGNS.sub(_backslash, rest[1:])}"
    return _SIGNS.sub(_backslash, line)


def file_names(texts: Iterable[str], most: int = 80) -> dict[str, str]:
    """Names of files by the texts that they are made of: different ones, without what systems refuse.

    What is refused or not seen becomes "__", as lmms-eval does it; a long text ends in a hash of the whole.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for text in texts:
        name = re.sub(r'["<>:/|\\?*\[\]\n\t]+', "__", visible(text))
        if len(name.encode()) > most or not name.strip("._ "):
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            name = f"{name.encode()[:most].decode(errors='ignore').strip('. ')}-{digest}"
        stem, number = name, 2
        while name.casefold() in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.casefold())
        names[text] = name
    return names


def html_environment(package: str, folder: str = "", **options: Any) -> Environment:
    """Templates of a package, which show every value as text; options of jinja2's `Environment`."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return visible(value, f"\n\t{_JOINERS}") if is_text else value

    return Environment(loader=PackageLoader(package, folder), autoescape=True, finalize=shown, **options)


def render_page(
    package: str,
    folder: str,
    template: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    **content: Any,
) -> str:
    """A page of a template in a folder of a package, with its style and scripts put into it.

    The template has them as `style` and `script`, and as `policy` the content security policy: this style and
    this script, pictures as data, and no request. JSON is compact, with "<", ">" and "&" escaped.

    Args:
        styles, scripts: files of the same folder; the scripts run one after the other in one scope.
        content: further variables of the template.
    """
    from markupsafe import Markup

    environment = html_environment(package, folder)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    assert environment.loader is not None
    source = environment.loader.get_source  # the files are no templates themselves
    style = "\n".join(source(environment, name)[0] for name in styles)
    script = "\n".join(['"use strict";', *(source(environment, name)[0] for name in scripts)])
    allowed = f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    return environment.get_template(template).render(
        **content,
        policy=f"default-src 'none'; img-src data:; {allowed}",
        style=Markup(style),  # files of the package
        script=Markup(script),
    )


def _digest(text: str) -> str:
    """The name of an inline style or script in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN or character in _UNSEEN_TOO


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _backslash(found: re.Match[str]) -> str:
    return "&lt;" if found[0] == "<" else f"\\{found[0]}"
