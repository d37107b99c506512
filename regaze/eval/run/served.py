"""`VLLMEngine`: the questions of a run are answered by an engine of vLLM, in continuous batches.

Prompts, images, limits and the text of answers are made as for the model of transformers, and the first
prompts of every condition are compared with those that it would be asked, token by token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from regaze.caching import cached_property
from regaze.errors import InputError, RegazeError, UnsupportedModelError
from regaze.eval.cost import Cost
from regaze.eval.run import ranking
from regaze.eval.run.fingerprint import describe_engine
from regaze.eval.run.generate import BatchAnswers, error_text, readable_few
from regaze.eval.run.loglikelihood import PRUNED_LOGPROB, LogLikelihood, answer_prefix
from regaze.eval.run.requests import AnswerRequest, Condition
from regaze.eval.run.served_sampling import acting_defaults, engine_sampling
from regaze.eval.run.tasks import EvalConfig
from regaze.serving.common.contexts import has_second
from regaze.serving.common.wire import methods_of
from regaze.serving.frontend.offline import EngineAnswer, EngineRequest, OfflineEngine
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.prompts.images import open_image
from regaze.toolkit.prompts.video import Video


class VLLMEngine:
    """An engine of vLLM for `evaluate(None, ..., engine=VLLMEngine(model))`, started by the first question.

    Args:
        model: "demo", a folder, or a name of the hub.
        dtype: "float32", "bfloat16" or "float16"; None: as stored, the demo's float32.
        template_args: variables of the chat template, in every prompt.
        loading: where the files are: revision, trust_remote_code.
        options: arguments of vLLM's `LLM`, such as tensor_parallel_size=2. It runs without torch.compile and
            CUDA graphs unless enforce_eager=False.

    Raises:
        UnsupportedModelError: vLLM is missing, of another release, or does not find regaze.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        loading: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        chosen = options if dtype is None else {**options, "dtype": dtype}
        self.offline: OfflineEngine = OfflineEngine(model, loading or {}, chosen, template_args)

    @property
    def reader(self) -> Any:
        return self.offline.gaze.reader

    def describe(self, name: str) -> dict[str, Any]:
        """The model and the engine, see `engines.Engine`."""
        return describe_engine(self.offline, name)

    def generator(self, condition: Condition, config: EvalConfig) -> ServedAnswers:
        """What answers under one condition."""
        return ServedAnswers(self.offline, condition, config)

    def close(self) -> None:
        """End the engine and its processes."""
        self.offline.close()


