"""`regaze lm-eval`: lm-evaluation-harness's own command line, with regaze among its models."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from regaze.errors import InputError

#: Every argument is lm-eval's, except --help in the first place.
CONTEXT_SETTINGS = {
    "help_option_names": ["--help"],
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "ignore_unknown_options": True,
}


def lm_eval(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Those of `lm-eval`; `regaze lm-eval run --help` lists them."),
    ] = None,
) -> None:
    """Run lm-evaluation-harness with regaze among its models.

    regaze lm-eval --model regaze --model_args pretrained=NAME,method=dola --tasks arc_easy

    lm-eval finds models in a list of its own, to which this command adds one name.
    """
    if find_spec("lm_eval") is None:
        raise InputError("lm_eval is not installed: pip install 'regaze[harness]'")
    import_module("regaze.eval.harness.lm_eval")  # registers the model
    logging.disable(logging.NOTSET)  # its messages are for users
    sys.argv = ["lm-eval", *(arguments or [])]
    import_module("lm_eval.__main__").cli_evaluate()
