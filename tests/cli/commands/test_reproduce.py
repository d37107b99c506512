"""`regaze reproduce`: what it prints and writes. The model is a stand-in that always says yes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from standins import StandIn
from typer.testing import CliRunner, Result

from regaze.cli import app, models
from regaze.eval.reproduction import ledger, recipe


def regaze(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def good(*args: str) -> Result:
    result = regaze(*args)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of a model that says yes to everything: right on half of the demo's questions."""
    monkeypatch.setattr(models, "load_model", lambda *given, **more: StandIn())
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((recipe.FOLDER / "demo-pope.yaml").read_text(encoding="utf-8"))
    content |= {
        "recipe": "mine",
        "published": [
            {"split": "adversarial", "figure": "accuracy", "plain": 50.0},
            {"split": "adversarial", "figure": "yes_ratio", "plain": 100.0},
        ],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_recipe_is_run_and_judged(mine):
    result = good("reproduce", "mine.yaml", "--ledger", "kept")
    assert "mine: 634 questions" in result.stdout
    assert result.stdout.rstrip().endswith("inside")
    folder = mine.parent / "out/reproduce-mine"
    entry = ledger.read(folder / "ledger.json")
    assert entry.verdict == "inside"
    assert entry.recipe_sha256 == recipe.sha256_of("mine.yaml")
    assert [(each.value, each.verdict) for each in entry.runs[0].figures] == [
        (50.0, "inside"),
        (100.0, "inside"),
    ]
    assert entry.model["name"] == "demo"
    assert {"torch", "transformers"} <= entry.versions.keys()
    assert entry.machine["cpus"]
    assert ledger.read_all(mine.parent / "kept") == [entry]
    assert (folder / "recipe.yaml").read_text() == mine.read_text()
    assert not (folder / "run.yaml").exists()
    assert {"results.json", "answers.jsonl", "report.md"} <= {path.name for path in folder.iterdir()}
    again = json.loads(good("reproduce", "mine.yaml", "--json").stdout)  # continues: asks nothing
    assert again["runs"][0]["answers_sha256"] == entry.runs[0].answers_sha256


def test_a_figure_outside_is_said(mine):
    content = yaml.safe_load(mine.read_text())
    content["published"][0]["plain"] = 91.6
    mine.write_text(yaml.safe_dump(content))
    result = good("reproduce", "mine.yaml", "--output", "run")
    assert "outside: " not in result.stdout  # half of the questions in every image: there is no interval
    assert "adversarial accuracy plain: has no interval here" in result.stdout
    assert result.stdout.rstrip().endswith("cannot say: of 1 of 2 figures")


def test_a_part_of_the_questions_is_not_judged(mine):
    result = good("reproduce", "mine.yaml", "--limit", "6", "--dtype", "float16", "--output", "run")
    assert result.stdout.rstrip().endswith("cannot say: the first 6 questions of each split")
    entry = ledger.read(mine.parent / "run/ledger.json")
    assert entry.limits == ["the first 6 questions of each split"]
    assert entry.deviations == ["dtype: float16 in place of float32"]


def test_dry_runs_need_no_model(monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *given, **more: pytest.fail("a model was loaded"))
    result = good("reproduce", "demo-pope-vcd", "--dry")
    assert "ok       method: vcd with its defaults" in result.stdout
    found = json.loads(good("reproduce", "llava15-7b-pope", "--dry", "--json").stdout)
    assert {each["state"] for each in found["llava15-7b-pope"]} == {"ok", "missing", "unknown"}


def test_a_dry_run_of_a_wrong_recipe_fails(mine):
    content = yaml.safe_load(mine.read_text())
    mine.write_text(yaml.safe_dump({**content, "scorer": "officer"}))
    result = regaze("reproduce", "mine.yaml", "--dry")
    assert result.exit_code == 1
    assert "wrong    scorer: no scorer 'officer'" in result.stdout


def test_the_list(monkeypatch):
    result = good("reproduce", "--list")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["recipe", "method", "benchmark", "model", "trust"]
    assert len(lines) == 2 + len(recipe.names())
    assert len({line.index(" A") for line in lines if line.endswith(" A")}) <= 1  # columns are aligned
    chosen = good("reproduce", "VCD pope bundled", "--list").stdout.splitlines()[2:]
    assert [line.split()[:3] for line in chosen] == [["demo-pope-vcd", "vcd", "pope"]]
    assert "no recipe has all of these words" in regaze("reproduce", "xyz", "--list").stderr
    assert list(json.loads(good("reproduce", "--list", "--json").stdout)) == recipe.names()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "reproduce what?"),
        (("demo-poppe",), "unknown recipe 'demo-poppe'"),
        (("llava15-7b-pope", "--data", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_run_is_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = regaze("reproduce", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
def test_a_published_prompt_on_the_bundled_model(tmp_path, monkeypatch):
    """All that a recipe of LLaVA changes about a model, with the bundled one in its place."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((recipe.FOLDER / "demo-pope-vcd.yaml").read_text(encoding="utf-8"))
    llava = yaml.safe_load((recipe.FOLDER / "llava15-7b-pope.yaml").read_text(encoding="utf-8"))
    content |= {"recipe": "mine", "prompt": llava["prompt"]}
    content["model"]["image"] = "pad"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    good("reproduce", "mine.yaml", "--limit", "3", "--output", "run")
    entry = ledger.read(tmp_path / "run/ledger.json")
    plain = good("reproduce", "demo-pope-vcd", "--limit", "3", "--output", "own", "--json")
    own = json.loads(plain.stdout)
    assert entry.runs[0].benchmark["questions"] == own["runs"][0]["benchmark"]["questions"] == 3
    assert entry.model["fingerprint"] != own["model"]["fingerprint"]  # another template, other squares
    assert entry.method == own["method"]


def test_each_version_of_the_questions_is_run(mine):
    """The stand-in says yes: right on all questions of one version, and on half of the other's."""
    for name in "abcd":
        Image.new("RGB", (8, 8), (ord(name), 0, 0)).save(mine.parent / f"{name}.png")
    for version, labels in {"head": "yyyy", "e3e3926": "ynyn"}.items():
        rows = [
            {"image": f"{name}.png", "text": f"Is there a {name}?", "label": {"y": "yes", "n": "no"}[label]}
            for name, label in zip("abcd", labels, strict=True)
        ]
        (mine.parent / version).mkdir()
        path = mine.parent / version / "coco_pope_random.json"
        path.write_text("\n".join(json.dumps(row) for row in rows))
    content = yaml.safe_load(mine.read_text())
    content["benchmark"] = {"name": "pope", "versions": ["head", "e3e3926"], "splits": ["random"]}
    content["published"] = [{"split": "random", "figure": "yes_ratio", "plain": 100.0}]
    mine.write_text(yaml.safe_dump(content))
    result = good("reproduce", "mine.yaml", "--data", ".", "--images", ".", "--output", "run")
    entry = ledger.read(mine.parent / "run/ledger.json")
    assert [(run.version, run.verdict) for run in entry.runs] == [("head", "inside"), ("e3e3926", "inside")]
    assert entry.verdict == "inside"
    assert (mine.parent / "run/head/results.json").exists()
    assert "mine, questions e3e3926: 4 questions" in result.stdout
    content["published"] = [{"split": "random", "figure": "accuracy", "plain": 50.0}]
    mine.write_text(yaml.safe_dump(content))
    again = good("reproduce", "mine.yaml", "--data", ".", "--images", ".", "--output", "run")
    assert "cannot say: depends on the version of the questions" in again.stdout
