"""Whatever text there is, every writer keeps its structure, and nothing unseen reaches the terminal."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from regaze.cli import console
from regaze.eval import files
from regaze.eval.report.markdown import markdown_table, to_markdown
from regaze.eval.report.report import to_html
from regaze.eval.report.sections import Section
from regaze.toolkit import plot
from regaze.visible import file_names, html_environment, markdown, one_line, visible

HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07 \x9b2J \x7f\b\r",
    "\u202egnp.exe \u2066a\u2069 \u200b\u200d\ufeff \u2028\u2029 \U000e0041",
    "\udcff \ud800",
    "<script>alert(1)</script><img src=//host/x onerror=a> <!-- --> &lt; &#60; ]]>",
    "![a](http://host/b.png) [a](b) [a]: http://host [^1]: x <http://host> http://host www.host.org",
    "a | b \\| c \\",
    "# a\n- b\n1. c\n> d\n---\n```\ne\n",
    "*a* **b** _c_ __d__ ~~e~~ `f` $g$ d_e_f a_b",
    '"\' onmouseover=x style="',
    "{{ 7 * 7 }} {% raw %} [bold]x[/bold] [/] :smile:",
    '=HYPERLINK("http://host")',
    "$x_{$",
)  # fmt: skip
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=()), max_size=30),
    st.text("\\|[]()!<>*_`~&#-+=.:/1aw\n \t\"'$;@", max_size=30),
)
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def unseen(text: str, keep: str = "\n\t") -> list[str]:
    return [c for c in text if unicodedata.category(c) in UNSEEN and c not in keep]


# What is seen -------------------------------------------------------------------------------------------


@given(texts)
def test_nothing_unseen_stays(text):
    shown = visible(text)
    assert unseen(shown) == []
    assert visible(shown) == shown
    assert (shown == text) or unseen(text) or set(text) & set("\u115f\u1160\u3164\uffa0\ufffe\uffff")
    assert visible("naïve 中文 ½ 🙂 a\tb\n") == "naïve 中文 ½ 🙂 a\tb\n"


@given(st.recursive(texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=5))
@example("\U000e0041\u202e\x7f\x9b")
def test_json_stays_what_it_is(value):
    assert json.loads(visible(json.dumps(value, ensure_ascii=False))) == value


def test_a_long_text_is_one_short_line():
    assert one_line("a\n\u2028 b\x85c") == "a b c"
    assert one_line("x" * 10_000 + "end").endswith("x ... " + "x" * 197 + "end")
    assert len(one_line("x" * 10_000)) < 2_020


# The terminal -------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(texts)
@pytest.mark.parametrize("colours", [None, "1"])
def test_the_terminal_shows_text_as_it_is(colours, text):
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", out)
        if colours:
            patch.setenv("FORCE_COLOR", colours)
        console.echo(text)
        console.info(text)
        console.error(text)
        console.warning(UserWarning(text))
        console.stdout().print(text)
        with console.progress() as report:
            report(text, 1, 2)
    shown = (
        re.sub("\x1b\\[[0-9;]*[A-Za-z]|\x1b\\[\\?25[lh]|\r", "", out.getvalue())
        if colours
        else out.getvalue()
    )
    assert unseen(shown) == []
    if "[" in text and unseen(text) == [] and len(text.split()) == len(text.split(" ")):
        assert f"regaze: error: {one_line(text)}" in shown


def test_an_output_that_lacks_characters_shows_their_numbers(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="ascii"))
    console.echo("naïve 中")
    console.stdout().print("é")
    assert out.getvalue() == rb"na\xefve \u4e2d" + b"\n" + rb"\xe9" + b"\n"


# Markdown -----------------------------------------------------------------------------------------------

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def plain(text: str) -> str:
    """A text in one line, as Markdown shows it."""
    return visible(" ".join(text.split()), "\u200c\u200d")


def shown_texts(source: str, tag: str) -> list[str]:
    """The texts of all elements of a kind; anything but text in them is an error."""
    tokens = PARSER.parse(source)
    found = []
    for before, token in itertools.pairwise(tokens):
        if token.type == "inline" and before.tag == tag:
            assert {child.type for child in token.children} <= {"text", "text_special"}, token.children
            found.append("".join(child.content for child in token.children))
    return found


@given(texts, texts, texts)
@example("a\\", "|", "b")
@example("[", "](x)", "![")
def test_markdown_shows_every_text_as_it_is(one, two, three):
    assert shown_texts(markdown(one), "p") == ([plain(one)] if plain(one) else [])
    table = markdown_table([["", one, two], [three, two, one]])
    tokens = [token.type for token in PARSER.parse(table)]
    assert tokens.count("table_open") == 1
    assert (tokens[0], tokens[-1]) == ("table_open", "table_close")
    assert shown_texts(table, "th") == ["", plain(one), plain(two)]
    assert shown_texts(table, "td") == [plain(three), plain(two), plain(one)]


@given(texts, texts)
def test_a_report_in_markdown_has_its_sections_and_no_others(title, text):
    section = Section(
        title, paragraphs=[text], table=[["", text]], plot=Path("p/a b.svg"), links=[(text, "x.html")]
    )
    source = to_markdown([section, Section("end")], Path("p"))
    kinds = [
        token.type for token in PARSER.parse(source) if token.type.endswith("_open") and token.level == 0
    ]
    paragraphs = 1 + bool(plain(text))
    opened = [*["paragraph_open"] * paragraphs, "table_open", "paragraph_open", "heading_open"]
    assert kinds == ["heading_open", *opened]
    inline = [child for token in PARSER.parse(source) for child in token.children or ()]
    assert [child.attrs["href"] for child in inline if child.type == "link_open"] == ["x.html"]
    assert [child.attrs["src"] for child in inline if child.type == "image"] == ["a%20b.svg"]
    assert not [child for child in inline if child.type == "html_inline"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("84.2 [82.5, 85.7]", "84.2 [82.5, 85.7]"),
        ("half | blind", r"half \| blind"),
        ("no_repeat_ngram_size=2, <b>", "no_repeat_ngram_size=2, &lt;b>"),
        ("see http://host and www.host.org", r"see http\://host and www\.host.org"),
        ("- 3.5", r"\- 3.5"),
        ("-3.5 points", "-3.5 points"),
        ("12. of May", r"12\. of May"),
        ("C:\\a\\b", "C:\\a\\b"),
    ],
)
def test_markdown_escapes_what_it_must_and_little_else(text, expected):
    assert markdown(text) == expected


# Pages and figures --------------------------------------------------------------------------------------


class Structure(HTMLParser):
    """Tags with their attributes, and the texts between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[object] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag):
        self.tags.append(tag)

    def handle_comment(self, data):
        self.tags.append(data)

    def handle_data(self, data):
        self.texts.append(data)


