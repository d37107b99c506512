"""The blocks of one page in order: in one namespace, in one folder."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import itertools
import json
import os
import sys
import textwrap
import traceback
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import yaml
from sybil import Example

from snippets import output, pages, programs, regaze_command, shell

#: Languages that are for people or for other programs.
UNREAD = frozenset({"bibtex", "diff", "html", "mermaid"})


class PageRun:
    """Evaluates the blocks of a page for sybil: each returns what is wrong, or None.

    Attributes:
        names: the namespace of the Python blocks, which is a module's, since dataclasses look theirs up.
        printed: what the last block printed; None where it did not run, or not in full.
    """

    def __init__(self, page: Path, folder: Path, *, slow: bool) -> None:
        self.page, self.folder, self.slow = page, folder, slow
        self.module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
        self.names = self.module.__dict__
        self.printed: str | None = None
        examples = pages.examples(page)
        #: Lines of the blocks below which the page shows what they print.
        self.compared = {
            example.line
            for example, after in itertools.pairwise(examples)
            if after.parsed.language in ("text", "table")
        }

    @contextlib.contextmanager
    def open(self) -> Iterator[PageRun]:
        """The folder is the current one, and modules in it can be imported."""
        folder, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
        sys.modules[self.module.__name__] = self.module
        sys.path.insert(0, str(self.folder))
        os.chdir(self.folder)
        try:
            yield self
        finally:
            os.chdir(folder)
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                origin = getattr(sys.modules[name], "__file__", None)
                if sys.modules[name] is self.module or (origin and Path(origin).parent == self.folder):
                    del sys.modules[name]

    def __call__(self, example: Example) -> str | None:
        block: pages.Block = example.parsed
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # a prop, which may be a link
            path.write_text(block.source, encoding="utf-8")
        evaluate = getattr(self, f"_{block.language}", None)
        if evaluate is None:
            return None if block.language in UNREAD else f"no check of the language {block.language!r}"
        try:
            return evaluate(block, example)
        except Exception:
            return traceback.format_exc()

    def _runs(self, block: pages.Block) -> bool:
        return block.skipped() is None and (self.slow or not block.slow)

    def _python(self, block: pages.Block, example: Example) -> str | None:
        # Empty lines in front, so that a traceback names the lines of the page.
        before = "\n" * example.line
        code = compile(before + textwrap.dedent(block.source), str(self.page), "exec")
        self.printed = None
        if block.skipped():
            _import_all(ast.parse(textwrap.dedent(block.source)))
        if not self._runs(block):
            return None
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout), regaze_command.time_limit(regaze_command.SECONDS):
            exec(code, self.names)
        self.printed = stdout.getvalue()
        return None

    _setup = _python

    def _pycon(self, block: pages.Block, example: Example) -> str | None:
        self.printed = None
        if not self._runs(block):
            return None
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        test = doctest.DocTestParser().get_doctest(
            block.source, self.names, self.page.name, str(self.page), example.line
        )
        report = io.StringIO()
        doctest.DocTestRunner(optionflags=flags).run(test, out=report.write, clear_globs=False)
        self.names.update(test.globs)
        return report.getvalue() or None

    def _bash(self, block: pages.Block, example: Example) -> str | None:
        commands = shell.commands(block.source)
        wrong, printed, whole = [], [], True
        for command in commands:
            runs = self._runs(block) and block.skipped(str(command)) is None and command.words[0] == "regaze"
            if runs:
                text, problem = regaze_command.run(command.words[1:], few=example.line not in self.compared)
                printed.append(text)
            else:
                problem, whole = programs.check(command.words), False
            if problem:
                wrong.append(f"line {example.line + command.line}: {command}: {problem}")
        self.printed = "".join(printed) if whole else None
        return "\n".join(wrong) or None

    def _text(self, block: pages.Block, example: Example) -> str | None:
        return self._compare(block, list(output.missing(block.source, self.printed or "")))

    def _table(self, block: pages.Block, example: Example) -> str | None:
        return self._compare(block, list(output.missing_rows(block.source, self.printed or "")))

    def _compare(self, block: pages.Block, lines: list[str]) -> str | None:
        if self.printed is None or not self._runs(block) or not lines:
            return None
        return "\n".join(["was not printed:", *lines, "but:", self.printed])

    def _json(self, block: pages.Block, example: Example) -> str | None:
        try:
            json.loads(block.source)
        except json.JSONDecodeError:
            for line in block.source.splitlines():  # JSON Lines
                json.loads(line)
        return None

    def _yaml(self, block: pages.Block, example: Example) -> str | None:
        yaml.safe_load(block.source)
        return None

    def _toml(self, block: pages.Block, example: Example) -> str | None:
        if sys.version_info >= (3, 11):
            import tomllib

            tomllib.loads(block.source)
        return None


def _import_all(tree: ast.Module) -> None:
    """Run the imports of a block, but of packages that are not installed.

    Raises:
        ImportError: a module or a name in it is not there.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        if all(find_spec(module.partition(".")[0]) for module in modules):
            exec(compile(ast.Module([node], []), "imports", "exec"), {})
