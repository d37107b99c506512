"""Admission: a request is checked where it enters, before any engine has it.

An error inside a forward would end the engine and every request in it; an error here is the answer to one
request (over HTTP with status 400). So all that a request's methods do with its prompt is done here first:
parameters are checked, roles are read, and `prepare` and the edits of two steps run as in the engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from regaze.caching import cached_property
from regaze.errors import InputError, UnsupportedModelError
from regaze.interventions.base import Intervention
from regaze.serving import records
from regaze.serving.backends.platforms import without_edits
from regaze.serving.common import wire
from regaze.serving.common.contexts import ServedContext, acting, has_second
from regaze.serving.common.limits import CONTEXTS, check_limit
from regaze.serving.common.newest import Newest
from regaze.serving.common.prompts import context_of, prompt_key, read_tokens, reader_of
from regaze.serving.common.release import KEY
from regaze.serving.common.seconds import Second, media_of, seconds_of
from regaze.serving.common.support import lacking, requested
from regaze.serving.frontend.trial import try_edits
from regaze.serving.records import RECORD_KEY
from regaze.serving.worker.recorder import EngineRecorder
from regaze.serving.worker.requests import EditedRequest
from regaze.toolkit.model.callback import Callback, overrides, prompt_needs
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.record.options import RecordOptions

#: The methods of requests that name none, as JSON; `regaze serve --method` sets it.
DEFAULT = "REGAZE_SERVING_METHODS"

#: Of how many methods and prompts it is remembered what was found.
_REMEMBERED = 512

_IN_ONE_PIECE = (
    "this method needs prompts in one piece, which this engine may divide: start it with "
    "enable_chunked_prefill=False (--no-enable-chunked-prefill) and no long_prefill_token_threshold"
)


class Verdict(NamedTuple):
    """What was found about a request, and about all with the same methods on the same tokens.

    Attributes:
        methods: its methods, and as a text, `named`. carried: what it carries. runs_all_rows: it reads no
            cached prefix.
        coupled: its methods may have second contexts, which depend on pixels, too.
    """

    methods: tuple[Intervention, ...]
    named: str
    carried: dict[str, Any]
    runs_all_rows: bool
    coupled: bool


class Admission:
    """Admits the requests of one engine, by its `VllmConfig`."""

    def __init__(self, config: Any):
        self._config = config
        self._verdicts = Newest[Hashable, Verdict](_REMEMBERED)

    def admit(self, request: Any) -> None:
        """Check an `EngineCoreRequest`, and write into it what its methods need; plain ones stay as they are.

        Raises:
            RegazeError: its methods cannot act on it in this engine.
        """
        params = request.sampling_params
        wire.check_salt(request.cache_salt)
        extra = {} if params is None else params.extra_args or {}
        by_default = KEY not in extra
        asked = os.environ.get(DEFAULT) if by_default else extra[KEY]
        wanted = extra.get(RECORD_KEY)
        if params is None or not (asked or wanted):
            return
        rest = {name: value for name, value in extra.items() if name not in (KEY, RECORD_KEY)}
        if asked and by_default and "-beam-" in request.request_id:  # each step is a prompt with more of it
            raise UnsupportedModelError(
                "beam search has no methods, and this server has one for requests that name none: ask "
                "without beams, or a server without a method"
            )
        alike = None if wanted else self._alike(asked, by_default, request)
        verdict = None if alike is None else self._verdicts.get(alike)
        if verdict is None:
            verdict = self._judge(asked, by_default, wanted, request)
            if verdict is None:
                params.extra_args = rest or None
                return
            if alike is not None and not verdict.coupled:
                verdict.carried["alike"] = sha256(repr(alike).encode()).hexdigest()
                self._verdicts[alike] = verdict
        params.extra_args = {**rest, KEY: verdict.carried}
        if verdict.runs_all_rows:
            params.skip_reading_prefix_cache = True
        if verdict.methods:
            request.cache_salt = wire.salt(verdict.named, request.cache_salt)

    def forget(self) -> None:
        """Forget what was found about earlier requests."""
        self._verdicts.clear()

    def _alike(self, asked: Any, by_default: bool, request: Any) -> Hashable | None:
        """Equal for requests with the same methods on the same tokens; None: not known to be like others."""
        if self._obstacle is not None:
            return None
        ids, features = request.prompt_token_ids, request.mm_features or ()
        if ids is None or request.prompt_embeds is not None:
            return None
        try:
            named = json.dumps(asked, sort_keys=True)
        except TypeError:
            return None
        return named, by_default, prompt_key(ids, features, self.reader)

    def _judge(self, asked: Any, by_default: bool, wanted: Any, request: Any) -> Verdict | None:
        """Whether its methods can act on a request, and how; None: there is nothing to do."""
        methods = wire.methods_of(asked, trusted=by_default) if asked else ()
        options = records.options_of(wanted, self._config.model_config.hf_config)
        if not methods and options is None:
            return None
        if (reason := self._obstacle) is not None:
            raise UnsupportedModelError(f"edited requests do not run in this engine: {reason}")
        if request.prompt_token_ids is None or request.prompt_embeds is not None:
            raise InputError("methods need the ids of the prompt: send a text or ids, not embeddings")
        ids, features = request.prompt_token_ids, request.mm_features or ()
        tokens = read_tokens(ids, features, self.reader)
        callbacks, carried = acting(methods, self.text_config), wire.packed(methods, tokens)
        if options is not None:
            recorder, carried["record"] = self._record(options, request)
            callbacks = (*callbacks, recorder)
        context = context_of(self.text_config, ids, tokens, callbacks, self.reader, media_of(features))
        contexts = [context, *self._couple(request, context)]
        runs_all_rows = self._try(callbacks, contexts) or not all(_shared(method) for method in methods)
        if any(_shared(method) != "edited" for method in methods):
            carried["shared"] = len(ids) - 1  # the last row, and the answer's, are edited for their places
        elif any(prompt_needs(method) == "values" for method in methods):
            carried["shared"] = len(ids)  # no values of the answer are kept, and it is edited otherwise
        if coupled := any(map(has_second, callbacks)):
            carried["coupled"] = True
        return Verdict(methods, wire.text_of(methods), carried, runs_all_rows, coupled)

    def _record(self, options: RecordOptions, request: Any) -> tuple[Callback, dict[str, Any]]:
        """The recorder of a request, and what the request carries for it."""
        if request.sampling_params.n > 1:
            raise InputError("a recorded request has one answer (n=1): its record is named by the request")
        limit = self._config.model_config.max_model_len
        prompt, answer = len(request.prompt_token_ids), request.sampling_params.max_tokens
        records.check_size(options, self.text_config, prompt, min(answer or limit, limit))
        config, tokenizer = self._config.model_config.hf_config, self.reader.tokenizer
        carried = records.packed(options, records.new_file(request.request_id))
        return EngineRecorder(options, config, tokenizer), carried

    def _couple(self, request: Any, context: ServedContext) -> list[ServedContext]:
        """The second contexts of a request, as far as its images are here."""
        callbacks, features = context.callbacks, request.mm_features or ()
        if (reason := lacking(callbacks)) is not None:
            raise UnsupportedModelError(f"{reason}, which an engine of vLLM does not do; use transformers")
        if not any(map(has_second, callbacks)):
            return []
        seconds, known = list[Second](), True
        try:
            seconds = seconds_of(context, features, self._config.model_config)
        except (InputError, UnsupportedModelError):
            known = all(feature.data is not None for feature in features)
            if known:  # otherwise they are where the request enters the engine
                raise
        count = len(seconds) if known else sum(map(has_second, callbacks))
        check_limit(CONTEXTS, count * request.sampling_params.n)
        if (seconds or not known) and (reason := self._uncoupled(request)) is not None:
            raise UnsupportedModelError(f"second contexts of prompts do not run here: {reason}")
        learned, found = context.learned(), list[ServedContext]()
        unrecorded = tuple(callback for callback in callbacks if not callback.records)
        for second in seconds:
            other = context_of(self.text_config, second.ids, second.tokens, unrecorded, self.reader)
            other.become(second.name, context.names, learned)
            found.append(other)
        return found

    def _uncoupled(self, request: Any) -> str | None:
        """Why a request cannot have second contexts in this engine; None: it can."""
        scheduler = self._config.scheduler_config
        facts = (
            (
                scheduler.async_scheduling,
                "it schedules steps before it knows their tokens; start it with async_scheduling=False "
                "(--no-async-scheduling)",
            ),
            (scheduler.policy != "fcfs", "it schedules by priority"),
            (scheduler.max_num_seqs < 2, "it runs one sequence at a time (max_num_seqs)"),
            (request.sampling_params.prompt_logprobs is not None, "prompt_logprobs are those of one context"),
            (request.resumable, "the prompt is not complete"),
            (self._config.kv_transfer_config is not None, "its keys go to other engines"),
        )
        return next((reason for found, reason in facts if found), None)

    def _try(self, callbacks: tuple[Callback, ...], contexts: Sequence[ServedContext]) -> bool:
        """Do with the contexts of a prompt what the engine will do; whether all of their rows have to run."""
        needs = [prompt_needs(callback) for callback in callbacks]
        if self._divides and "whole" in needs:
            raise UnsupportedModelError(_IN_ONE_PIECE)
        whole: str | None = None
        shared = self._config.parallel_config.tensor_parallel_size > 1
        for context in contexts:
            trial = EditedRequest(context.callbacks, context)
            if (trial.needs_hidden or trial.capturing) and self._compiles:
                raise UnsupportedModelError(
                    "this method reads hidden states, which compiled models keep to themselves: start the "
                    "engine with enforce_eager=True (--enforce-eager)"
                )
            if trial.edits_by_hidden:
                whole = "its edits depend on hidden states of all rows"
            if (reason := requested(context)) is not None:
                raise UnsupportedModelError(f"with these parameters the method {reason}; use transformers")
            whole = try_edits(trial, shared_heads=shared) or whole
        if self._divides and whole is not None:
            raise UnsupportedModelError(f"{whole}: {_IN_ONE_PIECE}")
        alone = self._config.kv_transfer_config is None  # keys of other engines come without values
        return any(need and not (need == "values" and alone) for need in needs) or whole is not None

    @property
    def _divides(self) -> bool:
        scheduler = self._config.scheduler_config
        return bool(scheduler.enable_chunked_prefill or scheduler.long_prefill_token_threshold)

    @property
    def text_config(self) -> Any:
        return self._config.model_config.hf_text_config

    @cached_property
    def reader(self) -> PromptReader:
        return reader_of(self._config.model_config)

    @property
    def _compiles(self) -> bool:
        return bool(self._config.compilation_config.mode)

    @cached_property
    def _obstacle(self) -> str | None:
        """Why no request can be edited in this engine; None: they can."""
        config = self._config
        model, parallel = config.model_config, config.parallel_config
        facts = (
            (config.use_v2_model_runner, "it has the second model runner; set VLLM_USE_V2_MODEL_RUNNER=0"),
            (parallel.pipeline_parallel_size > 1, "its layers are divided between processes"),
            (config.speculative_config is not None, "it proposes tokens and takes them back"),
            (model.use_mla, "its cache has no keys and values (multi-head latent attention)"),
            (model.get_sliding_window() is not None, "its cache drops keys (sliding window)"),
            (config.cache_config.cache_dtype != "auto", "its cache is quantised"),
            (model.uses_alibi, "its scores have a bias for distances (ALiBi)"),
            (model.is_mm_prefix_lm, "its images see later tokens"),
            (model.attention_chunk_size is not None, "its attention is local, in chunks"),
            (any(kind != "full_attention" for kind in _kinds(model)), "its layers attend in several ways"),
            (model.is_hybrid or model.has_inner_state, "it has layers without attention"),
            (model.is_encoder_decoder, "it has an encoder of prompts"),
            (parallel.prefill_context_parallel_size > 1, "its prompts are divided between processes"),
            (parallel.decode_context_parallel_size > 1, "its cache is divided between processes"),
        )
        return next((reason for found, reason in facts if found), None) or without_edits(config)


def _kinds(model_config: Any) -> Sequence[str]:
    """Of the attention of each layer, where the model's configuration says it."""
    return getattr(model_config.hf_text_config, "layer_types", None) or ()


def _shared(method: Intervention) -> str:
    """`shares_prefix`; "edited" as well for methods that edit no rows, or that read of them what is kept."""
    edits = ("edit", "edit_keys", "edit_mlp", "edit_attention_output", "edit_vision_mlp", "leaving")
    kept = prompt_needs(method) == "values" or not overrides(method, *edits)
    return "edited" if kept else method.shares_prefix


def forget_images(cache: Any, request: Any) -> None:
    """Let the images of a refused request be sent again: vLLM takes the engine to have them by now.

    Those that came without their data the engine has indeed, for requests that were admitted.
    """
    for feature in request.mm_features or ():
        if cache is not None and feature.mm_hash is not None and feature.data is not None:
            cache.invalidate(feature.mm_hash)
