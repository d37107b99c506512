"""`regaze lm-eval --model regaze`: lm-evaluation-harness's transformers model with forwards under a method.

regaze lm-eval --model regaze --model_args pretrained=HuggingFaceTB/SmolLM2-135M,method=dola --tasks arc_easy

lm-eval knows the model once this module has been imported.
"""

from __future__ import annotations

import inspect
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedModel
from typing_extensions import Self

import regaze
from regaze.errors import BadParameterError, InputError
from regaze.eval.harness import arguments
from regaze.eval.run.loglikelihood import LogLikelihood, loglikelihoods
from regaze.interventions.base import Intervention

#: a request of the harness: its texts, and the token ids of context and continuation
_Request = tuple[tuple[str, str], list[int], list[int]]
#: options of `from_pretrained` that no signature names
_LOADING = {
    "adapter_kwargs",
    "allow_all_kernels",
    "attn_implementation",
    "device_map",
    "experts_implementation",
    "key_mapping",
    "max_memory",
    "offload_buffers",
    "use_kernels",
    "variant",
}
_NOT_OPTIONS = {"self", "pretrained_model_name_or_path", "model_args", "kwargs"}


@register_model("regaze")
class RegazeLM(HFLM):
    """The harness's `hf` with `method=NAME` and the method's parameters as further arguments.

    Generation runs inside `gaze.using(method)`. Log-likelihoods take one forward if the method's effect on a
    token does not depend on later tokens (`shares_prefix` is "edited"). Otherwise they are decoded token by
    token, see `regaze.eval.run.loglikelihood`. Without a method the model is `hf`.

    Raises:
        UnknownMethodError: no such method.
        BadParameterError: an unknown argument, a wrong value, or a multi-pass method.
        InputError: an encoder-decoder or `--use_cache` under a method.
    """

    def __init__(self, pretrained: Any = None, **kwargs: Any):
        method = arguments.pop_method(kwargs)
        if pretrained is None:
            raise BadParameterError("--model_args: pretrained=NAME, or a folder with a model, is missing")
        if method is not None and not isinstance(method, Intervention):
            raise BadParameterError(
                f"method={method.name} asks questions in its own way, so it has no log-likelihoods and no "
                "stop sequences: use `regaze evaluate`, or a method that acts inside forwards"
            )
        arguments.check_unknown(_without_config_options(kwargs, pretrained), _known(), method)
        self.method: Intervention | None = method
        if method is not None and not self._in_one_forward:
            why = f"lm-eval's search tries plain forwards, and method={method.name} needs more memory"
            kwargs["batch_size"] = arguments.batch_size(kwargs.get("batch_size", 1), why)
        super().__init__(pretrained=pretrained, **kwargs)
        if method is not None and self.backend != "causal":
            raise InputError(f"method={method.name} needs a decoder-only model, got backend {self.backend}")
        self.gaze = regaze.wrap(self.model, self.tokenizer)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> Self:
        """As in the harness, but a list may hold commas: heads=[[3,1],[4,0]]."""
        return cls.create_from_arg_obj(arguments.parse(arg_string or ""), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict | None = None) -> Self:
        """As in the harness; what `--model_args` sets goes before an option of the harness."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**given, **arg_dict})

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse the harness's cache of answers under a method.

        It finds an answer by its prompt, and would give this method's to other methods and to plain `hf`.
        """
        if self.method is not None and cache_hook.dbdict is not None:
            raise InputError(
                f"--use_cache cannot be used with method={self.method.name}: lm-eval's cache knows answers "
                "by their prompt alone, so that other methods and models would get these; leave it out"
            )
        super().set_cache_hook(cache_hook)

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        if not self._in_one_forward:  # no method: those that decode do not come here
            return super()._model_call(inps, attn_mask, labels)
        with self._method_active():
            return super()._model_call(inps, attn_mask, labels)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._method_active():
            return super()._model_generate(*args, **kwargs)

    def _loglikelihood_tokens(
        self, requests: list[_Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self.method is None or self._in_one_forward:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        size = override_bs or self.batch_size
        order = sorted(
            range(len(requests)), key=lambda i: -len(requests[i][1])
        )  # similar lengths need the least padding
        answers: dict[int, tuple[float, bool]] = {}
        bar = tqdm(total=len(order), disable=disable_tqdm or self.rank != 0, desc="Decoding continuations")
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            for i, score in zip(batch, self._decode([requests[i] for i in batch]), strict=True):
                answers[i] = (score.logprob, score.greedy)
            bar.update(len(batch))
        bar.close()
        return [answers[i] for i in range(len(requests))]

    def _decode(self, requests: list[_Request]) -> list[LogLikelihood]:
        contexts, continuations = [], []
        for _, context, continuation in requests:  # cut on the left, as the harness does
            continuation = continuation[-self.max_length :]
            contexts.append((context + continuation)[-(self.max_length + 1) : -len(continuation)])
            continuations.append(continuation)
        inputs = self.tokenizer.pad({"input_ids": contexts}, padding_side="left", return_tensors="pt")
        with self._method_active():
            return loglikelihoods(self.model, inputs.to(self.device), continuations)

    @property
    def _in_one_forward(self) -> bool:
        return self.method is not None and self.method.shares_prefix == "edited"

    def _method_active(self) -> Any:
        return self.gaze.using(*([] if self.method is None else [self.method]))

    def get_model_info(self) -> dict[str, Any]:
        """The harness's description of the model, with the method and all its parameters."""
        method = {"method": "none"} if self.method is None else self.method.to_dict()
        return {**super().get_model_info(), "regaze_version": regaze.__version__, "regaze_method": method}


def _known() -> set[str]:
    """Arguments that the harness's model or `from_pretrained` takes."""
    signatures = inspect.signature(HFLM.__init__), inspect.signature(PreTrainedModel.from_pretrained)
    return _LOADING.union(*(signature.parameters for signature in signatures)) - _NOT_OPTIONS


def _without_config_options(given: dict[str, Any], pretrained: Any) -> dict[str, Any]:
    """The arguments but for those that `from_pretrained` sets in the model's configuration."""
    if not isinstance(pretrained, str) or not set(given) - _known():
        return given
    where = {name: given[name] for name in ("revision", "subfolder", "trust_remote_code") if name in given}
    try:
        config = AutoConfig.from_pretrained(pretrained, **where)
    except (OSError, ValueError):  # no such model: the unknown arguments come first
        return given
    return {name: value for name, value in given.items() if not hasattr(config, name)}
