"""`regaze lm-eval`, and what the model refuses before the harness starts; on a stand-in for lm-eval.

The stand-in has the names that regaze uses, so that this runs where lm-eval is not installed;
`test_lm_eval.py` runs the harness itself.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from models import tiny_llama
from typer.testing import CliRunner

import regaze
from regaze.cli import app
from regaze.cli.commands import lm_eval as command
from regaze.errors import BadParameterError, InputError

MODULE = "regaze.eval.harness.lm_eval"


class HFLM:
    """Takes what lm-eval's class takes, as far as these tests give it."""

    backend = "causal"

    def __init__(self, pretrained, revision="main", device=None, batch_size=1, max_batch_size=64, **kwargs):
        self.model, self.tokenizer, self.batch_size, self.loading = pretrained, None, batch_size, kwargs
        self.cache_hook = None

    def set_cache_hook(self, cache_hook):
        self.cache_hook = cache_hook


@pytest.fixture
def harness(monkeypatch):
    """A stand-in for lm-eval: its registered models, and what its command line was given."""
    seen = SimpleNamespace(models={}, argv=None, ends_with=None)

    def register_model(name):
        return lambda cls: seen.models.setdefault(name, cls)

    def cli_evaluate():
        seen.argv = sys.argv
        if seen.ends_with is not None:
            raise seen.ends_with

    contents = {
        "lm_eval": {"__spec__": ModuleSpec("lm_eval", None), "__path__": []},
        "lm_eval.api": {"__path__": []},
        "lm_eval.api.registry": {"register_model": register_model},
        "lm_eval.models": {"__path__": []},
        "lm_eval.models.huggingface": {"HFLM": HFLM},
        "lm_eval.__main__": {"cli_evaluate": cli_evaluate},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, MODULE, None)  # imported anew, and forgotten afterwards
    del sys.modules[MODULE]
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(regaze, "wrap", lambda model, tokenizer: None)
    return seen


@pytest.fixture
def model_class(harness):
    return import_module(MODULE).RegazeLM


def run(*arguments):
    return CliRunner().invoke(app, ["lm-eval", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "regaze", "--model_args", "pretrained=x,heads=[[3,1],[4,0]]", "--tasks", "a", "-L", "3"],
        ["run", "--model=regaze", "--help"],
        ["ls", "tasks"],
        [],
    ],
    ids=["options", "run", "ls", "none"],
)
def test_the_command_hands_all_arguments_to_lm_eval_which_then_knows_the_model(harness, arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert harness.argv == ["lm-eval", *arguments]
    assert harness.models == {"regaze": import_module(MODULE).RegazeLM}


def test_an_error_of_ours_inside_the_harness_is_one_line(harness):
    harness.ends_with = InputError("--use_cache\ncannot be used")
    result = run("--tasks", "a")
    assert (result.exit_code, result.stderr) == (2, "regaze: error: --use_cache cannot be used\n")


def test_without_lm_eval_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = run("--tasks", "a")
    assert result.exit_code == 2
    assert result.stderr == "regaze: error: lm_eval is not installed: pip install 'regaze[harness]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"method": "dola", "bta": 0.1},
            r"unknown bta \(did you mean beta\?\); there are .*parameters of dola",
        ),
        ({"beta": 0.1}, "unknown beta; there are method, "),
        ({"methd": "dola"}, r"unknown methd \(did you mean method\?\)"),
        ({"load_in_4bit": True}, "unknown load_in_4bit"),
        ({"method": "dola", "batch_size": "auto"}, "batch_size=auto: .*method=dola needs more memory"),
        ({"method": "dola", "batch_size": "auto:4"}, "batch_size=auto:4: .*method=dola"),
        ({"method": "vcd", "batch_size": "0"}, "batch_size=0: expected a whole number"),
        ({"pretrained": None}, "pretrained=NAME, or a folder with a model, is missing"),
    ],
)
def test_arguments_are_refused_before_a_model_is_loaded(model_class, arguments, message):
    with pytest.raises(BadParameterError, match=message):
        model_class.create_from_arg_obj({"pretrained": "no-such-model", **arguments})


def test_options_of_the_harness_of_loading_and_of_the_configuration_are_taken(model_class, tmp_path):
    tiny_llama().config.save_pretrained(tmp_path)
    options = {"attn_implementation": "eager", "cache_dir": "there", "rms_norm_eps": 1e-4}
    lm = model_class(str(tmp_path), revision="main", **options)
    assert lm.loading == options


@pytest.mark.parametrize("arguments", [{}, {"method": "knockout", "heads": [[0, 0]]}])
def test_the_harness_searches_a_batch_size_where_forwards_are_those_it_tries(model_class, arguments):
    assert model_class("x", batch_size="auto", **arguments).batch_size == "auto"


def test_what_model_args_set_goes_before_the_harness_options(model_class):
    given = {"batch_size": "1", "max_batch_size": None, "device": "cpu"}
    lm = model_class.create_from_arg_string("pretrained=x,method=dola,batch_size=3", given)
    assert lm.batch_size == 3


@pytest.mark.parametrize("arguments", [{"method": "dola"}, {"method": "knockout", "heads": [[0, 0]]}])
def test_a_cache_that_knows_answers_by_prompt_alone_is_refused_under_a_method(model_class, arguments):
    lm = model_class("x", **arguments)
    with pytest.raises(InputError, match="--use_cache cannot be used with method="):
        lm.set_cache_hook(SimpleNamespace(dbdict={}))
    assert lm.cache_hook is None


def test_a_cache_is_taken_without_a_method_and_no_cache_always(model_class):
    for arguments, hook in (({}, {}), ({}, None), ({"method": "dola"}, None)):
        lm = model_class("x", **arguments)
        lm.set_cache_hook(SimpleNamespace(dbdict=hook))
        assert lm.cache_hook.dbdict is hook
