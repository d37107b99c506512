"""The interface of a judge, and the base of judges whose verdicts are stored."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from regaze.errors import InputError
from regaze.eval.judges.verdicts import Verdicts


class Judge(Protocol):
    """Anything that answers prompts."""

    name: str

    def judge(self, prompts: Sequence[str]) -> list[str]:
        """The text of one verdict per prompt, in order."""


def require_judge(judge: Judge | None, benchmark: str) -> Judge:
    """`judge`, if there is one.

    Raises:
        InputError: there is none; the message names the possible ones.
    """
    if judge is None:
        raise InputError(
            f"{benchmark} is graded by a judge, and none is configured: give the URL of an OpenAI-compatible "
            "server, a transformers model, or a file of recorded verdicts"
        )
    return judge


class CachedJudge(ABC):
    """A judge whose verdicts are stored, so that no request is made twice."""

    name: str
    verdicts: Verdicts

    @abstractmethod
    def _request(self) -> dict[str, Any]:
        """A request without its prompt: what is stored and hashed."""

    @abstractmethod
    def _answer(self, prompts: Sequence[str], store: Callable[[str, str], None]) -> None:
        """Call `store` with each prompt and its verdict as soon as there is one."""

    def judge(self, prompts: Sequence[str]) -> list[str]:
        """One verdict per prompt; equal prompts are one request. Raises InputError when one fails."""
        request = self._request()
        keys = {prompt: _key(request, prompt) for prompt in prompts}
        missing = [prompt for prompt, key in keys.items() if self.verdicts.get(key) is None]
        self._answer(
            missing, lambda prompt, verdict: self.verdicts.store(keys[prompt], request, prompt, verdict)
        )
        found = [self.verdicts.get(keys[prompt]) for prompt in prompts]
        return [verdict for verdict in found if verdict is not None]


def _key(request: Mapping[str, Any], prompt: str) -> str:
    return hashlib.sha256(json.dumps([request, prompt], sort_keys=True).encode()).hexdigest()
