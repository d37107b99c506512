"""What is wrapped around vLLM's `InputProcessor`, which every request passes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from regaze.errors import InputError, RegazeError, UnsupportedModelError
from regaze.serving.common.release import KEY

_log = logging.getLogger(__name__)


def refusing(reason: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def around(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
        def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
            request = process_inputs(self, *args, **kwargs)
            if KEY in (getattr(request.sampling_params, "extra_args", None) or {}):
                raise _refusal(UnsupportedModelError(reason))
            return request

        return refused

    return around


def admitting(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
    from regaze.serving.frontend.admission import Admission, forget_images  # `refusing` does without

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
