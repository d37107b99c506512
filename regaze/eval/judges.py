"""Judges: models that grade answers where no rule can, behind one small interface.

Every verdict's text is kept, with the request that it answers, in a file of JSON lines. A request that is
already there is not made again, and the file can take the judge's place later (`RecordedJudge`).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from regaze.errors import InputError
from regaze.eval.files import cache_folder, read_records

#: What may pass by itself: timeouts, too many requests, errors of the server.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)


class Judge(Protocol):
    """Anything that answers prompts."""

    name: str

    def judge(self, prompts: Sequence[str]) -> list[str]:
        """The text of one verdict per prompt, in order."""


def need(judge: Judge | None, benchmark: str) -> Judge:
    """`judge`, when there is one.

    Raises:
        InputError: there is none; says which ones there could be.
    """
    if judge is None:
        raise InputError(
            f"{benchmark} is graded by a judge, and none is configured: give the URL of an OpenAI-compatible "
            "server, a transformers model, or a file of recorded verdicts"
        )
    return judge


@dataclass(frozen=True)
class Verdicts:
    """The file of verdicts: {"key", "judge", "prompt", "verdict"} per line, appended as they come."""

    path: Path
    _known: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.path.exists():
            for source, record in _records(self.path):
                self._known[_text(record, "key", source)] = _text(record, "verdict", source)

    def get(self, key: str) -> str | None:
        """The verdict of a request, None when it was never made."""
        return self._known.get(key)

    def put(self, key: str, judge: Mapping[str, Any], prompt: str, verdict: str) -> None:
        """Keep a verdict; it is on disk on return. Raises InputError when the file cannot be written."""
        line = json.dumps(
            {"key": key, "judge": judge, "prompt": prompt, "verdict": verdict}, ensure_ascii=False
        )
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise InputError(
                    f"verdicts cannot be kept in {self.path}: {error.strerror or error}"
                ) from error
            self._known[key] = verdict


class _Kept(ABC):
    """A judge whose verdicts are kept and not asked for twice."""

    name: str
    verdicts: Verdicts

    @abstractmethod
    def _request(self) -> dict[str, Any]:
        """All of a request but the prompt; what is kept and hashed."""

    @abstractmethod
    def _answer(self, prompts: Sequence[str], done: Callable[[str, str], None]) -> None:
        """Call `done` with each prompt and its verdict as they come."""

    def judge(self, prompts: Sequence[str]) -> list[str]:
        """One verdict per prompt; equal prompts are asked once. Raises InputError when one cannot be had."""
        request = self._request()
        keys = {prompt: _key(request, prompt) for prompt in prompts}
        missing = [prompt for prompt, key in keys.items() if self.verdicts.get(key) is None]
        self._answer(
            missing, lambda prompt, verdict: self.verdicts.put(keys[prompt], request, prompt, verdict)
        )
        found = [self.verdicts.get(keys[prompt]) for prompt in prompts]
        return [verdict for verdict in found if verdict is not None]


def _key(request: Mapping[str, Any], prompt: str) -> str:
    return hashlib.sha256(json.dumps([request, prompt], sort_keys=True).encode()).hexdigest()


def _default_verdicts() -> Verdicts:
    return Verdicts(cache_folder() / "judge" / "verdicts.jsonl")


@dataclass(frozen=True)
class HttpJudge(_Kept):
    """An OpenAI-compatible server, at temperature 0.

    Attributes:
        url: the server's base ("https://host/v1"), to which /chat/completions is appended.
        model: the model's name on the server.
        key_variable: environment variable with the API key; the key is sent, never kept.
        retries: how often a request is repeated, after 1, 2, 4... seconds or what the server asks for.
        workers: requests under way at once.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    max_tokens: int = 1024
    retries: int = 5
    timeout: float = 60.0
    workers: int = 4
    verdicts: Verdicts = field(default_factory=_default_verdicts)
    pause: float = 1.0

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.model} at {self.url}"

    def _request(self) -> dict[str, Any]:
        return {"url": self.url, "model": self.model, "temperature": 0, "max_tokens": self.max_tokens}

    def _answer(self, prompts: Sequence[str], done: Callable[[str, str], None]) -> None:
        def ask(prompt: str) -> None:
            done(prompt, self._ask(prompt))

        with ThreadPoolExecutor(self.workers) as pool:
            tasks = [pool.submit(ask, prompt) for prompt in prompts]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _ask(self, prompt: str) -> str:
        body = {key: value for key, value in self._request().items() if key != "url"}
        data = json.dumps({**body, "messages": [{"role": "user", "content": prompt}]}).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.url.rstrip('/')}/chat/completions"
        for attempt in range(self.retries + 1):
            try:
                request = urllib.request.Request(url, data, headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return _content(response.read())
            except urllib.error.HTTPError as error:
                reason, wait = f"{error.code} {_message(error)}", error.headers.get("Retry-After")
                if error.code not in _PASSING:
                    raise InputError(f"judge {self.name}: {reason}") from error
            except (
                OSError,
                ValueError,
            ) as error:  # no connection, a timeout, an answer that is no completion
                reason, wait = str(getattr(error, "reason", error)), None
            if attempt < self.retries:
                time.sleep(float(wait) if wait and wait.isdigit() else self.pause * 2**attempt)
        raise InputError(f"judge {self.name}: no verdict after {self.retries + 1} attempts ({reason})")


def _content(data: bytes) -> str:
    """The message of a chat completion. Raises ValueError when there is none."""
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError("the server's answer is no chat completion") from error
    if not isinstance(content, str):
        raise ValueError("the server's answer holds no text")
    return content


def _message(error: urllib.error.HTTPError) -> str:
    return error.read(500).decode("utf-8", "replace").strip() or str(error.reason)


@dataclass(frozen=True)
class ModelJudge(_Kept):
    """A transformers causal language model with a chat template, decoding greedily.

    Attributes:
        model, tokenizer: as loaded by transformers. name: what the model is called in results.
    """

    model: Any
    tokenizer: Any
    name: str
    max_new_tokens: int = 512
    verdicts: Verdicts = field(default_factory=_default_verdicts)

    @classmethod
    def load(cls, name: str, **options: Any) -> ModelJudge:
        """By name or path. Raises InputError when transformers cannot load it or it has no chat template."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModelForCausalLM.from_pretrained(name).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"judge {name!r} cannot be loaded: {error}") from error
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(f"judge {name!r} has no chat template, so it cannot be asked anything")
        return cls(model, tokenizer, name, **options)

    def _request(self) -> dict[str, Any]:
        return {"model": self.name, "temperature": 0, "max_tokens": self.max_new_tokens}

    def _answer(self, prompts: Sequence[str], done: Callable[[str, str], None]) -> None:
        import torch

        for prompt in prompts:
            messages = [{"role": "user", "content": prompt}]
            inputs = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
            new = ids[0, inputs["input_ids"].shape[1] :]
            done(prompt, self.tokenizer.decode(new, skip_special_tokens=True).strip())


class RecordedJudge:
    """Verdicts of an earlier judge, by prompt: a file of verdicts as `Verdicts` keeps it.

    Raises:
        InputError: the file cannot be read, or holds two different verdicts on one prompt.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"recorded verdicts of {path.name}"
        self._path = path
        self._verdicts: dict[str, str] = {}
        for source, record in _records(path):
            prompt, verdict = _text(record, "prompt", source), _text(record, "verdict", source)
            if self._verdicts.setdefault(prompt, verdict) != verdict:
                raise InputError(f"{source}: another verdict on a prompt that already has one")

    def judge(self, prompts: Sequence[str]) -> list[str]:
        """The recorded verdicts. Raises InputError when one is missing."""
        missing = [prompt for prompt in prompts if prompt not in self._verdicts]
        if missing:
            raise InputError(
                f"{self._path} has no verdict on {len(missing)} of {len(prompts)} prompts; the first begins "
                f"{missing[0][:80]!r}"
            )
        return [self._verdicts[prompt] for prompt in prompts]


def _records(path: Path) -> list[tuple[str, Any]]:
    return [(f"{path}:{line}", record) for line, record in read_records(path, "verdicts ")]


def _text(record: Any, key: str, source: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise InputError(f"{source}: expected an object with the text {key!r}, got {value!r}")
    return value
