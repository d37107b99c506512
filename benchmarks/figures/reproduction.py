"""The ledger of reproductions: every recipe, and what came out where somebody has run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from figures.markdown import number, table
from figures.sources import ROOT
from regaze.eval.reproduction import ledger, recipe
from regaze.eval.reproduction.ledger import Entry, Figure
from regaze.eval.reproduction.recipe import Recipe

__all__ = ["reproduction", "reproduction_counts", "reproduction_unknown"]
LEDGER = ROOT / "benchmarks/results/ledger"
#: Names of figures as tables have them.
_LABELS = {"chair_s": "CHAIR_s", "chair_i": "CHAIR_i", "f1": "F1"}


def reproduction() -> str:
    """A row per entry, and per recipe that has none."""
    entries = ledger.read_all(LEDGER)
    rows = []
    for each in recipe.load_all():
        own = [entry for entry in entries if entry.recipe == each.recipe]
        rows += [_row(each, entry) for entry in own or (None,)]
    head = ["recipe", "", "published", "trust", "here", "verdict", "where it ran"]
    return table(head, rows)


def _row(each: Recipe, entry: Entry | None) -> list[str]:
    link = f"[{each.recipe}](../../regaze/eval/reproduction/recipes/{each.recipe}.yaml)"
    columns = [link, each.about, _published(each), each.source.trust]
    if entry is None:
        return [*columns, "", "", ""]
    figures = entry.runs[0].figures
    inside = sum(figure.verdict == "inside" for run in entry.runs for figure in run.figures)
    total = sum(len(run.figures) for run in entry.runs)
    verdict = f"{entry.verdict} ({inside} of {total} figures inside)"
    if entry.recipe_sha256 != recipe.sha256_of(each.recipe):
        verdict += ", of an earlier recipe"
    return [*columns, _here(each, figures), verdict, _where(entry)]


def _published(each: Recipe) -> str:
    """The first of the recipe's figures, "random accuracy 87.1 -> 88.6"."""
    first = each.published[0]
    values = [number(value, 1) for value in (first.plain, first.method) if value is not None]
    return f"{first.split} {_LABELS.get(first.figure, first.figure)} {' → '.join(values)}"


def _here(each: Recipe, figures: Iterable[Figure]) -> str:
    """The same figure as measured."""
    first = each.published[0]
    own = [f for f in figures if (f.split, f.figure) == (first.split, first.figure)]
    return " → ".join(_estimate(f) for f in own if f.condition != "gain")


def _estimate(figure: Figure) -> str:
    if figure.value is None:
        return "undefined"
    ends = figure.interval
    interval = f" [{number(ends[0], 1)}, {number(ends[1], 1)}]" if ends else ""
    return f"{number(figure.value, 1)}{interval}"


def _where(entry: Entry) -> str:
    device = entry.machine.get("gpu") or f"CPU, {entry.machine['cpus']} cores"
    versions = entry.versions
    return (
        f"{entry.created[:10]}, {device}, torch {versions['torch']}, transformers {versions['transformers']}"
    )


def reproduction_counts() -> str:
    """How many recipes there are, by trust, and how many have an entry."""
    recipes, entries = recipe.load_all(), ledger.read_all(LEDGER)
    trust = Counter(each.source.trust for each in recipes if not each.recipe.startswith("demo-"))
    published = ", ".join(f"{trust[letter]} of trust {letter}" for letter in sorted(trust))
    verdicts = Counter(entry.verdict for entry in entries)
    found = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) or "none"
    return (
        f"{len(recipes)} recipes: {sum(trust.values())} of published tables ({published}), and "
        f"{len(recipes) - sum(trust.values())} of the bundled model. Entries: {found}."
    )


def reproduction_unknown() -> str:
    """What sources leave open, and what is another way here."""
    rows = []
    for each in recipe.load_all():
        unknown = [f"`{field}`: {taken}" for field, taken in each.unknown.items()]
        if unknown or each.differs:
            rows.append([each.recipe, "; ".join(unknown), "; ".join(each.differs)])
    return table(["recipe", "not stated by the source: taken here", "known to be another way here"], rows)
