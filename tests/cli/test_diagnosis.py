"""`regaze doctor`: each part of a machine as it may be found."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from regaze.cli import app, diagnosis
from regaze.errors import InputError


def test_a_machine_on_which_everything_needed_works():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    findings = {entry["part"]: entry for entry in json.loads(result.stdout)}
    assert findings["torch"]["found"] == torch.__version__
    assert findings["demo model"]["found"] == "answers as it should, 6 layers recorded"
    assert findings["demo model"]["state"] == "ok"
    defaults = [part for part, entry in findings.items() if entry["found"].endswith("(default)")]
    assert len(defaults) == 1 or torch.cuda.device_count() > 1


def test_what_is_broken_is_the_exit_code_and_has_advice(monkeypatch):
    def examine():
        yield diagnosis.Finding("a", "1.0")
        yield diagnosis.Finding("b", "no c", "pip install c")
        yield diagnosis.Finding("d", "fails", "try e", required=True)

    monkeypatch.setattr(diagnosis, "examine", examine)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "ok       a: 1.0",
        "missing  b: no c",
        "         -> pip install c",
        "broken   d: fails",
        "         -> try e",
    ]


def test_extras_are_what_pip_would_install_here(monkeypatch):
    there = {"nltk": "3.9.1", "datasets": "2.0"}

    def version(name: str) -> str:
        if name not in there:
            raise diagnosis.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(diagnosis, "version", version)
    monkeypatch.setattr(
        diagnosis,
        "requires",
        lambda name: [
            "nothing>=1",
            "nltk>=3.9; extra == 'eval'",
            "datasets>=3.0; extra == 'eval'",
            "ruff; extra == 'dev'",
            "nltk; extra == 'harness'",
            "triton; sys_platform == 'none' and extra == 'triton'",
            "bitsandbytes; extra == 'quantization'",
        ],
    )
    assert [(each.part, each.found.partition(":")[0], each.advice) for each in diagnosis.extras()] == [
        ("[eval]", "datasets 2.0 is not >=3.0", "pip install 'regaze[eval]'"),
        ("[quantization]", "no bitsandbytes", "pip install 'regaze[quantization]'"),
        ("[harness]", "nltk 3.9.1", ""),
    ]


@pytest.mark.parametrize(
    ("there", "state", "advice"),
    [("5.24.0", "ok", ""), ("5.30.0", "missing", "pip install 'transformers==5.24.*'")],
)
def test_releases_of_transformers(monkeypatch, there, state, advice):
    monkeypatch.setattr(diagnosis.release, "installed_release", lambda: there)
    monkeypatch.setattr(diagnosis.release, "NEWEST", "5.24")
    found = diagnosis.transformers()
    assert (found.state, found.advice) == (state, advice)


def test_data_that_captions_lack(monkeypatch):
    def lacking(text: str) -> None:
        raise InputError("NLTK lacks a data package: run `python -m nltk.downloader punkt_tab`")

    monkeypatch.setattr(diagnosis.language, "tokens", lacking)
    found = diagnosis.words()
    assert (found.state, found.advice) == ("missing", "run `python -m nltk.downloader punkt_tab`")


def test_data_of_nltk_is_named_piece_by_piece_and_looked_for_where_nltk_data_says(monkeypatch, tmp_path):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    assert diagnosis.language.missing_data() == ["punkt_tab", "averaged_perceptron_tagger_eng", "wordnet"]
    (tmp_path / "tokenizers/punkt_tab").mkdir(parents=True)
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora/wordnet.zip").touch()
    assert diagnosis.language.missing_data() == ["averaged_perceptron_tagger_eng"]
    assert diagnosis.language.data_folder("wordnet") == tmp_path


def test_advice_on_missing_data_names_it_and_nltk_data(monkeypatch, tmp_path):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    found = diagnosis.words()
    assert found.found == "NLTK lacks its data punkt_tab, averaged_perceptron_tagger_eng, wordnet"
    assert "nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet`" in found.advice
    assert "set NLTK_DATA" in found.advice


@pytest.mark.parametrize("reason", [None, "Triton is not installed; pip install 'regaze[triton]'"])
def test_kernels_of_a_gpu_and_of_a_processor(monkeypatch, reason):
    """On a GPU a reason is something to mend; on a processor torch is the right choice."""
    monkeypatch.setattr(diagnosis, "why_not_triton", lambda *call: reason)
    assert diagnosis.kernels().state == "ok"
    monkeypatch.setattr(diagnosis, "default_device", lambda: "meta")
    assert diagnosis.kernels().advice == (reason or "")


def test_graphics_cards_are_listed_with_their_memory(monkeypatch):
    card = SimpleNamespace(name="H200", total_memory=139 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(diagnosis, "default_device", lambda: "cuda")
    found = [str(each.found) for each in diagnosis.devices() if each.part == "device cuda:0"]
    assert found == ["H200, 139 GiB, compute capability 9.0 (default)"]


def test_a_demo_that_fails_is_no_traceback(monkeypatch):
    def failing(*options: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(diagnosis.models, "load_model", failing)
    found = diagnosis.demo()
    assert found.state == "broken"
    assert re.match("RuntimeError: no kernel image", found.found)
