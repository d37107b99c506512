"""From --engine vllm and --engine-arg to an engine that answers the questions of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from regaze.arguments import parse_untyped, split_assignments
from regaze.cli import models
from regaze.errors import BadParameterError, InputError
from regaze.eval.run.process_group import ProcessGroup
from regaze.eval.run.served import VLLMEngine
from regaze.interventions import Method
from regaze.serving.common.support import needed_arguments

#: Of --model-arg what an engine takes.
_LOADING = ("revision", "trust_remote_code")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a run that do not go with its engine.

    Raises:
        BadParameterError: --engine-arg without --engine vllm, or an option of transformers with it.
    """
    if options.get("engine") != "vllm":
        if options.get("engine_arg"):
            raise BadParameterError("--engine-arg: these are arguments of vLLM: add --engine vllm")
        return
    if options.get("html"):
        raise BadParameterError("--html: the pages show attention of a model of transformers: leave it out")
    if options["device"] is not None:
        raise BadParameterError(
            "--device: vLLM takes the devices that it finds: leave it out (CUDA_VISIBLE_DEVICES says which, "
            "--engine-arg tensor_parallel_size=2 how many share the model)"
        )
    others = sorted(models.model_arguments(options["model_arg"]).keys() - {"dtype", *_LOADING})
    if others:
        raise BadParameterError(
            f"--model-arg {others[0]}: it is for transformers; what vLLM takes goes into --engine-arg"
        )


def make_engine(options: Mapping[str, Any], methods: Iterable[Method], group: ProcessGroup) -> VLLMEngine:
    """The engine that the options of a run describe; it starts with the first question.

    Args:
        methods: of the run; the engine gets the options that they need.

    Raises:
        InputError: several processes. UnsupportedModelError: there is no vLLM that regaze knows.
    """
    if group.size > 1:
        raise InputError(
            "--engine vllm has processes of its own: start it without accelerate; --engine-arg "
            "tensor_parallel_size=2 divides the model between devices"
        )
    models.quiet_libraries()
    loading = models.model_arguments(options["model_arg"])
    given = {
        name: parse_untyped(text)
        for name, text in split_assignments(options["engine_arg"] or (), "--engine-arg").items()
    }
    needed: dict[str, Any] = {} if options["share_prefix"] else {"enable_prefix_caching": False}
    for method in methods:
        needed |= needed_arguments(method)
    return VLLMEngine(
        options["model"],
        dtype=loading.get("dtype", options["dtype"]),
        template_args=models.template_arguments(options.get("template_arg")) or None,
        loading={name: value for name, value in loading.items() if name in _LOADING},
        **{**needed, **given},
    )
