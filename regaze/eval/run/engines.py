"""What a run needs of whatever answers its questions, and how a model of transformers does it.

A run knows questions, journals and scores. How answers come about is an `Engine`'s business: batches of
`gaze.ask` (`TransformersEngine`), or the continuous batches of vLLM (`served.VLLMEngine`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from regaze.eval.run.fingerprint import describe_model
from regaze.eval.run.generate import AnswerGenerator, BatchAnswers, Model
from regaze.eval.run.requests import AnswerRequest, Condition
from regaze.eval.run.tasks import EvalConfig


class Generator(Protocol):
    """Answers requests under one condition."""

    @property
    def obstacle(self) -> str | None:
        """Why no prefixes are shared; None where they are."""

    def check(self, requests: Sequence[AnswerRequest]) -> None:
        """Raise why the method cannot run, as far as that is known before anything is answered."""

    def warm_up(self, requests: Sequence[AnswerRequest]) -> None:
        """Answer one of the requests and drop the answer. Raises what is raised for every one tried."""

    def answer_all(self, requests: Sequence[AnswerRequest]) -> Iterator[BatchAnswers]:
        """The answers to all of the requests in parts, each of which is stored before the next is made.

        A request that fails is an error of its part and ends no other.
        """


class Engine(Protocol):
    """What answers the questions of a run."""

    @property
    def reader(self) -> Any:
        """The model's `PromptReader`; None where there is none."""

    def describe(self, name: str) -> dict[str, Any]:
        """The model, called `name`, as results.json has it; "fingerprint" is part of every answer's key."""

    def generator(self, condition: Condition, config: EvalConfig) -> Generator:
        """What answers under one condition."""


@dataclass(frozen=True)
class TransformersEngine:
    """A wrapped model of transformers in this process."""

    gaze: Model

    @property
    def reader(self) -> Any:
        return getattr(self.gaze, "reader", None)

    def describe(self, name: str) -> dict[str, Any]:
        return describe_model(self.gaze, name)

    def generator(self, condition: Condition, config: EvalConfig) -> AnswerGenerator:
        size, share = config.batch_size, config.share_prefix
        return AnswerGenerator(self.gaze, condition, batch_size=size, share_prefix=share)