@given(texts)
def test_pages_show_every_text_as_it_is(text):
    def page(text: str) -> Structure:
        section = Section(
            text, paragraphs=[text], table=[[text, "x"], ["y", text]], links=[(text, "a b.html")]
        )
        return Structure(to_html([section]))

    found, usual = page(text), page("text")
    assert found.tags == usual.tags
    assert "".join(found.texts).count(visible(text, "\n\t\u200c\u200d").strip()) >= 6
    template = html_environment("regaze.cli").get_template("failures.html")

    class Shown:
        benchmark = item = text
        answers = {text: text}  # noqa: RUF012
        pages = {text: "a b.html"}  # noqa: RUF012

    links = Structure(template.render(failures=[Shown], conditions=[text]))
    assert [tag for tag in links.tags if "a" in (tag, tag[0])] == [("a", ["href"]), "a"]
    assert not {"script", "img"} & {tag[0] for tag in links.tags if isinstance(tag, tuple)}


@settings(max_examples=12, deadline=None)
@given(texts)
@example("".join(HOSTILE))
@example("x" * 100_000)
def test_figures_show_every_text_as_it_is(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("figures") / "a.svg"
    plot.forest_plot(
        {text: {text: (0.1, 0.0, 0.2), "b": (0.2, 0.1, 0.3)}}, label=text[:50].replace("$", ""), path=path
    )
    tree = ElementTree.parse(path)
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    described = {"svg", "metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title"}
    assert names <= described | {"defs", "style", "g", "path", "use", "clipPath", "rect"}
    assert path.stat().st_size < 2_000_000


# Tables -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.sampled_from("\t,"))
@example([("a\rb", "\r\n"), ("'=1", "''"), ("\x1b", "-5")], "\t")
def test_tables_are_read_as_they_were_written(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.mktemp("tables") / "a.tsv"
    text = files.table_text([("a", "b"), *rows], delimiter)
    path.write_bytes(text.encode())
    read = [tuple(row.values()) for _, row in files.read_table(path, ("a", "b"), delimiter=delimiter)]
    # What the reader refuses is written as a number.
    assert read == [tuple(re.sub("[\0-\x08\x0e-\x1f\ud800-\udfff]", spelt, c) for c in row) for row in rows]
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
        for cell in row:
            assert not re.match(r"\s*[=+\-@\t\r]", cell) or re.fullmatch(
                r"[+-]?[\d.,]+([eE][+-]?\d+)?%?", cell
            )


def spelt(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def test_formulas_become_text_and_numbers_stay_numbers():
    cells = [
        "=1+1",
        "+cmd",
        "-2+3",
        "@SUM",
        "\tx",
        "\rx",
        "'=1",
        " =1",
        "-5",
        "+3.5",
        "-1e-3",
        "5 %",
        "-",
        "a=b",
    ]
    written = [
        row[0] for row in csv.reader(io.StringIO(files.table_text([[c] for c in cells], ","), newline=""))
    ]
    assert [new for new, old in zip(written, cells, strict=True) if new == old] == [
        *("-5", "+3.5", "-1e-3", "5 %", "a=b")
    ]
    assert all(new == f"'{old}" for new, old in zip(written, cells, strict=True) if new != old)


# Names of files -----------------------------------------------------------------------------------------


@given(st.lists(texts, unique=True, max_size=5))
@example(["a/b", "a:b", "A__b", "", ".", "..", "x" * 500, "x" * 501, "\0"])
def test_names_of_files_are_different_and_can_be_used(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("names")
    names = file_names(["scene 1-vcd", *labels])
    assert names["scene 1-vcd"] == "scene 1-vcd"
    for name in names.values():
        (folder / name).write_text("x")
        assert unseen(name, "") == []
    assert len(list(folder.iterdir())) == len(names)
