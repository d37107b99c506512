"""The entry point of `vllm.general_plugins`: puts regaze into the processes of an engine.

Nothing of vLLM's source is changed. Attention backends are registered as vLLM provides for; methods for which
it has no hooks are wrapped when the plugin is loaded, each by a function of the module `hooks` of a room: the
admission of requests (`frontend`), the scheduler's, which ends requests whose methods have failed
(`scheduler`), and the loading and the steps of the model where it runs (`worker`).
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from regaze.errors import UnsupportedModelError
from regaze.serving.common.release import check_release, unlike

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
        reason = str(error) if isinstance(error, UnsupportedModelError) else unlike(error)
        _log.warning("regaze: %s", reason)
        try:
            from regaze.serving.frontend.hooks import refusing  # needs nothing that may have failed

            _wrap_admission(refusing(reason))
        except Exception as unknown:  # releases that have it elsewhere
            _log.warning("regaze: requests that name methods are answered without: %s", unlike(unknown))


def _connect() -> None:
    from vllm.triton_utils import dispatcher
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from regaze.serving.frontend.hooks import admitting
    from regaze.serving.scheduler import hooks as scheduler
    from regaze.serving.worker import hooks as worker

    places: list[tuple[type, str, Callable[..., Any]]] = [
        (GPUModelRunner, "load_model", worker.attaching),
        (CPUModelRunner, "load_model", worker.attaching),
        (GPUModelRunner, "execute_model", worker.beginning),
        (GPUModelRunner, "sample_tokens", worker.reporting),
        (GPUModelRunner, "_sample", worker.following),
        (EngineCore, "preprocess_add_request", scheduler.preparing),
        (Scheduler, "add_request", scheduler.adding),
        (Scheduler, "_handle_blocked_waiting_request", scheduler.following),
        (Scheduler, "update_from_output", scheduler.failing),
        (Scheduler, "_free_request", scheduler.ending),
        (Scheduler, "schedule", scheduler.telling),
        (KVCacheCoordinator, "cache_blocks", scheduler.sharing),
    ]
    for owner, name, _ in places:
        _method(owner, name)
    _wrap_admission(admitting)
    for owner, name, around in places:
        _wrap(owner, name, around)
    if "_rebind_kernels" in vars(dispatcher):
        _wrap(dispatcher, "_rebind_kernels", _hiding)
    # The CPU has one backend, whichever is asked for; on a GPU `--attention-backend CUSTOM` asks for ours.
    register_backend(AttentionBackendEnum.CPU_ATTN, "regaze.serving.backends.cpu.EditedCPUBackend")
    register_backend(AttentionBackendEnum.CUSTOM, "regaze.serving.backends.cuda.EditedBackend")


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
