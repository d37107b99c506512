"""`OfflineEngine`: an engine of vLLM that answers many requests in continuous batches, without a server."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import GenerationConfig

from regaze.caching import cached_property
from regaze.errors import InputError, UnsupportedModelError
from regaze.reading import cache_folder
from regaze.serving.common.release import KEY, READABLE, check_release
from regaze.serving.frontend.admission import DEFAULT, forget_images
from regaze.serving.frontend.checkpoints import NO_BED, export_demo
from regaze.toolkit.load import load_without_weights, model_source
from regaze.toolkit.wrap import Gaze, wrap

_PLUGINS = "vllm.general_plugins"
#: Of an engine's processes, where nobody has set other values.
_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0", READABLE: "1", "VLLM_LOGGING_LEVEL": "WARNING"}
#: What names of variables begin with that say where vLLM writes, listens and runs, and change no answer.
_OF_NO_ANSWER = tuple(
    f"VLLM_{each}"
    for each in (
        *("LOGGING", "CONFIGURE_LOGGING", "LOG_", "NO_USAGE", "USAGE", "DO_NOT_TRACK", "API_KEY", "HTTP"),
        *("CACHE_ROOT", "CONFIG_ROOT", "ASSETS", "MEDIA", "HOST_IP", "PORT", "RPC", "IMAGE_FETCH"),
        *("CPU_KVCACHE_SPACE", "CPU_OMP_THREADS_BIND", "WORKER_MULTIPROC", "ENABLE_V1_MULTIPROCESSING"),
    )
)
#: The `logprobs_mode` of vLLM in which no processor of logits changes what is reported.
_RAW = "raw_logprobs"
#: What vLLM calls a request that did not come to its end.
_FAILED = {"error", "abort"}


@dataclass(frozen=True)
class EngineRequest:
    """What an engine is asked.

    Attributes:
        ids: of the prompt's tokens, with one placeholder per image. images: in their order.
        sampling: arguments of vLLM's `SamplingParams`.
        methods: what is done to the request, in their JSON form.
        forced: ids of the only answer that it may give; (): any.
        read: how many tokens at the end of the prompt are an answer whose likelihood is wanted.
    """

    ids: Sequence[int]
    images: Sequence[Image.Image]
    sampling: Mapping[str, Any]
    methods: Sequence[Mapping[str, Any]] = ()
    forced: Sequence[int] = ()
    read: int = 0


class EngineAnswer(NamedTuple):
    """What an engine answered.

    Attributes:
        ids: of the answer's tokens. prompt: of the prompt's, images expanded.
        cached: how many tokens of the prompt had run for earlier requests.
        logprobs: in nats, of the tokens of an answer that was given; () where none was.
    """

    ids: Sequence[int]
    prompt: Sequence[int]
    cached: int
    logprobs: Sequence[float] = ()


@dataclass
class OfflineEngine:
    """An engine of vLLM. It starts with the first request, which takes a while, and ends with `close`.

    Attributes:
        model: "demo", a folder, or a name of the hub. loading: where its files are: revision,
            trust_remote_code.
        options: arguments of vLLM's `LLM`, beside those that regaze needs.
        template_args: variables of the chat template, in every prompt.

    Raises:
        UnsupportedModelError: vLLM is missing, of another release, or does not find regaze; or it is the bed.
        ModelNotFoundError: there is no such model. BadParameterError: a variable that its template lacks.
    """

    model: str
    loading: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    template_args: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.model == "bed":
            raise UnsupportedModelError(NO_BED)
        check_release()
        if not entry_points(group=_PLUGINS, name=KEY):
            raise UnsupportedModelError(
                "vLLM would not load regaze: this regaze was not installed by pip, so it has no entry points"
            )
        if KEY not in os.environ.get("VLLM_PLUGINS", KEY).split(","):
            raise UnsupportedModelError(f"vLLM would not load regaze: VLLM_PLUGINS does not name {KEY}")

    @cached_property
    def gaze(self) -> Gaze:
        """The model without its weights, which builds prompts as the model of transformers does."""
        loaded = load_without_weights(self.model, **self.loading)
        return wrap(*loaded, template_args=self.template_args)

    @property
    def dtype(self) -> str:
        """Of weights and activations: as stored, where nobody says so; the demo float32, as `load` has it."""
        stored = "float32" if self.model == "demo" else getattr(self.gaze.model.config, "dtype", None)
        return str(self.options.get("dtype") or stored or "auto").removeprefix("torch.")

    @property
    def arguments(self) -> dict[str, Any]:
        """Of vLLM's `LLM`, beside the model and its dtype."""
        own = {"attention_backend": "CUSTOM"} if torch.cuda.is_available() else {}
        return {"enforce_eager": True, **own, **{k: v for k, v in self.options.items() if k != "dtype"}}

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes, the variables by which vLLM and regaze choose how they compute."""
        names = [name for name in os.environ if name.startswith("VLLM_") or name == READABLE]
        found = {**_ENVIRONMENT, **{name: os.environ[name] for name in names}}
        return {name: found[name] for name in sorted(found) if not name.startswith(_OF_NO_ANSWER)}

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """What the model's own configuration of `generate` changes; {} where it has none."""
        places = {name: self.loading[name] for name in ("revision",) if name in self.loading}
        try:
            own = GenerationConfig.from_pretrained(model_source(self.model), **places)
        except OSError:
            return {}
        found: dict[str, Any] = own.to_diff_dict()
        return found

    # The engine ---------------------------------------------------------------------------------------

    @cached_property
    def llm(self) -> Any:
        """vLLM's `LLM`, which starts here."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        gc.collect()  # engines that were dropped without `close` end now, and not while this one starts
        given = {**self.loading, **self.arguments, "dtype": self.dtype}
        processors = [*given.pop("logits_processors", ()), "regaze.serving.worker.forced:ForcedAnswer"]
        source = self.model
        if source == "demo":
            source = str(export_demo(cache_folder() / "serving" / "demo"))
        try:
            return LLM(model_source(source), logits_processors=processors, **given)
        except Exception as error:  # a model or an option that vLLM does not know may fail in any way
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UnsupportedModelError(f"vLLM does not start with {self.model!r}: {reason}") from error

    def close(self) -> None:
        """End the engine and its processes, where it was started."""
        if "llm" in self.__dict__:
            self.__dict__.pop("llm").llm_engine.engine_core.shutdown()

    # Requests -----------------------------------------------------------------------------------------

    def admit(self, request: EngineRequest) -> list[int]:
        """Ids of the prompt that the engine would run, without running it.

        Raises:
            RegazeError: its methods cannot act on it in this engine.
        """
        engine = self.llm.llm_engine
        tasks = engine.get_supported_tasks()
        checked = engine.input_processor.process_inputs(
            "regaze-check", self._rendered(request), self._params(request), tasks
        )
        forget_images(engine.renderer.mm_processor_cache, checked)  # the engine has never seen them
        return list(checked.prompt_token_ids)

    def answers(
        self, keys: Iterable[str], request: Callable[[str], EngineRequest]
    ) -> Iterator[tuple[str, EngineAnswer | Exception]]:
        """The answer to the request of each key, or its error, in the order in which they are ready.

        Args:
            request: makes the request of a key, when there is room for it.

        Raises:
            Exception: the engine itself failed.
        """
        engine, left, waiting = self.llm.llm_engine, iter(keys), dict[str, EngineRequest]()
        limit = self.llm.model_config.max_model_len
        room = 2 * engine.vllm_config.scheduler_config.max_num_seqs
        try:
            while True:
                while len(waiting) < room and (key := next(left, None)) is not None:
                    try:
                        made = request(key)
                        engine.add_request(key, self._rendered(made), self._params(made))
                        waiting[key] = replace(made, images=())
                    except Exception as error:  # of one request, which must not end the others
                        if _is_dead(error):
                            raise
                        yield key, error
                if not waiting:
                    return
                for output in engine.step():
                    if output.finished:
                        yield output.request_id, _answer(output, waiting.pop(output.request_id), limit)
        finally:
            if waiting:
                with suppress(Exception):  # of an engine that is no more
                    engine.abort_request(sorted(waiting))

    def _rendered(self, request: EngineRequest) -> Any:
        """A prompt as the engine takes it, images processed."""
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        prompt: dict[str, Any] = {"prompt_token_ids": list(request.ids)}
        if request.images:
            prompt["multi_modal_data"] = {"image": list(request.images)}
        renderer = self.llm.llm_engine.renderer
        parsed = parse_model_prompt(self.llm.model_config, prompt)
        (rendered,) = renderer.render_cmpl([parsed], renderer.default_cmpl_tok_params)
        return rendered

    def _check_logprobs(self) -> None:
        """Raise UnsupportedModelError where log-probabilities are not those of the model's own logits."""
        mode = self.llm.model_config.logprobs_mode
        if mode != _RAW:
            raise UnsupportedModelError(
                f"likelihoods need the log-probabilities of the model, and this engine gives {mode}: leave "
                f"logprobs_mode out, or set it to {_RAW}"
            )

    def _params(self, request: EngineRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from regaze.serving.worker.forced import FORCED

        extra: dict[str, Any] = {}
        if request.methods or os.environ.get(DEFAULT):
            extra[KEY] = [dict(method) for method in request.methods]
        sampling = dict(request.sampling)
        if request.read or request.forced:
            self._check_logprobs()
        if request.read:
            sampling |= {"max_tokens": 1, "prompt_logprobs": 0}
        if request.forced:
            extra[FORCED] = list(request.forced)
            sampling |= {"max_tokens": len(request.forced), "ignore_eos": True, "logprobs": 0}
        return SamplingParams(
            **sampling,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=extra or None,
        )


def _answer(output: Any, request: EngineRequest, limit: int) -> EngineAnswer | Exception:
    """What became of a request to an engine that takes `limit` tokens, prompt and answer together."""
    (whole,), read = output.outputs, request.read
    if whole.finish_reason in _FAILED:
        return InputError(f"the engine ended this request ({whole.finish_reason}); its log says why")
    ids, prompt = list(whole.token_ids), list(output.prompt_token_ids)
    wanted = len(request.forced) or request.sampling.get("max_tokens") or 0
    if whole.finish_reason == "length" and len(ids) < wanted:
        return InputError(
            f"the engine ended this answer after {len(ids)} of {wanted} tokens: it takes {limit} of a prompt "
            f"and its answer (max_model_len), and the prompt has {len(prompt)}, a second context of it may "
            f"have more: start the engine with a larger max_model_len, or ask for shorter answers"
        )
    if request.forced and ids != list(request.forced):
        return InputError("the engine gave another answer than the one whose likelihood was asked for")
    given, rows = (prompt[-read:], output.prompt_logprobs[-read:]) if read else (ids, whole.logprobs or ())
    logprobs = [float(row[token].logprob) for token, row in zip(given, rows, strict=bool(rows))]
    return EngineAnswer(ids, prompt, int(output.num_cached_tokens or 0), logprobs)


def _is_dead(error: Exception) -> bool:
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)