class ServedAnswers:
    """Answers requests under one condition, as many at once as the engine takes."""

    def __init__(self, engine: OfflineEngine, condition: Condition, config: EvalConfig):
        self.engine: OfflineEngine = engine
        self.condition: Condition = condition
        self.config: EvalConfig = config
        self._methods = [] if condition.method is None else [condition.method.to_dict()]

    @property
    def obstacle(self) -> str | None:
        """Why no prefixes are shared; None where they are."""
        if not self.engine.options.get("enable_prefix_caching", True):
            return "it was switched off"
        if self.condition.method is not None and not getattr(self.condition.method, "shares_prefix", ""):
            return f"{self._methods[0].get('method', 'the method')} looks at the whole prompt"
        return None

    def check(self, requests: Sequence[AnswerRequest]) -> None:
        """Admit one of the requests and let it go again.

        Raises:
            RegazeError: the engine refuses the method, names it and says why; or asks other tokens than
                transformers.
        """
        few = readable_few(requests)[:1]
        if self._methods:
            self._check_method([self._request(request, 0) for request in few])
        for request in few:
            self._check_prompt(request)

    def _check_method(self, requests: Sequence[EngineRequest]) -> None:
        try:
            methods_of(self._methods)
            for request in requests:
                self.engine.admit(request)
        except RegazeError as error:
            name, text = self._methods[0]["method"], str(error)
            named = text if text.startswith(str(name)) else f"{name}: {text}"
            raise UnsupportedModelError(f"inside vLLM: {named}") from error

    def _check_prompt(self, request: AnswerRequest) -> None:
        """Raise InputError where vLLM would ask other tokens than transformers."""
        asked = self.engine.admit(self._request(request, 0))
        batch = self.engine.gaze.cpu_inputs([list(request.images)], [request.question])
        wanted = batch["input_ids"][0].tolist()
        if asked[: len(wanted)] != wanted or (request.is_generated and len(asked) > len(wanted)):
            pairs = enumerate(zip(asked, wanted, strict=False))
            place = next((i for i, (one, other) in pairs if one != other), min(len(asked), len(wanted)))
            raise InputError(
                f"vLLM would ask another prompt than transformers, from token {place} on ({len(asked)} and "
                f"{len(wanted)} tokens)"
            )

    def warm_up(self, requests: Sequence[AnswerRequest]) -> None:
        """Answer up to three requests from all over the benchmark, and drop the answers.

        Raises:
            Exception: the error of one of them, when every one failed.
        """
        few = readable_few(requests)
        self.check(few)
        errors = [outcome for _, outcome in self._outcomes(few) if isinstance(outcome, Exception)]
        if few and len(errors) == len(few):
            raise errors[0]

    def answer_all(self, requests: Sequence[AnswerRequest]) -> Iterator[BatchAnswers]:
        """The answers to all of the requests, in parts of the size of a batch as they are ready."""
        method = self.condition.method
        coupled = isinstance(method, Callback) and has_second(method)
        part = _Part(coupled)
        for request, outcome in self._outcomes(_by_images(requests)):
            if isinstance(outcome, Exception):
                part.errors[request.key] = error_text(outcome)
            else:
                part.add(request.key, self._text(request, outcome), outcome)
            if len(part.answers) + len(part.errors) >= self.config.batch_size:
                yield part.closed()
                part = _Part(coupled)
        if part.answers or part.errors:
            yield part.closed()

    def _outcomes(
        self, requests: Sequence[AnswerRequest]
    ) -> Iterator[tuple[AnswerRequest, list[EngineAnswer] | Exception]]:
        """What became of each request: the engine's answer, of options one of each, or the first error."""
        parts = {f"{request.key}/{i}": (request, i) for request in requests for i in range(_parts(request))}
        found: dict[str, dict[int, EngineAnswer]] = {request.key: {} for request in requests}
        for name, answer in self.engine.answers(parts, lambda name: self._request(*parts[name])):
            request, number = parts[name]
            if request.key not in found:  # another part of it failed
                continue
            if isinstance(answer, Exception):
                del found[request.key]
                yield request, answer
                continue
            own = found[request.key]
            own[number] = answer
            if len(own) == _parts(request):
                yield request, [own[i] for i in range(len(own))]

    # Requests and answers -----------------------------------------------------------------------------

    def _request(self, request: AnswerRequest, number: int) -> EngineRequest:
        """A request to the engine: for an answer, or how likely one is, of options that with a number."""
        if any(isinstance(image, Video) for image in request.images):
            raise InputError("an engine is asked about images: ask about videos with --engine transformers")
        reader, images = self.engine.gaze.reader, [open_image(image) for image in request.images]  # type: ignore[arg-type]
        prompt = reader.render(request.question, len(images)).text
        special = reader.adds_special_tokens(prompt)
        ids = list(reader.tokenizer(prompt, add_special_tokens=special)["input_ids"])
        if request.is_generated:
            limit, seed = self.condition.token_limit(request), self.condition.seed
            options = {**self._defaults, **self.condition.generate_kwargs}
            sampling = engine_sampling(options, limit, request.key, seed)
            return EngineRequest(ids, images, sampling, self._methods)
        text, ends = request.continuation or request.options[number], bool(request.options)
        answer = ranking.target_tokens(reader, prompt, self._prefix, text, ends=ends)
        if self._methods:  # which may treat tokens of the answer otherwise than those of the prompt
            return EngineRequest(ids, images, {"temperature": 0.0}, self._methods, answer)
        return EngineRequest([*ids, *answer], images, {"temperature": 0.0}, read=len(answer))

    def _text(self, request: AnswerRequest, answers: Sequence[EngineAnswer]) -> str:
        """The answer to a request as the journal has it."""
        if request.is_generated:
            return self.engine.gaze.reader.decode([answers[0].ids])[0].strip()
        scores = [(_likelihood(each.logprobs), len(each.logprobs)) for each in answers]
        return ranking.likeliest(request.options, scores) if request.options else ranking.as_text(*scores[0])

    @cached_property
    def _defaults(self) -> Mapping[str, Any]:
        """What the model's own configuration of `generate` changes in every answer."""
        return acting_defaults(self.engine.generation_config)

    @cached_property
    def _prefix(self) -> str:
        return answer_prefix(self.engine.gaze.processor, self.engine.gaze.reader.template_args)


class _Part:
    """Answers of one line of the journal, and what they cost.

    Args:
        coupled: the engine ran second contexts beside them, whose rows nobody counts.
    """

    def __init__(self, coupled: bool) -> None:
        self._coupled = coupled
        self.answers: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self._cost, self._start = Cost(), time.perf_counter()

    def add(self, key: str, text: str, answers: Sequence[EngineAnswer]) -> None:
        self.answers[key] = text
        tokens = sum(len(answer.ids) for answer in answers)
        self._cost.answers += 1
        self._cost.tokens += tokens
        self._cost.rows += 0 if self._coupled else tokens  # every token comes of one row
        self._cost.prefill_tokens += sum(len(answer.prompt) - answer.cached for answer in answers)

    def closed(self) -> BatchAnswers:
        self._cost.seconds = time.perf_counter() - self._start
        return BatchAnswers(self.answers, self.errors, self._cost)


def _likelihood(logprobs: Sequence[float]) -> LogLikelihood:
    excluded = sum(logprob == -math.inf for logprob in logprobs)
    return LogLikelihood(sum(max(each, PRUNED_LOGPROB) for each in logprobs), False, excluded)


def _parts(request: AnswerRequest) -> int:
    """How many requests to the engine a request is."""
    return max(1, len(request.options))


def _by_images(requests: Sequence[AnswerRequest]) -> list[AnswerRequest]:
    """Requests about the same images behind each other: cached prefixes are still there."""
    groups: dict[Any, list[AnswerRequest]] = {}
    for request in requests:
        groups.setdefault(request.images, []).append(request)
    return [request for group in groups.values() for request in group]
