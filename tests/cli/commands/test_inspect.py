"""`regaze inspect`: a model's layers, heads and image tokens from its configuration, roles in colour."""

from __future__ import annotations

import pytest
from family_checks import case_of
from typer.testing import CliRunner
from zoo import cross_attention, llava_like, text

from regaze import demo
from regaze.cli import app
from regaze.cli.inspection import ranges
from regaze.toolkit.inspect import inspect_model
from regaze.toolkit.load import load_without_weights


def run(*arguments: str):
    return CliRunner().invoke(app, ["inspect", *arguments])


def entry(part, name: str):
    return next(e for e in part.ENTRIES if e.name == name)


def test_the_demo_model_and_a_prompt():
    result = run("demo", "--image", str(demo.scenes()[0].path), "--prompt", "Is there a dog?")
    assert result.exit_code == 0, result.output
    assert "6 query, 2 key-value, 32 wide" in result.output
    assert "self-attention in 0-5" in result.output
    assert "image 0: 8 x 8 cells, all of it" in result.output
    assert "[64 image tokens]" in result.output
    assert "QUERY     'Is there a dog?'" in result.output  # one line per role where there are no colours


def test_roles_have_colours_on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    result = run("demo", "--prompt", "Is there a dog?")
    assert result.exit_code == 0, result.output
    assert "\x1b[1;38;5;" in result.output
    for role in ("SYSTEM", "QUERY", "TAIL"):  # what the colours mean
        assert f"{role} " in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/model"], "cannot load model 'no/such/model'"),
        (["demo", "--image", "nothing"], "image nothing does not exist, and no shipped scene has that name"),
    ],
)
def test_what_cannot_be_inspected(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_no_weights_are_loaded(tmp_path):
    """A folder with a configuration alone is enough, and the model has no storage."""
    case_of(entry(llava_like, "llava")).model.config.save_pretrained(tmp_path)
    model, processor = load_without_weights(str(tmp_path))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert processor is None
    assert inspect_model(model).family == "llava"
    result = run(str(tmp_path), "--prompt", "Why?")
    assert result.exit_code == 2
    assert "has no processor to build a prompt with" in result.stderr


def test_layers_of_all_kinds():
    model = case_of(entry(cross_attention, "mllama")).model
    found, crossing_layers = inspect_model(model), model.config.text_config.cross_attention_layers
    assert list(found.cross_layers) == crossing_layers
    assert set(found.attention_layers) == set(range(found.layers)) - set(crossing_layers)
    assert "recordings and methods that edit cross-attention work" in " ".join(found.unsupported)
    found = inspect_model(case_of(entry(text, "gemma3_text")).model)
    assert found.windows[1] == 6
    assert found.windows[0]
    assert found.image_token_ids == ()


def test_a_model_that_does_not_dispatch_its_attention_says_so():
    refused = next(e for e in text.ENTRIES if e.name == "falcon")
    found = inspect_model(refused.build()[0])
    assert found.unsupported


def test_ranges():
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2, 5, 7-8"
    assert ranges(()) == "none"
