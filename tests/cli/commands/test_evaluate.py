"""The command line: what `regaze evaluate` and its relatives print and write.

The model is a stand-in that looks at nothing; `test_cli_model` runs real ones. What bad input is told is in
`test_eval_malformed`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from PIL import Image
from standins import StandIn, lines
from typer.testing import CliRunner, Result

from regaze.cli import app, config, models
from regaze.interventions import registry


@pytest.fixture
def gaze() -> StandIn:
    return StandIn()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gaze: StandIn) -> Path:
    """A folder with two images and four questions; models become stand-ins."""
    monkeypatch.setattr(models, "load_model", lambda *given, **more: gaze)
    monkeypatch.chdir(tmp_path)
    rows = []
    for shade, name in enumerate("ab"):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / f"{name}.png")
        rows += [
            {"image": f"{name}.png", "text": "Is there a dog?", "label": "yes"},
            {"image": f"{name}.png", "text": "Is there a cat?", "label": "no"},
        ]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def regaze(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def good(*args: str) -> Result:
    result = regaze(*args)
    assert result.exit_code == 0, result.stderr
    return result


POPE = ("evaluate", "pope", "--questions", "q.jsonl", "--images", ".")
KNOCKOUT = ("--method", "knockout", "--set", "heads=[[0,0]]")


def plain(results: dict[str, Any], name: str = "pope") -> dict[str, Any]:
    return results["benchmarks"][name]["plain"]


def test_json_is_all_there_is_on_standard_output(files):
    result = good(
        *POPE, "--output", "out", "--json", "--seed", "3", "--batch-size", "3", "--suffix", r"\nSay."
    )
    printed = json.loads(result.stdout)
    assert printed == json.loads((files / "out/results.json").read_text())
    assert plain(printed)["figures"]["q"]["official"]["plain"]["accuracy"]["value"] == 0.5
    assert printed["benchmarks"]["pope"]["benchmark"]["suffix"] == "\nSay."
    assert (printed["seed"], printed["batch_size"]) == (3, 3)
    assert "results, answers and report are in out" in result.stderr


def test_the_table_names_scorers_figures_and_intervals(files):
    result = good(*POPE, "--output", "out", "--limit", "2")
    for text in (
        "2 questions on 1 image",
        "official",
        "harness",
        "yes-ratio",
        "the 2 questions fall into 1 cluster",
        "Seconds of one pass",
    ):
        assert text in result.stdout
    edited = good(*POPE, "--output", "out", *KNOCKOUT).stdout
    for text in (
        "knockout - plain",
        "permutation p = 1",
        "Answers that differ: 4",
        "Confounds: yes-ratio -100.0",
    ):
        assert text in edited
    for printed in (result.stdout, edited):
        assert max(map(len, printed.splitlines())) <= 80


def test_the_same_command_has_the_same_folder_and_continues(files, gaze):
    good(*POPE, "--model", "some/model", "--batch-size", "3")
    asked = len(gaze.prompts)
    again = good(*POPE, "--model", "some/model", "--batch-size", "1", "--export", "lmms-eval", "--json")
    assert len(gaze.prompts) == asked  # how it runs is no other run
    assert json.loads(again.stdout)["complete"]
    folders = list((files / "out").iterdir())
    assert len(folders) == 1
    assert re.fullmatch("pope-none-model-[0-9a-f]{8}", folders[0].name)
    shutil.rmtree(folders[0] / "lmms-eval")
    assert {path.name for path in folders[0].iterdir()} == {
        *("answers.jsonl", "results.json", "report.md", "report.html", "run.yaml"),
        *("journal.0.jsonl", ".lock", "plots"),
    }


@pytest.mark.parametrize(
    "change",
    [("--seed", "1"), ("--limit", "2"), ("--max-new-tokens", "3"), ("--generate", "top_k=3"), KNOCKOUT],
    ids=lambda change: change[0],
)
def test_another_command_has_another_folder(files, change):
    good(*POPE)
    good(*POPE, *change)
    assert len(list((files / "out").iterdir())) == 2


def test_resume_finds_the_newest_run(files, gaze):
    good(*POPE, "--model", "some/model", "--limit", "2")
    before = len(gaze.prompts)
    good(*POPE, "--model", "some/model", "--resume")
    assert len(gaze.prompts) == before + 1 + 2
    assert len(list((files / "out").iterdir())) == 1


def test_the_shipped_questions_need_no_files(files):
    figures = plain(
        json.loads(good("evaluate", "pope", "--output", "out", "--json", "--limit", "12").stdout)
    )["figures"]
    assert list(figures) == ["random", "popular", "adversarial", "all"]
    assert figures["all"]["questions"] == 36
    assert figures["all"]["official"]["plain"]["yes_ratio"]["value"] == 1.0
    result = good("evaluate", "pope", "--output", "out", "--json", "--split", "popular", "--limit", "3")
    assert list(plain(json.loads(result.stdout))["figures"]) == ["popular"]


def test_several_benchmarks_at_once(files, gaze):
    result = good("evaluate", "pope,captions", "--limit", "2", "--output", "out", "--json")
    results = json.loads(result.stdout)
    assert list(results["benchmarks"]) == ["pope", "captions"]
    # A caption may be longer than an answer: that is the benchmark's to say.
    assert {o["max_new_tokens"] for o in gaze.options} == {16, 96}
    assert (
        "\nCHAIR, demo: 2 questions on 2 images"
        in good("evaluate", "pope,captions", "--limit", "2", "--output", "out").stdout
    )


def test_options_of_the_benchmark_and_of_generate(files, gaze):
    good(
        *("evaluate", "captions", "--bench", "limit=3", "--bench", "prompt=What is there?"),
        *("--bench", "max_new_tokens=7", "--generate", "repetition_penalty=1.5", "--output", "out"),
    )
    assert set(gaze.prompts) == {"What is there?"}
    assert len(gaze.prompts) == 3 + 1
    assert {(o["max_new_tokens"], o["repetition_penalty"]) for o in gaze.options} == {(7, 1.5)}
    for text in ("temperature=0.7", "temperature=1", "top_k=3"):
        good(*POPE, "--generate", text, "--output", f"sampled-{text}")
        assert gaze.options[-1]["logits_processor"]
    for name in ("repetition_penalty", "length_penalty"):  # transformers takes no whole number for a float
        good(*POPE, "--generate", f"{name}=2", "--generate", "num_beams=2", "--output", f"out-{name}")
        assert repr(gaze.options[-1][name]) == "2.0"


def test_run_yaml_is_there_before_the_first_question(files, gaze):
    gaze.fails_at, gaze.error = "dog", RuntimeError("a bad day")
    result = regaze(*POPE, "--output", "out", "--seed", "7", "--max-errors", "0")
    assert result.exit_code == 2
    assert yaml.safe_load((files / "out/run.yaml").read_text())["seed"] == 7
    assert json.loads((files / "out/results.json").read_text())["complete"] is False
    assert gaze.prompts == ["Is there a cat?\nAnswer the question using a single word or phrase."]


def test_run_yaml_holds_no_secret_of_the_judges_url():
    judge = "https://me:secret@host:1/v1?key=secret#qwen"
    saved = yaml.safe_load(config.dump({"judge": judge, "model": "demo"}))
    assert saved == {"judge": "https://host:1/v1#qwen", "model": "demo"}
    assert yaml.safe_load(config.dump({"judge": "verdicts.jsonl"})) == {"judge": "verdicts.jsonl"}


def test_a_full_disk_is_one_line_and_the_same_command_continues(files):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 1_000, 2_500, 10_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            result = regaze(*POPE, *KNOCKOUT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
        assert "File too large" in result.stderr
    good(*POPE, *KNOCKOUT)
    assert len(list((files / "out").iterdir())) == 1


def test_what_the_model_does_not_take_is_laid_to_generate(files, gaze):
    gaze.fails_at, gaze.error = "there", IndexError("index out of range")
    for more, code in ((("--generate", "pad_token_id=99999"), 2), ((), 1)):
        result = regaze(*POPE, "--output", "out", *more)
        assert result.exit_code == code
    message = "--generate pad_token_id=99999: the model cannot answer (IndexError: index out of range)"
    result = regaze(*POPE, "--output", "out", "--generate", "pad_token_id=99999")
    assert result.stderr == f"regaze: error: {message}\n"


def test_options_are_checked_before_anything_is_loaded(files, monkeypatch):
    def load(*arguments: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(models, "load_model", load)
    (files / "taken").mkdir()
    (files / "taken/report.html").mkdir()
    (files / "pipe").mkdir()
    os.mkfifo(files / "pipe/run.yaml")
    for arguments, message in {
        ("--export", "lmms-eval,csv"): "unknown format 'csv'; there are lmms-eval, vlmevalkit",
        ("--output", "taken"): "taken/report.html cannot be written: a folder has that name; move it away",
        ("--output", "pipe"): "pipe/run.yaml cannot be written: a pipe has that name; move it away",
        ("--output", "a.png"): "output folder a.png cannot be used: File exists",
        ("--output", "a.png/out"): "output folder a.png/out cannot be used: Not a directory",
        ("--output", "x" * 300): "cannot be used: File name too long",
        ("--generate", "num_beams=0"): "--generate num_beams=0",
        ("--method", "vcd", "--set", "alpha=x"): "--set alpha=x",
        ("--judge", "http://"): "add the model's name on that server",
    }.items():
        result = regaze(*POPE, *arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
        assert message in result.stderr
    assert not (files / "out").exists()  # nothing is left of a run that did not begin


def test_run_yaml_is_the_same_run_again(files, gaze):
    good(*POPE, *KNOCKOUT, "--output", "out", "--limit", "2", "--generate", "top_k=3", "--batch-size", "2")
    first = json.loads((files / "out/results.json").read_text())
    config = yaml.safe_load((files / "out/run.yaml").read_text())
    assert config["set"] == {"heads": [[0, 0]]}
    assert config["generate"] == {"top_k": 3}
    assert (config["benchmark"], config["limit"], config["questions"]) == ("pope", 2, "q.jsonl")
    before = len(gaze.prompts)
    good("evaluate", "--config", "out/run.yaml", "--output", "out")
    again = json.loads((files / "out/results.json").read_text())
    assert len(gaze.prompts) == before  # nothing had to be asked
    assert again["configuration"] == first["configuration"]
    assert again["benchmarks"] == first["benchmarks"]
    # An option on the command line goes before the file.
    good("evaluate", "--config", "out/run.yaml", "--output", "out", "--limit", "1")
    assert (
        json.loads((files / "out/results.json").read_text())["benchmarks"]["pope"]["benchmark"]["limit"] == 1
    )


def test_a_config_may_be_written_by_hand(files):
    (files / "run.yaml").write_text(
        "benchmark: [pope, captions]\nlimit: 2\nmethod: knockout\nset:\n  heads: [[0, 0], [1, 2]]\n"
        "batch-size: 3\ngenerate: {top_k: 3}\n"
    )
    results = json.loads(good("evaluate", "--config", "run.yaml", "--output", "out", "--json").stdout)
    assert list(results["benchmarks"]) == ["pope", "captions"]
    assert results["methods"]["knockout"]["heads"] == [[0, 0], [1, 2]]
    assert results["benchmarks"]["pope"]["generation"] == {
        "max_new_tokens": 16,
        "top_k": 3,
        "do_sample": True,
    }


def test_compare_prints_a_table_and_goes_on_past_a_method_that_cannot_run(files):
    (files / "methods.yaml").write_text(
        "- {label: one head, method: knockout, heads: [[0, 0]]}\n"
        "- {label: two, method: knockout, heads: [[0, 0], [0, 1]]}\n"
    )
    arguments = ("compare", "pope", "--limit", "4", "--output", "out")
    result = good(*arguments, "--methods", "methods.yaml")
    for text in (
        "| one head | 50.0 (+0.0",
        "| two |",
        "Holm p",
        "yes-ratio -100.0 points",
        "Model demo, seed 0",
        "## Damage check",
        "mmstar could not be asked: AttributeError",  # the stand-in has no likelihoods
    ):
        assert text in result.stdout
    assert "## mmstar" not in result.stdout
    plainly = (*arguments, "--methods", "vcd,pai", "--json", "--no-damage-check")
    results = json.loads(good(*plainly).stdout)
    assert set(results["methods"]) == {"vcd", "pai"}
    assert results["damage"] is None
    inline = '[{"label": "a", "method": "vcd", "alpha": 0.5}]'
    results = json.loads(good(*arguments, "--methods", inline, "--json").stdout)
    assert results["methods"]["a"]["alpha"] == 0.5


def test_compare_adds_the_controls_of_each_method(files):
    arguments = ("compare", "pope", "--limit", "2", "--methods", "hgai", "--output", "out")
    result = good(*arguments, "--controls")
    for text in (
        "| control: uniform-columns of hgai |",
        "| control: prefer-yes |",
        "| control: near-tie |",
        "beats its controls",
        "### pope: methods against their controls",
    ):
        assert text in result.stdout
    assert "controls: true" in (files / "out/run.yaml").read_text()
    results = json.loads(good("compare", "--config", "out/run.yaml", "--json").stdout)
    assert set(results["controls"]) == {"uniform-columns of hgai", "prefer-yes", "near-tie"}
    assert "control" not in good(*arguments).stdout


def test_evaluate_has_the_checks_of_compare(files):
    arguments = ("--controls", "--tune", "hgai:alpha=0.5,1", "--split", "random")
    result = good("evaluate", "POPE", "--limit", "24", "--method", "HGAI", "--output", "out", *arguments)
    for text in (
        "pope: methods against their controls",
        "best control",
        "Parameters, chosen apart from testing",
        "hgai - plain",
    ):
        assert text in result.stdout, text
    assert "Damage check" not in result.stdout
    checked = good(
        "evaluate", "pope", "--limit", "2", "--method", "hgai", "--damage-check", "--output", "more"
    )
    assert "Damage check\nmmstar could not be asked" in checked.stdout


def test_answers_go_out_to_other_harnesses_and_come_back(files):
    good(*POPE, *KNOCKOUT, "--output", "out", "--export", "lmms-eval,vlmevalkit")
    expected = json.loads(good("score", "pope", "out/answers.jsonl", "--json").stdout)
    figures = expected["plain"]["figures"]["q"]
    samples = list((files / "out/lmms-eval/demo-knockout").glob("*_samples_pope.jsonl"))
    assert lines(samples[0])[1] == {
        "doc_id": 1,
        "target": "no",
        "filtered_resps": ["No"],
        "input": "Is there a cat?\nAnswer the question using a single word or phrase.",
    }
    table = files / "out/vlmevalkit/demo/demo_pope.tsv"
    rows = list(csv.DictReader(table.open(newline=""), delimiter="\t"))
    assert [row["prediction"] for row in rows] == ["Yes"] * 4
    assert [row["answer"] for row in rows] == ["yes", "no"] * 2
    for path in (table, next((files / "out/lmms-eval/demo").glob("*.jsonl"))):
        back = json.loads(good("score", "pope", str(path), "--json").stdout)
        scores = next(iter(back["plain"]["figures"].values()))
        for scorer in ("official", "harness", "vlmevalkit"):
            for figure, estimate in figures[scorer]["plain"].items():
                if figure != "counts":
                    assert scores[scorer]["plain"][figure]["value"] == estimate["value"]
    paired = good(
        "score", "pope", str(samples[0]), "--against", str(next((files / "out/lmms-eval/demo").glob("*")))
    )
    assert "| edited | 50.0 (+0.0" in paired.stdout


def test_score_joins_answers_to_the_questions_it_is_told(files):
    asked = ["Is there a dog?", "Is there a cat?"] * 2
    given = ("yes", "no", "No.", "no")
    answers = [{"question": q, "answer": text} for q, text in zip(asked, given, strict=True)]
    (files / "a.json").write_text(json.dumps(answers))
    result = good("score", "pope", "a.json", "--questions", "q.jsonl", "--images", ".", "--json")
    official = json.loads(result.stdout)["plain"]["figures"]["q"]["official"]["plain"]
    assert official["accuracy"]["value"] == 0.75
    captions = [{"image_id": number, "caption": "a dog and a zebra"} for number in range(3)]
    (files / "c.jsonl").write_text("\n".join(map(json.dumps, captions)))
    result = good("score", "captions", "c.jsonl", "--limit", "3")
    assert "CHAIR_s" in result.stdout


def test_answers_to_questions_of_the_hub_are_scored_without_its_pictures(files, monkeypatch):
    texts = {"yes_question": "Is there a dog?", "no_question": "Is there a cat?", "task": "object"}
    (files / "data.json").write_text(json.dumps([{**texts, "image_id": "9"}]))
    asked = []

    def snapshot_download(repository, **options):
        asked.append((repository, options["allow_patterns"]))
        return str(files)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    answers = [{"id": f"base/0/{label}", "answer": "Yes."} for label in ("yes", "no")]
    (files / "a.jsonl").write_text("\n".join(map(json.dumps, answers)))
    base = ("--data", "hub", "--bench", 'modes=["base"]')
    scored = json.loads(good("score", "phd", "a.jsonl", *base, "--json").stdout)
    assert scored["plain"]["figures"]["base"]["regaze"]["plain"]["accuracy"]["value"] == 0.5
    assert asked == [("AIMClab-RUC/PhD", ["data.json"])]


def test_benchmarks_are_listed_with_their_terms():
    listed = json.loads(good("benchmarks", "--json").stdout)
    assert {"pope", "chair", "amber", "mme"} <= set(listed)
    assert listed["pope"]["options"]["demo"] == ["limit", "splits", "suffix"]
    assert "version" in listed["pope"]["options"]["folder"]
    text = good("benchmarks").stdout
    for name, about in listed.items():
        assert name in text
        assert about["licence"] in text
        assert about["images"] in text


def test_a_package_whose_method_fails_is_named_and_breaks_nothing_else(files, monkeypatch):
    broken = EntryPoint("broken", "no_such_package:Method", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "announced", lambda: {"broken": broken})
    good(*POPE, *KNOCKOUT, "--output", "out")
    listed = regaze("methods", "--json")
    assert "broken" not in json.loads(listed.stdout)
    refused = regaze(*POPE, "--method", "broken")
    assert (listed.exit_code, refused.exit_code) == (0, 2)
    for result in (listed, refused):
        assert "method 'broken' (no_such_package:Method) cannot be imported: ModuleNotFound" in result.stderr
        assert result.stderr.count("\n") == 1
    monkeypatch.setattr(registry, "BUILT_IN", {"var": registry.BUILT_IN["var"]})
    compared = good("compare", "pope", "--limit", "1", "--output", "all", "--json")
    assert list(json.loads(compared.stdout)["methods"]) == ["var"]
    assert compared.stderr.startswith(
        "regaze: left out: method 'broken' (no_such_package:Method) cannot be i"
    )


@pytest.mark.parametrize("command", ["", "evaluate", "compare", "score", "benchmarks", "heatmap", "methods"])
def test_help_is_there(command):
    result = good(*([command, "--help"] if command else []))
    assert "Usage: " in result.stdout
