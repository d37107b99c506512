"""What is wrapped around methods of vLLM's model runners, where the model is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from regaze.serving.common.messages import AGAIN, ANSWERS, FAILED
from regaze.serving.common.release import unlike
from regaze.serving.worker.attachment import EDITS, attach
from regaze.serving.worker.edits import EngineEdits
from regaze.serving.worker.recorder import end_record
from regaze.version import __version__

_log = logging.getLogger(__name__)


def attaching(load_model: Callable[..., Any]) -> Callable[..., Any]:
    """Where the model runs: connect its layers with the edits of requests, once it is loaded."""

    def loaded(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self.vllm_config
        if isinstance(config.additional_config, dict):  # part of the key of compiled models in vLLM's cache
            config.additional_config["regaze"] = __version__
        result = load_model(self, *args, **kwargs)
        try:
            attach(self)
        except Exception as error:  # plain requests need nothing of it
            self.__dict__[EDITS] = EngineEdits(self, unlike(error))
            _log.warning("regaze: %s", self.__dict__[EDITS].obstacle)
        return result

    return loaded


def beginning(execute_model: Callable[..., Any]) -> Callable[..., Any]:
    """Where the model runs: write the records of requests that have ended, and begin a step."""

    def executed(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        for name, answer in getattr(scheduled, ANSWERS, {}).items():
            end_record(name, answer)
        if (edits := self.__dict__.get(EDITS)) is not None:
            edits.begin_step(scheduled.finished_req_ids)
        return execute_model(self, scheduled, *args, **kwargs)

    return executed


def reporting(sample_tokens: Callable[..., Any]) -> Callable[..., Any]:
    """Where the model runs: combine logits, and name the requests whose methods failed in this forward."""

    def sampled(self: Any, *args: Any, **kwargs: Any) -> Any:
        edits = self.__dict__.get(EDITS)
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
        for name, found in ((FAILED, edits.failed()), (AGAIN, again)):
            if found and output is not None:
                setattr(output, name, found)
        return result

    return sampled


def following(sample: Callable[..., Any]) -> Callable[..., Any]:
    """Where the model runs: second contexts go on with the tokens that were sampled."""

    def sampled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = sample(self, *args, **kwargs)
        if (edits := self.__dict__.get(EDITS)) is not None:
            edits.mixing.follow(output.sampled_token_ids)
        return output

    return sampled
