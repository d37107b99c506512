"""The command line: what `regaze evaluate` prints and writes, and what every bad input is told.

The model is a stand-in that looks at nothing; `test_cli_model` runs real ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from regaze.cli import app, options
from regaze.interventions import registry


class YesSayer:
    """Answers yes to everything."""

    def using(self, *interventions: Any) -> nullcontext[None]:
        return nullcontext()

    def ask(self, images: Sequence[Any], questions: Sequence[str], **kwargs: Any) -> list[str]:
        return ["Yes"] * len(questions)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images and four questions; models become stand-ins."""
    monkeypatch.setattr(options, "load", lambda model, device, dtype: YesSayer())
    monkeypatch.chdir(tmp_path)
    rows = []
    for name in "ab":
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
        rows += [
            {"image": f"{name}.png", "text": "Is there a dog?", "label": "yes"},
            {"image": f"{name}.png", "text": "Is there a cat?", "label": "no"},
        ]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def regaze(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


POPE = ("evaluate", "pope", "--questions", "q.jsonl", "--images", ".")


def test_json_is_all_there_is_on_standard_output(files):
    result = regaze(
        *POPE, "--output", "out", "--json", "--seed", "3", "--batch-size", "3", "--suffix", r"\nSay."
    )
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed == json.loads((files / "out/results.json").read_text())
    assert printed["figures"]["q"]["official"]["plain"]["accuracy"]["value"] == 0.5
    assert printed["benchmark"]["suffix"] == "\nSay."
    assert (printed["seed"], printed["generation"]["batch_size"]) == (3, 3)
    assert "results and answers are in out" in result.stderr


def test_the_table_names_scorers_figures_and_intervals(files):
    result = regaze(*POPE, "--output", "out", "--limit", "2")
    assert result.exit_code == 0
    for text in (
        "2 questions on 1 images",
        "official",
        "harness",
        "yes-ratio",
        "50.0 [9.5, 90.5]",
        "Seconds of one pass",
    ):
        assert text in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_every_run_without_output_has_its_own_folder(files):
    assert regaze(*POPE, "--model", "some/model").exit_code == 0
    folders = list((files / "out").iterdir())
    assert len(folders) == 1
    assert folders[0].name.startswith("pope-model-none-")
    assert {path.name for path in folders[0].iterdir()} == {"answers.jsonl", "results.json"}


def test_the_shipped_questions_need_no_files(files):
    result = regaze("evaluate", "pope", "--output", "out", "--json", "--limit", "12")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)["figures"]
    assert list(figures) == ["random", "popular", "adversarial", "all"]
    assert figures["all"]["questions"] == 36
    assert figures["all"]["official"]["plain"]["yes_ratio"]["value"] == 1.0
    result = regaze("evaluate", "pope", "--output", "out", "--json", "--split", "popular")
    assert list(json.loads(result.stdout)["figures"]) == ["popular"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "chair"], "unknown benchmark 'chair'; there is pope"),
        (["evaluate", "pope", "--split", "rare"], "unknown split 'rare'; there are random, popular,"),
        (["evaluate", "pope", "--questions", "q.jsonl"], "--questions FILE and --images DIR belong together"),
        ([*POPE, "--split", "random"], "--split chooses among the shipped questions"),
        ([*POPE[:3], "none.jsonl", "--images", "."], "questions file none.jsonl cannot be read: No"),
        ([*POPE[:3], "empty.jsonl", "--images", "."], "questions file empty.jsonl holds no questions"),
        ([*POPE[:3], "bad.jsonl", "--images", "."], "bad.jsonl:2: not valid JSON"),
        ([*POPE[:3], "lost.jsonl", "--images", "."], "no image 'lost.png' (asked for by lost.jsonl:1)"),
        ([*POPE[:3], "broken.jsonl", "--images", "."], "'broken.png' is not a readable image"),
        ([*POPE[:-1], "nowhere"], "image folder nowhere does not exist"),
        ([*POPE[:3], "token.jsonl", "--images", "."], "token.jsonl:1: <image> cannot be part of a question"),
        ([*POPE, "--suffix", " <image>"], "suffix ' <image>': <image> cannot be part of a question"),
        ([*POPE, "--output", "a.png"], "output folder a.png cannot be used: File exists"),
        ([*POPE, "--output", "/proc"], "output folder /proc cannot be used"),
        ([*POPE, "--method", "knockout"], "--method knockout: no heads to remove; add --set heads="),
        ([*POPE, "--limit", "0"], "limit 0: expected at least 1"),
        ([*POPE, "--batch-size", "0"], "batch size 0: expected at least 1"),
        ([*POPE, "--set", "rho=0.5"], "--set rho=0.5: there is no method to set it on"),
        (["heatmap", "none.png", "What?"], "image none.png does not exist"),
        (["heatmap", "a.png", "What?", "--output", "x.bmp"], "x.bmp: expected a name that ends in .png"),
        (["heatmap", "a.png", "What?", "--output", "a.png/x.png"], "a.png/x.png: its folder cannot be made"),
        (["heatmap", "a" * 300, "What?"], "and no shipped scene has that name"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_on_standard_error_and_exit_code_2(files, arguments, message):
    (files / "empty.jsonl").write_text("\n")
    (files / "bad.jsonl").write_text((files / "q.jsonl").read_text().split("\n")[0] + "\n{oops\n")
    for name in ("lost", "broken"):
        (files / f"{name}.jsonl").write_text(json.dumps({"image": f"{name}.png", "text": "?", "label": "no"}))
    (files / "token.jsonl").write_text(json.dumps({"image": "a.png", "text": "a <image>?", "label": "no"}))
    (files / "broken.png").write_bytes((files / "a.png").read_bytes()[:40])
    result = regaze(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert [line for line in result.stderr.splitlines() if line.startswith("regaze: error: ")] == [
        result.stderr.splitlines()[-1]
    ]
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    again = regaze(*arguments, "--debug")
    assert again.exception is not None
    assert message in str(again.exception)


@pytest.mark.parametrize(
    ("arguments", "message", "command"),
    [
        (["--bogus"], "No such option", "regaze"),
        (["evalute"], "No such command 'evalute'", "regaze"),
        (["evaluate"], "Missing argument 'benchmark'", "regaze evaluate"),
        (["evaluate", "pope", "--bogus"], "No such option", "regaze evaluate"),
        (["evaluate", "pope", "--limit", "abc"], "Invalid value for '--limit'", "regaze evaluate"),
        (["evaluate", "pope", "--seed", "-1"], "Invalid value for '--seed'", "regaze evaluate"),
        (["heatmap", "a.png", "?", "--seed", str(2**32)], "Invalid value for '--seed'", "regaze heatmap"),
        (["methods", "more"], "unexpected extra argument", "regaze methods"),
    ],
)
def test_misuse_is_one_line_that_points_to_the_help(arguments, message, command):
    result = CliRunner().invoke(app, arguments, prog_name="regaze")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("regaze: error: ")
    assert result.stderr.count("\n") == 1
    assert (
        message.lower() in result.stderr.lower()
    )  # the case of an argument's name depends on typer's version
    assert result.stderr.endswith(f" (see `{command} --help`)\n")


def test_a_package_whose_method_fails_is_named_and_breaks_nothing_else(files, monkeypatch):
    broken = EntryPoint("broken", "no_such_package:Method", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    assert regaze(*POPE, "--method", "var", "--output", "out").exit_code == 0
    listed = regaze("methods", "--json")
    assert set(json.loads(listed.stdout)) == {"knockout", "var"}
    refused = regaze(*POPE, "--method", "broken")
    assert (listed.exit_code, refused.exit_code) == (0, 2)
    for result in (listed, refused):
        assert "method 'broken' (no_such_package:Method) cannot be imported: ModuleNotFound" in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["evaluate", "--help"], ["heatmap", "--help"], ["methods", "--help"]]
)
def test_help_is_there(arguments):
    result = regaze(*arguments)
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_a_device_or_dtype_that_is_not_there():
    for arguments, message in [
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--dtype", "int3"], "dtype 'int3': expected float32, bfloat16 or float16"),
    ]:
        result = regaze("heatmap", __file__, "What?", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
