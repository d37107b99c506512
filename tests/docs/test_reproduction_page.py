"""The committed ledger: entries of the recipes as they are now, and the page that shows them."""

from __future__ import annotations

import pytest
from paths import DOCS, ROOT

from regaze.eval.reproduction import ledger, recipe, verdict
from regaze.eval.reproduction.verdict import Estimate

FOLDER = ROOT / "benchmarks/results/ledger"
ENTRIES = {path.name: ledger.read(path) for path in sorted(FOLDER.glob("*.json"))}
PAGE = (DOCS / "recipes" / "reproduce.md").read_text(encoding="utf-8")


def test_the_bundled_model_has_an_entry_for_each_of_its_recipes():
    assert {entry.recipe for entry in ENTRIES.values()} >= {
        name for name in recipe.names() if name.startswith("demo-")
    }


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_of_its_recipe_and_judged_by_the_rules(name):
    entry = ENTRIES[name]
    assert ledger.file_name(entry) == name
    made = recipe.load(entry.recipe)
    assert entry.recipe_sha256 == recipe.sha256_of(entry.recipe)
    assert entry.deviations[: len(ledger.deviations(made))] == ledger.deviations(made)
    published = {(each.split, each.figure): each for each in made.published}
    for run in entry.runs:
        for figure in run.figures:
            of = published[figure.split, figure.figure]
            value, theirs, own = ledger.published_values(of, figure.condition)
            assert (figure.published, figure.low, figure.high) == pytest.approx((value, *theirs), abs=1e-4)
            ours = Estimate(figure.value, *(figure.interval or (None, None)))
            judged = verdict.judge(
                ours,
                theirs,
                own=own if made.interval.questions == "same" else None,
                figures=len(run.figures),
                is_gain=figure.condition == "gain",
            )
            assert judged == (figure.verdict, figure.reason)


def test_the_page_names_every_recipe_and_links_its_file():
    for name in recipe.names():
        assert f"| [{name}](../../regaze/eval/reproduction/recipes/{name}.yaml) |" in PAGE
