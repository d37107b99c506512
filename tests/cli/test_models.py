"""--model-arg: what it becomes for `from_pretrained`, and what it refuses."""

from __future__ import annotations

import importlib.metadata
import inspect
from importlib import import_module

import pytest
import torch
import yaml
from typer.testing import CliRunner

from regaze.cli import app, config, models, questions
from regaze.cli.app import COMMANDS
from regaze.cli.groups import RunOptions, spread
from regaze.errors import BadParameterError, InputError, UnknownParameterError


def options(*texts: str, device: str | None = "cpu", dtype: str | None = None) -> dict:
    return models.loading_options(models.model_arguments(texts), device, dtype)


def test_values_have_the_types_of_from_pretrained():
    given = ("revision=123", "attn_implementation=eager", "trust_remote_code=True", "dtype=bfloat16")
    assert options(*given) == {
        "device_map": "cpu",
        "revision": "123",
        "attn_implementation": "eager",
        "trust_remote_code": True,
        "dtype": torch.bfloat16,
    }
    spread = options('device_map={"": 1}', 'max_memory={"0": "10GiB", "cpu": "8GiB"}', device=None)
    assert spread == {"device_map": {"": 1}, "max_memory": {0: "10GiB", "cpu": "8GiB"}}
    assert options("device_map=auto", device=None) == {"device_map": "auto"}


@pytest.mark.parametrize(
    ("texts", "more", "error", "message"),
    [
        (
            ["revison=a"],
            {},
            UnknownParameterError,
            "--model-arg revison=a: no parameter 'revison'; did you mean 'revision'?",
        ),
        (["load_in_4bit=4"], {}, BadParameterError, "--model-arg load_in_4bit=4: expected bool"),
        (["dtype=int8"], {}, BadParameterError, "dtype=int8: expected 'float32', 'bfloat16' or 'float16'"),
        (["revision"], {}, BadParameterError, "--model-arg revision: expected NAME=VALUE"),
        (["dtype=float16"], {"dtype": "float32"}, BadParameterError, "dtype: --dtype says it, too"),
        (["device_map=auto"], {}, BadParameterError, "device_map: --device says it, too"),
        (["load_in_4bit=true", "load_in_8bit=true"], {}, BadParameterError, "give one of the two"),
    ],
)
def test_what_is_refused(texts, more, error, message):
    with pytest.raises(error, match=message):
        options(*texts, **more)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_need_their_library(monkeypatch, bits):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"load_in_{bits}bit: .*pip install 'regaze\[quantization\]'"):
        options(f"load_in_{bits}bit=true")
    monkeypatch.setattr(models, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")  # transformers asks for it
    chosen = options(f"load_in_{bits}bit=true", "dtype=float16")
    quantised = chosen.pop("quantization_config")
    assert (quantised.load_in_4bit, quantised.load_in_8bit) == (bits == 4, bits == 8)
    assert quantised.bnb_4bit_compute_dtype == torch.float16
    assert chosen == {"device_map": "cpu", "dtype": torch.float16}
    assert options(f"load_in_{bits}bit=false") == {"device_map": "cpu"}


def test_the_arguments_reach_the_model_and_its_tokenizer(monkeypatch):
    gaze = models.load_model("demo", "cpu", None, arguments=["dtype=bfloat16", "attn_implementation=eager"])
    assert gaze.model.dtype == torch.bfloat16
    assert gaze.model.config._attn_implementation == "eager"
    loaded = []
    monkeypatch.setattr(
        questions.AutoTokenizer, "from_pretrained", lambda name, **where: loaded.append((name, where))
    )
    monkeypatch.setattr(
        questions.catalogue, "make_benchmark", lambda *a, load_tokenizer, **k: load_tokenizer()
    )
    given = {"model": "some/model", "model_arg": ["revision=old", "dtype=float16"], "data": "demo"}
    questions.make_tasks("niah", RunOptions(**given))
    assert loaded == [("some/model", {"revision": "old"})]


def test_every_command_that_loads_a_model_takes_them():
    for name in COMMANDS.keys() - {
        "audit",
        "serve",
    }:  # a plan says how models are loaded, and vLLM loads its own
        code = name.replace("-", "_")
        command = spread(getattr(import_module(f"regaze.cli.commands.{code}"), code))
        parameters = inspect.signature(command).parameters
        loads = "model" in parameters or name == "reproduce"  # the recipe names the model
        assert ("model_arg" in parameters) == loads, name
        assert ("template_arg" in parameters) == loads, name


def test_run_yaml_has_them_and_gives_them_back(tmp_path):
    given = {"model": "demo", "model_arg": ["revision=1.0", "load_in_4bit=true"]}
    saved = config.dump(given)
    assert yaml.safe_load(saved)["model_arg"] == {"revision": 1.0, "load_in_4bit": True}
    (tmp_path / "run.yaml").write_text(saved)
    assert config.read_defaults(tmp_path / "run.yaml", given) == given
    assert config.digest(given) != config.digest({"model": "demo"})


@pytest.mark.parametrize(
    "command", [["heatmap", "scene_000", "What?"], ["evaluate", "pope"], ["inspect", "demo"]]
)
def test_a_mistyped_argument_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*command, "--model-arg", "revison=a"])
    assert result.exit_code == 2
    assert "regaze: error: --model-arg revison=a: no parameter 'revison'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_the_chat_template_are_checked():
    with pytest.raises(BadParameterError, match="enable_thinking=False: not of this chat template"):
        models.load_model("demo", "cpu", None, template=["enable_thinking=false"])
    with pytest.raises(BadParameterError, match="--template-arg x: expected NAME=VALUE"):
        models.load_model("demo", "cpu", None, template=["x"])
