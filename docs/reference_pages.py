"""Write the pages of the reference that come from the registries: cli.md, benchmarks.md and scorers.md.

    python docs/reference_pages.py

A test compares them. Methods and model families have scripts of their own (regaze.interventions.methods_page,
tests/support/families_page.py).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from regaze.cli.examples import EXAMPLES
from regaze.eval import catalogue
from regaze.eval.benchmarks import NAMES
from regaze.eval.benchmarks.chair.benchmark import closed_scorer, scorers_with
from regaze.eval.benchmarks.common.scoring import Scorer

FOLDER = Path(__file__).resolve().parent / "reference"
NOTE = "*Written from the code by `python docs/reference_pages.py`; do not edit by hand.*"
# `regaze.cli` has the application under the name of its module.
APPLICATION = import_module("regaze.cli.app")
SOURCES = {
    "demo": "the demo's scenes",
    "bed": "the bed's scenes",
    "folder": "a folder with the official files",
    "hub": "a copy on the hub",
}

CLI = f"""# Command line

{NOTE}

What `regaze COMMAND -h` prints. [The guide](../guide/command-line.md) has what all commands share: real
models, names and settings, exit codes, completion.
"""

BENCHMARKS = f"""# Benchmarks

{NOTE}

`regaze benchmarks` lists them, `regaze benchmarks get NAME` downloads questions where their publisher allows
it; images are never part of regaze. `--data` says where questions come from, `--bench NAME=VALUE` sets the
options below. [Evaluation](../guide/evaluation.md) says how a run goes, [scorers](scorers.md) how answers are
graded. A benchmark that a judge grades needs `--judge`.
"""

SCORERS = f"""# Scorers

{NOTE}

A benchmark can have several scorers in use, which differ by points: all of them run, and each has its column
in results. The first is the official one, or the nearest to it that can run; *of* names the script and commit
that a scorer reproduces. Of figures in *italics* less is better.
"""


def cli() -> str:
    """All commands with their arguments and options."""
    names = APPLICATION.COMMANDS
    listed = table(["command", "does"], ([f"[`{name}`](#{name})", does] for name, does in names.items()))
    return "\n".join([CLI, listed, *map(command, names)]) + "\n"


def command(name: str) -> str:
    """The section of one command."""
    loaded = APPLICATION.load_command(name)
    context = loaded.context_class(loaded, info_name=f"regaze {name}", **loaded.context_settings)
    usage = loaded.get_usage(context).removeprefix("Usage: ")
    records = [record for each in loaded.get_params(context) if (record := each.get_help_record(context))]
    rows = [[f"`{what.replace('|', ', ')}`", plain(" ".join(text.split()))] for what, text in records]
    parts = [
        f"\n## {name}\n",
        f"```text\n{' '.join(usage.split())}\n```\n",
        plain(inspect.cleandoc(loaded.help)),
        "",
    ]
    parts.append(table(["argument or option", "means"], rows))
    if name in EXAMPLES:
        parts.append("\n".join(["\n```bash", *EXAMPLES[name], "```"]))
    return "\n".join(parts)


def benchmarks() -> str:
    """All benchmarks with their terms, sources and options."""
    classes = {name: catalogue.benchmark_class(name) for name in NAMES}
    listed = (
        [f"[`{name}`](#{name})", plain(summary(cls)), ", ".join(sources(cls))]
        for name, cls in classes.items()
    )
    return "\n".join(
        [BENCHMARKS, table(["name", "asks", "`--data`"], listed), *map(benchmark, classes, classes.values())]
    )


def benchmark(name: str, cls: Any) -> str:
    """The section of one benchmark."""
    about = cls.about
    rows = [["published", linked(about.paper)], ["home", linked(about.home)]]
    rows += [["questions", plain(about.licence)], ["images", plain(about.images)]]
    if cls.splits:
        rows.append(["splits", ", ".join(f"`{split}`" for split in cls.splits)])
    for source, options in sources(cls).items():
        what = SOURCES.get(source, "made from a long text")
        given = ", ".join(f"`{option}`" for option in options) or "no options"
        rows.append([f"`--data {source}`" if source in SOURCES else "`--data`", f"{what}; {given}"])
    return f"\n## {name}\n\n{plain(summary(cls))}\n\n" + table(["title", plain(about.title)], rows)


def scorers() -> str:
    """The scorers of all benchmarks."""
    parts = [SCORERS]
    for name in NAMES:
        rows = [
            [f"`{each.name}`", origin(each), figures(each)]
            for each in scorers_of(catalogue.benchmark_class(name))
        ]
        parts.append(f"\n## {name}\n\n" + table(["scorer", "of", "figures"], rows))
    return "\n".join(parts)


def scorers_of(cls: Any) -> list[Scorer]:
    """The scorers of a benchmark without questions, whose judge and words of objects do not matter."""
    parameters = inspect.signature(cls).parameters
    if "rules" in parameters:  # CHAIR is given its scorers
        return [*scorers_with({}), closed_scorer(())]
    given = {name: value for name, value in (("judge", object()), ("words", {})) if name in parameters}
    return list(cls(items=(), **given).scorers())


def origin(scorer: Scorer) -> str:
    return f"our own, version {scorer.version}" if scorer.version.isdigit() else plain(scorer.version)


def figures(scorer: Scorer) -> str:
    return ", ".join(
        f"*{name}*" if name in scorer.lower_is_better else name for name in map(str, scorer.metrics)
    )


def summary(cls: Any) -> str:
    """What a benchmark asks: the first paragraph of its module, without authors."""
    paragraph = (sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r" \([^()]*\d{4}[^()]*\)\.$", ".", paragraph.strip())


def sources(cls: Any) -> dict[str, list[str]]:
    """{value of --data: options of the benchmark there}."""
    constructors = {
        source: catalogue.find_constructor(cls, kind) for kind, source in catalogue.SOURCES.items()
    }
    return {
        source: sorted(catalogue.option_types(each))
        for source, each in constructors.items()
        if each is not None
    }


def linked(text: str) -> str:
    """A text whose addresses and numbers of arXiv are links."""
    text = re.sub(r"arXiv[: ](\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", plain(text))
    return re.sub(r"(?<![(\w])(https?://[^\s,;)]+)", r"<\1>", text)


def plain(text: str) -> str:
    """A text that Markdown leaves as it is."""
    return re.sub(r"([<\[*|]|(?<!\w)_|_(?!\w))(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"\\\1", text)


def table(heading: list[str], rows: Iterable[list[str]]) -> str:
    """A table of Markdown, with a line break at its end."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PAGES = {"cli.md": cli, "benchmarks.md": benchmarks, "scorers.md": scorers}


def main() -> None:
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
