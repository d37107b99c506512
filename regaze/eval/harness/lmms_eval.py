"""`lmms_eval --model regaze`: a vision-language model under a method, for lmms-eval's image tasks.

lmms_eval --model regaze --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=pai --tasks pope
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm
from typing_extensions import Self

import regaze
from regaze.caching import cached_property
from regaze.errors import BadParameterError, InputError
from regaze.eval.harness import arguments
from regaze.eval.run.loglikelihood import answer_prefix, loglikelihoods
from regaze.interventions.base import Intervention, MultiPassMethod
from regaze.toolkit.model.sampling_choice import with_sampling_choice

_LOADING = {"pretrained", "dtype", "device_map", "revision", "trust_remote_code", "attn_implementation"}
_OWN = {"device", "batch_size", "max_batch_size", "system_prompt"}
#: options of `generate` that tasks set; their other settings are for particular model classes
_GENERATE = (
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "num_beams",
    "repetition_penalty",
)
#: marks the place of an image in the text of a task; here the chat template puts images first
_PLACEHOLDER = "<image>"


def manifest() -> Any:
    """The entry point for lmms-eval: the name `regaze` and the path of the class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="regaze", simple_class_path=f"{__name__}.RegazeVLM")


class RegazeVLM(lmms):
    """Any vision-language model that `regaze.load` loads ("demo" is the shipped one), under a method.

    Args:
        pretrained: name or folder of the model. dtype, device_map, revision, trust_remote_code,
            attn_implementation: as for `from_pretrained`.
        device, batch_size, system_prompt: of generation.
        kwargs: method=NAME and the method's parameters.

    Raises:
        UnknownMethodError: no such method.
        BadParameterError: an unknown argument, or a wrong value.
    """

    is_simple = True

    def __init__(self, pretrained: str = "demo", **kwargs: Any):
        super().__init__()
        self.method = arguments.pop_method(kwargs)
        arguments.check_unknown(kwargs, _LOADING | _OWN, self.method)
        size = arguments.batch_size(kwargs.get("batch_size") or 1, "the largest that fits is not looked for")
        loading = {name: kwargs[name] for name in _LOADING & set(kwargs)}
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if "device_map" not in loading:
            loading["device_map"] = self._device(kwargs.get("device"))
        model, processor = regaze.load(pretrained, **loading)
        self.gaze = regaze.wrap(model, processor)
        self.batch_size = size
        self.system = self._resolve_system_prompt(kwargs.get("system_prompt") or "") or None

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> Self:
        """As in the harness, with values parsed as JSON."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**given, **arguments.parse(arg_string or "")})

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers up to the first stop sequence, greedy unless the task says otherwise."""
        answers: list[str] = [""] * len(requests)
        with self._method_active():
            for batch in self._batches(requests, [_generation(request.args[1]) for request in requests]):
                images, questions = self._prompts([requests[i] for i in batch])
                options, until = _generation(requests[batch[0]].args[1])
                texts = self.gaze.ask(
                    images,
                    questions,
                    system=self.system,
                    batch_size=len(batch),
                    method=self.method if isinstance(self.method, MultiPassMethod) else None,
                    **options,
                )
                for i, answer in zip(batch, texts, strict=True):
                    answers[i] = _truncate(answer, until)
                    context, settings = requests[i].args[:2]
                    self.cache_hook.add_partial("generate_until", (context, settings), answers[i])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Mean negative log-probability per token (lmms-eval takes the lowest), and whether it is greedy."""
        if isinstance(self.method, MultiPassMethod):
            raise BadParameterError(f"method={self.method.name} asks in its own way: no log-likelihoods")
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with self._method_active():
            for batch in self._batches(requests, [0] * len(requests)):
                chosen = [requests[i] for i in batch]
                images, questions = self._prompts(chosen)
                targets = [self._target_ids(request) for request in chosen]
                inputs = self.gaze.inputs(images, questions, self.system)
                for i, tokens, score in zip(
                    batch, targets, loglikelihoods(self.gaze.model, inputs, targets), strict=True
                ):
                    scores[i] = (-score.logprob / len(tokens), score.greedy)
        return scores

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not supported: earlier turns of a conversation cannot be given yet."""
        raise InputError("regaze asks each question by itself: tasks of several rounds cannot be run")

    def _batches(self, requests: list[Any], kinds: Sequence[Any]) -> Any:
        """Batches of request indices: requests of one kind, the longest texts first."""
        groups: dict[str, list[int]] = {}
        for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0])):
            groups.setdefault(repr(kinds[i]), []).append(i)
        batches = [
            g[s : s + self.batch_size] for g in groups.values() for s in range(0, len(g), self.batch_size)
        ]
        return tqdm(batches, disable=self._rank != 0, desc="Model responding")

    def _prompts(self, requests: list[Any]) -> tuple[list[list[Image.Image]], list[str]]:
        images = [list(r.args[2](self._doc(r)) or []) for r in requests]
        for shown in (image for entry in images for image in entry):
            if not isinstance(shown, Image.Image):
                raise InputError(
                    f"regaze asks about images; this task shows {type(shown).__name__}: {shown!r}"
                )
        return images, [request.args[0].replace(_PLACEHOLDER, "").strip() for request in requests]

    def _target_ids(self, request: Any) -> list[int]:
        target = request.args[1]
        text = target if isinstance(target, str) else target(self._doc(request))
        answer = self._answer_prefix + str(text).lstrip()
        tokens = self.gaze.reader.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise InputError(f"task {request.args[4]}, item {request.args[3]}: the answer to score is empty")
        return list(tokens)

    @cached_property
    def _answer_prefix(self) -> str:
        return answer_prefix(self.gaze.processor)

    def _doc(self, request: Any) -> Any:
        doc_id, task, split = request.args[3:6]
        return self.task_dict[task][split][doc_id]

    def _method_active(self) -> Any:
        return self.gaze.using(self.method) if isinstance(self.method, Intervention) else nullcontext()

    def _device(self, name: str | None) -> Any:
        if self._world_size > 1 or name is None:
            return self.accelerator.device
        return name if torch.cuda.is_available() or not name.startswith("cuda") else "cpu"


def _generation(settings: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options for `generate` and the stop sequences."""
    options = {name: settings[name] for name in _GENERATE if settings.get(name) is not None}
    options.setdefault("max_new_tokens", 1024)
    options = with_sampling_choice(options)
    until = settings.get("until") or ()
    return options, (until,) if isinstance(until, str) else tuple(until)


def _truncate(answer: str, until: tuple[str, ...]) -> str:
    """The answer up to the first stop sequence."""
    for stop in filter(None, until):
        answer = answer.split(stop, 1)[0]
    return answer.strip()
