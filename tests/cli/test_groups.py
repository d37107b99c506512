"""Groups of options: the same on each command that has them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module

import pytest
from typer.testing import CliRunner

from regaze.cli import app
from regaze.cli.groups import spread
from regaze.cli.options import Limit, Seed


@dataclass(frozen=True)
class Pair:
    limit: Limit = None
    seed: Seed = 3


def test_a_group_becomes_its_options_and_comes_back_as_one():
    def command(name: str, *, pair: Pair, last: bool = False) -> tuple[str, Pair, bool]:
        """What it does."""
        return name, pair, last

    made = spread(command)
    parameters = inspect.signature(made).parameters
    assert list(parameters) == ["name", "limit", "seed", "last"]
    assert parameters["seed"].default == 3
    assert parameters["name"].default is inspect.Parameter.empty
    assert (made.__name__, made.__doc__) == ("command", "What it does.")
    assert made(name="a", limit=5, seed=4, last=True) == ("a", Pair(5, 4), True)


def options(name: str) -> set[str]:
    command = spread(getattr(import_module(f"regaze.cli.commands.{name}"), name))
    return set(inspect.signature(command).parameters)


def test_evaluate_and_compare_have_the_same_options():
    """But that `compare` takes several methods, and its benchmark as an option, too."""
    assert options("evaluate") - options("compare") == {"method"}
    assert options("compare") - options("evaluate") == {"methods", "named"}
    of_one_method = {"controls", "damage_check", "damage_data", "html"}
    tuning = {name for name in options("evaluate") if name.startswith("tune")}
    assert options("evaluate") - options("sweep") == of_one_method | tuning


@pytest.mark.parametrize("name", ["heatmap", "view", "objects", "fit", "heads", "inspect", "reproduce"])
def test_variables_of_the_chat_template_are_taken_wherever_prompts_are_built(name):
    assert "template_arg" in options(name)


def test_variables_of_the_chat_template_reach_the_prompt_that_is_inspected():
    arguments = [
        "inspect",
        "demo",
        "--prompt",
        "Is there a train?",
        "--template-arg",
        "enable_thinking=false",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "enable_thinking=False: not of this chat template" in result.stderr
