"""A judge that runs elsewhere: an OpenAI-compatible server.

The server is not trusted: redirects are not followed, time and size of a response are limited, and neither
messages, logs nor verdicts hold the key, even when the server sends it back (`redaction`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from regaze.errors import InputError
from regaze.eval.judges.base import CachedJudge
from regaze.eval.judges.redaction import HIDDEN, MAX_TEXT, redact
from regaze.eval.judges.urls import secrets_of, without_secrets
from regaze.eval.judges.verdicts import Verdicts

#: statuses that may pass by themselves: timeouts, too many requests, errors of the server
_TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)
#: the longest pause between two attempts, whatever Retry-After asks for, in seconds
MAX_PAUSE = 120.0
#: the largest response that is read, in bytes
MAX_RESPONSE = 4 * 2**20
_LOGGERS = ("httpx2", "httpcore2.connection", "httpcore2.http11", "httpcore2.proxy")
_SHOWN = 500  # characters of an error response in a message


class _TransientError(Exception):
    """A request that may succeed when it is repeated.

    Attributes:
        pause: seconds that the server asks to wait; None where it does not say.
    """

    def __init__(self, message: str, pause: float | None = None):
        super().__init__(message)
        self.pause = pause


@dataclass(frozen=True)
class HttpJudge(CachedJudge):
    """An OpenAI-compatible server, at temperature 0.

    Attributes:
        url: the server's base ("https://host/v1"), to which /chat/completions is appended.
        model: the model's name on the server.
        key_variable: environment variable with the API key; the key is sent, and never stored or shown.
        retries: how often a request is repeated, after 1, 2, 4... seconds or when the server says
            (Retry-After), at most `MAX_PAUSE`.
        timeout: seconds for a whole request and its response.
        workers: requests in flight at once.
        pause: seconds before the first repetition.

    Raises:
        InputError: the URL is not one of a server, or the key cannot be sent.
    """

    url: str = field(repr=False)  # it may hold a key
    model: str
    key_variable: str = "OPENAI_API_KEY"
    max_tokens: int = 1024
    retries: int = 5
    timeout: float = 60.0
    workers: int = 4
    verdicts: Verdicts = field(default_factory=Verdicts.in_cache)
    pause: float = 1.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_server = False
        if not is_server:  # not shown, since it may hold a key
            raise InputError("the judge's URL is not one of a server: expected one like https://host/v1")
        self._headers()  # names a key that cannot be sent

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.model} at {without_secrets(self.url)}"

    def _request(self) -> dict[str, Any]:
        url = without_secrets(self.url)
        return {"url": url, "model": self.model, "temperature": 0, "max_tokens": self.max_tokens}

    def _answer(self, prompts: Sequence[str], store: Callable[[str, str], None]) -> None:
        if prompts:
            _run(self._answer_all(prompts, store))

    async def _answer_all(self, prompts: Sequence[str], store: Callable[[str, str], None]) -> None:
        """At the first error no further request is started; verdicts of those in flight are stored."""
        slots, failures = asyncio.Semaphore(self.workers), list[BaseException]()

        async def answer(prompt: str) -> None:
            async with slots:
                if failures:
                    return
                try:
                    store(prompt, await self._ask(client, prompt))
                except InputError as error:
                    failures.append(error)

        client = httpx2.AsyncClient(headers=self._headers(), timeout=self.timeout)
        with self._redacted_logs():
            async with client:
                await asyncio.gather(*map(answer, prompts))
        if failures:
            raise failures[0]

    async def _ask(self, client: httpx2.AsyncClient, prompt: str) -> str:
        """The verdict on a prompt. Raises InputError when there is none."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self.retries + 1),
            wait=self._seconds_to_wait,
            retry=retry_if_exception_type(_TransientError),
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            return str(await attempts(self._post, client, prompt))
        except _TransientError as error:
            reason = f"no verdict after {self.retries + 1} attempts ({error})"
        raise self._error(reason)  # outside of the handler: what it handled is not redacted

    def _seconds_to_wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        exponential = self.pause * 2 ** (state.attempt_number - 1)
        requested = error.pause if isinstance(error, _TransientError) else None
        return min(MAX_PAUSE, exponential if requested is None else requested)

    async def _post(self, client: httpx2.AsyncClient, prompt: str) -> str:
        body = {key: value for key, value in self._request().items() if key != "url"}
        body["messages"] = [{"role": "user", "content": prompt}]
        try:
            # The client's own timeout is per read: a server that sends a byte a second would never exceed it.
            response, content = await asyncio.wait_for(self._read(client, body), self.timeout)
        except InputError:
            raise
        except asyncio.TimeoutError as error:
            raise _TransientError(f"no complete response within {self.timeout:g} seconds") from error
        except (httpx2.RequestError, OSError) as error:  # no connection, a broken response
            raise _TransientError(str(error) or type(error).__name__) from error
        except (httpx2.InvalidURL, httpx2.StreamError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            response = None
        if response is None:  # outside of the handler, as above
            raise self._error(reason)
        if response.is_success:
            return self._verdict(content)
        if response.is_redirect:
            raise self._error(f"{response.status_code}: redirects are not followed; give the URL it leads to")
        message = self._redact(content.decode("utf-8", "replace")).strip()[:_SHOWN]
        status = f"{response.status_code} {message or response.reason_phrase[:_SHOWN]}"
        if response.status_code in _TRANSIENT:
            raise _TransientError(status, _retry_after(response))
        raise self._error(status)

    async def _read(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> tuple[httpx2.Response, bytes]:
        content = bytearray()
        async with client.stream("POST", _completions_url(self.url), json=body) as response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise self._error("the response is compressed, which was not asked for")
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MAX_RESPONSE:
                    limit = MAX_RESPONSE // 2**20
                    raise self._error(f"the response is larger than {limit} MiB")
        return response, bytes(content)

    def _headers(self) -> dict[str, str]:
        key = self._api_key()
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"${self.key_variable} holds a character that no HTTP header can have")
        # Not compressed: a few bytes could become gigabytes.
        return {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}

    def _api_key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def _verdict(self, content: bytes) -> str:
        text = _message_content(content)
        if len(text) > MAX_TEXT:
            raise self._error(f"the verdict has more than {MAX_TEXT} characters")
        verdict = self._redact(text)
        if verdict == HIDDEN != text:
            raise self._error(f"the verdict spells ${self.key_variable}, or a secret of the URL")
        return verdict

    def _error(self, reason: str) -> InputError:
        text = f"judge {self.name}: {self._redact(reason)}"
        return InputError("".join(c if c.isprintable() else " " for c in text))

    def _redact(self, text: str) -> str:
        """`text` without the key and without the secrets of the URL."""
        return redact(text, {self._api_key(), *secrets_of(self.url)})

    @contextmanager
    def _redacted_logs(self) -> Iterator[None]:
        """The loggers of the HTTP client write URLs and headers; inside the block, without secrets."""

        def hide(record: logging.LogRecord) -> bool:
            record.msg, record.args = self._redact(record.getMessage()), ()
            return True

        loggers = [logging.getLogger(name) for name in _LOGGERS]
        for logger in loggers:
            logger.addFilter(hide)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(hide)


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine, in a thread of its own where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, coroutine).result()


def _completions_url(base: str) -> str:
    parts = urlsplit(base)
    return parts._replace(path=f"{parts.path.rstrip('/')}/chat/completions", fragment="").geturl()


def _retry_after(response: httpx2.Response) -> float | None:
    """The header in seconds, which it gives as a number or as a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _message_content(data: bytes) -> str:
    """The text of a chat completion. Raises _TransientError when there is none."""
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise _TransientError("the server's answer is no chat completion") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deeply, a huge number
        raise _TransientError(f"the server's answer is not JSON ({error})") from error
    if not isinstance(content, str):
        raise _TransientError("the server's answer holds no text")
    return content.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate could not be stored
