"""The entry point of `vllm.general_plugins`: puts regaze into the processes of an engine.

Nothing of vLLM's source is changed. Attention backends are registered as vLLM provides for; methods for which
it has no hooks are wrapped when the plugin is loaded: the admission of requests in the first process, the
loading and the steps of the model where it runs, and the scheduler's, which ends requests whose methods have
failed and says which requests have ended, so that their records are written.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from regaze.errors import InputError, RegazeError, UnsupportedModelError
from regaze.serving.common.release import KEY, check_release
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
    from vllm.triton_utils import dispatcher
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from regaze.serving.scheduler import companions

    places: list[tuple[type, str, Callable[..., Any]]] = [
        (GPUModelRunner, "load_model", _attaching),
        (CPUModelRunner, "load_model", _attaching),
        (GPUModelRunner, "execute_model", _beginning),
        (GPUModelRunner, "sample_tokens", _reporting),
        (GPUModelRunner, "_sample", _following),
        (EngineCore, "preprocess_add_request", companions.preparing),
        (Scheduler, "add_request", companions.adding),
        (Scheduler, "_handle_blocked_waiting_request", companions.following),
        (Scheduler, "update_from_output", _failing),
        (Scheduler, "_free_request", _ending),
        (Scheduler, "schedule", _telling),
        (KVCacheCoordinator, "cache_blocks", _sharing),
    ]
    for owner, name, _ in places:
        _method(owner, name)
    _wrap_admission(_admitting)
    for owner, name, around in places:
        _wrap(owner, name, around)
    if "_rebind_kernels" in vars(dispatcher):
        _wrap(dispatcher, "_rebind_kernels", _hiding)
    # The CPU has one backend, whichever is asked for; on a GPU `--attention-backend CUSTOM` asks for ours.
    register_backend(AttentionBackendEnum.CPU_ATTN, "regaze.serving.backends.cpu.EditedCPUBackend")
    register_backend(AttentionBackendEnum.CUSTOM, "regaze.serving.backends.triton.EditedTritonBackend")


def _hiding(rebind_kernels: Callable[..., Any]) -> Callable[..., Any]:
    """Where the model runs: vLLM looks through all modules, and fails at llvmlite, which Numba brings."""

    def rebound(*args: Any, **kwargs: Any) -> Any:
        hidden = {name: sys.modules[name] for name in sys.modules if name.partition(".")[0] == "llvmlite"}
        for name in hidden:
            del sys.modules[name]
        try:
            return rebind_kernels(*args, **kwargs)
        finally:
            sys.modules.update(hidden)

    return rebound


def _method(owner: Any, name: str) -> Callable[..., Any]:
    if name not in owner.__dict__:
        raise UnsupportedModelError(f"this vLLM is not as regaze knows it: {owner.__name__} has no {name}")
    method: Callable[..., Any] = owner.__dict__[name]
    return method


def _wrap(owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
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
    from regaze.serving.frontend.admission import Admission

    def admitted(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        if "_regaze_admission" not in self.__dict__:
            self.__dict__["_regaze_admission"] = Admission(self.vllm_config)
        try:
            self.__dict__["_regaze_admission"].admit(request)
        except Exception as error:
            forget_images(self.renderer.mm_processor_cache, request)
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


def forget_images(cache: Any, request: Any) -> None:
    """Let the images of a refused request be sent again: vLLM takes the engine to have them by now.

    Those that came without their data the engine has indeed, for requests that were admitted.
    """
    for feature in request.mm_features or ():
        if cache is not None and feature.mm_hash is not None and feature.data is not None:
            cache.invalidate(feature.mm_hash)


# The scheduler, and what it and the model's process tell each other -----------------------------------------

#: Attributes beside those that vLLM's messages have: names of failed requests, and answers by request.
_FAILED, _ANSWERS = "regaze_failed", "regaze_answers"


def _reporting(sample_tokens: Callable[..., Any]) -> Callable[..., Any]:
    """Where the model runs: combine logits, and name the requests whose methods failed in this forward."""
    from regaze.serving.scheduler.companions import AGAIN

    def sampled(self: Any, *args: Any, **kwargs: Any) -> Any:
        edits = self.__dict__.get(_EDITS)
        if edits is None:
            return sample_tokens(self, *args, **kwargs)
        try:
            again = edits.mixing.begin()
        except Exception as error:  # plain requests need nothing of it
            again = []
            edits.give_up(error)
        try:
            result = sample_tokens(self, *args, **kwargs)
        finally:
            edits.mixing.end()
        output = getattr(result, "_model_runner_output", result)  # of an engine that schedules ahead
        for name, found in ((_FAILED, edits.failed()), (AGAIN, again)):
            if found and output is not None:
                setattr(output, name, found)
        return result

    return sampled


def _following(sample: Callable[..., Any]) -> Callable[..., Any]:
    """Where the model runs: second contexts go on with the tokens that were sampled."""

    def sampled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = sample(self, *args, **kwargs)
        if (edits := self.__dict__.get(_EDITS)) is not None:
            edits.mixing.follow(output.sampled_token_ids)
        return output

    return sampled


def _failing(update: Callable[..., Any]) -> Callable[..., Any]:
    """In the scheduler: end these with an error, before their tokens of this step are taken for answers."""
    from regaze.serving.scheduler import companions

    def updated(self: Any, scheduled: Any, output: Any) -> Any:
        groups = companions.groups_of(self)
        refused = groups.refused.intersection(scheduled.num_scheduled_tokens)
        ended = _end(self, [*getattr(output, _FAILED, ()), *refused])
        companions.run_again(self, getattr(output, companions.AGAIN, ()))
        result = update(self, scheduled, output)
        ended += _end(self, [*groups.flush(self), *companions.check_room(self, scheduled)])
        groups.hide(result)
        if ended:
            from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

            for request in ended:
                reason = request.get_finished_reason()
                told = EngineCoreOutput(request_id=request.request_id, new_token_ids=[], finish_reason=reason)
                whole = result.setdefault(request.client_index, EngineCoreOutputs())
                whole.outputs = [*whole.outputs, told]
        return result

    return updated


def _end(scheduler: Any, names: Sequence[str]) -> list[Any]:
    """End requests with an error, for companions theirs; nobody reads the pages that they leave."""
    from vllm.v1.request import RequestStatus

    from regaze.serving.scheduler.companions import groups_of

    for name in names:
        if name in scheduler.requests:
            pages = scheduler.kv_cache_manager.get_block_ids(name)
            scheduler.kv_cache_manager.evict_blocks({page for group in pages for page in group})
    if not names:
        return []
    mains = groups_of(scheduler).mains(names)
    ended: list[Any] = scheduler.finish_requests(mains, RequestStatus.FINISHED_ERROR)
    return ended


def _ending(free: Callable[..., Any]) -> Callable[..., Any]:
    """In the scheduler: a request has ended: its companions do, too, and its record is written."""
    from regaze.serving.scheduler import companions
    from regaze.serving import records

    def freed(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = free(self, request, *args, **kwargs)
        companions.groups_of(self).freed(request.request_id)
        if records.is_recorded(request.sampling_params):
            answer = list(request.output_token_ids)
            if not records.end(request.request_id, answer):  # the model runs in another process
                self.__dict__.setdefault(_ANSWERS, {})[request.request_id] = answer
        return result

    return freed


def _telling(schedule: Callable[..., Any]) -> Callable[..., Any]:
    from regaze.serving.scheduler.companions import groups_of

    def scheduled(self: Any, *args: Any, **kwargs: Any) -> Any:
        groups_of(self).flush(self)
        output = schedule(self, *args, **kwargs)
        if answers := self.__dict__.pop(_ANSWERS, None):
            setattr(output, _ANSWERS, answers)
        return output

    return scheduled


def _sharing(cache_blocks: Callable[..., Any]) -> Callable[..., Any]:
    """In the scheduler: share no pages with rows that are edited for being the prompt's last or the answer's.

    To a further turn of a chat, which has them in its prompt, they are rows like others.
    """
    from regaze.serving.common.wire import shared_rows

    def cached(self: Any, request: Any, count: int, *args: Any, **kwargs: Any) -> Any:
        limit = shared_rows(request.sampling_params)
        return cache_blocks(self, request, count if limit is None else min(count, limit), *args, **kwargs)

    return cached


def _beginning(execute_model: Callable[..., Any]) -> Callable[..., Any]:
    """Where the model runs: write the records of requests that have ended, and begin a step."""
    from regaze.serving import records

    def executed(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        for name, answer in getattr(scheduled, _ANSWERS, {}).items():
            records.end(name, answer)
        if (edits := self.__dict__.get(_EDITS)) is not None:
            edits.begin_step(scheduled.finished_req_ids)
        return execute_model(self, scheduled, *args, **kwargs)

    return executed


# The model ------------------------------------------------------------------------------------------------

#: The attribute of a runner with the edits of its requests.
_EDITS = "_regaze_edits"


def _attaching(load_model: Callable[..., Any]) -> Callable[..., Any]:
    from regaze.serving.worker.edits import EngineEdits

    def loaded(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self.vllm_config
        if isinstance(config.additional_config, dict):  # part of the key of compiled models in vLLM's cache
            config.additional_config["regaze"] = __version__
        result = load_model(self, *args, **kwargs)
        try:
            attach(self)
        except Exception as error:  # plain requests need nothing of it
            self.__dict__[_EDITS] = EngineEdits(self, _unlike(error))
            _log.warning("regaze: %s", self.__dict__[_EDITS].obstacle)
        return result

    return loaded


def attach(runner: Any) -> None:
    """Connect the attention layers of a runner's model with the edits of its requests."""
    from vllm.model_executor.models.utils import extract_layer_index

    layers = runner.vllm_config.compilation_config.static_forward_context
    impls: dict[str, Any] = {name: getattr(layer, "impl", None) for name, layer in layers.items()}
    editing = [name for name, impl in impls.items() if hasattr(type(impl), "edits")]
    if not editing:
        raise UnsupportedModelError("none of its attention layers is one of regaze")
    from regaze.serving.worker.edits import EngineEdits
    from regaze.serving.worker.heads import own_heads
    from regaze.serving.worker.layer_logits import EngineLogits

    heads = own_heads(impls[editing[0]].num_heads)
    edits, numbers = EngineEdits(runner, heads=heads), [extract_layer_index(name) for name in editing]
    for name, number in zip(editing, numbers, strict=True):
        impls[name].edits, impls[name].number = edits, number
    runner.__dict__[_EDITS] = edits
    if not runner.vllm_config.compilation_config.mode:  # compiled models run no hooks
        attention = {layers[name]: number for name, number in zip(editing, numbers, strict=True)}
        edits.shows_hidden = watch_stream(runner.get_model(), attention, edits)
        if edits.shows_hidden:
            try:
                edits.layer_logits = EngineLogits(runner.get_model(), attention, heads)
            except Exception as error:  # other methods need nothing of it
                _log.warning("regaze: methods that read logits of layers will fail: %s", error)


def watch_stream(model: nn.Module, attention: Mapping[nn.Module, int], edits: Any) -> bool:
    """Show the residual stream that enters each decoder layer, which has one of these attention modules.

    Args:
        attention: the number of each attention module's layer, which its name in the model has, too.

    Returns:
        Whether all layers were found, and take "hidden_states".
    """
    found: dict[int, tuple[nn.Module, tuple[str, ...]]] = {}
    for name, module in model.named_modules():
        if module in attention:
            number, parts = attention[module], name.split(".")
            if str(number) not in parts:
                return False
            layer = model.get_submodule(".".join(parts[: parts.index(str(number)) + 1]))
            found[number] = layer, tuple(inspect.signature(layer.forward).parameters)
    if len(found) < len(attention) or not all("hidden_states" in names for _, names in found.values()):
        return False
    for number, (layer, names) in found.items():
        layer.register_forward_pre_hook(_showing(number, names, edits), with_kwargs=True)
    return True


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
            return hidden.clone() if residual is None else hidden + residual  # layers write to them

        try:
            edits.show_hidden(number, stream, next(iter(metadata.values())))
        except Exception as error:  # plain requests need nothing of it
            edits.give_up(error)

    return show
