"""The entry point of `vllm.general_plugins`: puts regaze into the processes of an engine.

Nothing of vLLM's source is changed. Attention backends are registered as vLLM provides for; three methods for
which it has no hooks are wrapped when the plugin is loaded: the admission of requests in the first process,
the loading of the model where it runs, and the scheduler's bookkeeping of a step, after which records of
requests that have ended are written.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from regaze.errors import InputError, RegazeError, UnsupportedModelError
from regaze.serving.release import KEY, check_release
from regaze.version import __version__

_log = logging.getLogger(__name__)

#: Marks what is wrapped already: every process loads plugins, some of them twice.
_WRAPPED = "_regaze_wrapped"


def register() -> None:
    """Put regaze into this process; it can be repeated.

    In a vLLM that is not known, or not as it is known, plain requests go on as ever, and those with methods
    are refused: vLLM starts without regaze rather than not at all.
    """
    try:
        check_release()
        _connect()
    except Exception as error:
        reason = str(error) if isinstance(error, UnsupportedModelError) else _unlike(error)
        _log.warning("regaze: %s", reason)
        try:
            _wrap_admission(_refusing(reason))
        except Exception as unknown:  # releases that have it elsewhere
            _log.warning("regaze: requests that name methods are answered without: %s", _unlike(unknown))


def _unlike(error: Exception) -> str:
    return f"this vLLM is not as regaze knows it ({type(error).__name__}: {error})"


def _connect() -> None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    places: list[tuple[type, str, Callable[..., Any]]] = [
        (GPUModelRunner, "load_model", _attaching),
        (CPUModelRunner, "load_model", _attaching),
        (Scheduler, "update_from_output", _ending),
    ]
    for owner, name, _ in places:
        _method(owner, name)
    _wrap_admission(_admitting)
    for owner, name, around in places:
        _wrap(owner, name, around)
    # The CPU has one backend, whichever is asked for; on a GPU `--attention-backend CUSTOM` asks for ours.
    register_backend(AttentionBackendEnum.CPU_ATTN, "regaze.serving.cpu.EditedCPUBackend")
    register_backend(AttentionBackendEnum.CUSTOM, "regaze.serving.triton.EditedTritonBackend")


def _method(owner: type, name: str) -> Callable[..., Any]:
    if name not in owner.__dict__:
        raise UnsupportedModelError(f"this vLLM is not as regaze knows it: {owner.__name__} has no {name}")
    method: Callable[..., Any] = owner.__dict__[name]
    return method


def _wrap(owner: type, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    method = _method(owner, name)
    if not hasattr(method, _WRAPPED):
        wrapped = functools.wraps(method)(around(method))
        setattr(wrapped, _WRAPPED, True)
        setattr(owner, name, wrapped)


def _wrap_admission(around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    _wrap(InputProcessor, "process_inputs", around)


def _refusing(reason: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def around(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
        def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
            request = process_inputs(self, *args, **kwargs)
            if KEY in (getattr(request.sampling_params, "extra_args", None) or {}):
                raise _refusal(UnsupportedModelError(reason))
            return request

        return refused

    return around


def _admitting(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
    from regaze.serving.admission import Admission

    def admitted(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        if "_regaze_admission" not in self.__dict__:
            self.__dict__["_regaze_admission"] = Admission(self.vllm_config)
        try:
            self.__dict__["_regaze_admission"].admit(request)
        except Exception as error:
            _forget_images(self.renderer.mm_processor_cache, request)
            raise _refusal(error) from error
        return request

    return admitted


def _refusal(error: Exception) -> Exception:
    """The error as vLLM takes it for one of a request, which its server answers with status 400."""
    from vllm.exceptions import VLLMValidationError

    if not isinstance(error, RegazeError):
        _log.error("regaze: a request could not be admitted", exc_info=error)
        error = InputError(
            f"the request's methods cannot be prepared ({type(error).__name__}: {error}); the server's log "
            'has more, and "regaze": "[]" asks for the plain model'
        )

    class RefusedRequest(VLLMValidationError, type(error)):  # type: ignore[misc]
        """An error of regaze that is one of vLLM, too."""

    return RefusedRequest(str(error), parameter=KEY)


def _forget_images(cache: Any, request: Any) -> None:
    """Let the images of a refused request be sent again: vLLM takes the engine to have them by now.

    Those that came without their data the engine has indeed, for requests that were admitted.
    """
    for feature in request.mm_features or ():
        if cache is not None and feature.mm_hash is not None and feature.data is not None:
            cache.invalidate(feature.mm_hash)


def _ending(update: Callable[..., Any]) -> Callable[..., Any]:
    from regaze.serving import records

    def updated(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorded = {name: self.requests[name] for name in records.running() if name in self.requests}
        result = update(self, *args, **kwargs)
        for name in recorded.keys() & self.finished_req_ids:
            records.end(name, list(recorded[name].output_token_ids))
        return result

    return updated


def _attaching(load_model: Callable[..., Any]) -> Callable[..., Any]:
    def loaded(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self.vllm_config
        if isinstance(config.additional_config, dict):  # part of the key of compiled models in vLLM's cache
            config.additional_config["regaze"] = __version__
        result = load_model(self, *args, **kwargs)
        try:
            attach(self)
        except Exception as error:  # plain requests need nothing of it
            _log.warning("regaze: this model's layers are not as regaze knows them: %s", error)
        return result

    return loaded


def attach(runner: Any) -> None:
    """Connect the attention layers of a runner's model with the edits of its requests."""
    from vllm.model_executor.models.utils import extract_layer_index

    from regaze.serving.edits import EngineEdits

    layers = runner.vllm_config.compilation_config.static_forward_context
    impls = {name: getattr(layer, "impl", None) for name, layer in layers.items()}
    numbers = {
        name: extract_layer_index(name) for name, impl in impls.items() if hasattr(type(impl), "edits")
    }
    if not numbers:
        return
    edits = EngineEdits(runner)
    for name, number in numbers.items():
        impl: Any = impls[name]
        impl.edits, impl.number = edits, number
    if not runner.vllm_config.compilation_config.mode:  # compiled models run no hooks
        watch_stream(runner.get_model(), runner.model_config.hf_text_config.num_hidden_layers, edits)


def watch_stream(model: nn.Module, count: int, edits: Any) -> None:
    """Show the residual stream that enters each of a model's `count` decoder layers."""
    layers = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]
    if len(layers) != count:
        return
    for number, layer in enumerate(layers):
        names = tuple(inspect.signature(layer.forward).parameters)
        layer.register_forward_pre_hook(_showing(number, names, edits), with_kwargs=True)


def _showing(number: int, names: tuple[str, ...], edits: Any) -> Callable[..., None]:
    from vllm.forward_context import get_forward_context, is_forward_context_available

    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
        if not isinstance(metadata, dict) or not metadata:
            return

        def stream() -> Tensor:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            hidden: Tensor = given["hidden_states"]
            residual = given.get("residual")
            return hidden if residual is None else hidden + residual

        edits.show_hidden(number, stream, next(iter(metadata.values())))

    return show
