"""URLs of servers, which may hold a user, a password or a key."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit


def without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment; "" where it is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return url if parts == _public(parts) else _public(parts).geturl()


def secrets_of(url: str) -> set[str]:
    """User, password and what the query holds, as they are written and as they are read."""
    parts = urlsplit(url)
    found = {parts.netloc.rpartition("@")[0], parts.username or "", parts.password or "", parts.query}
    found.update(value for _, value in parse_qsl(parts.query))
    return {each for text in found for each in (text, unquote(text)) if each}


def _public(parts: SplitResult) -> SplitResult:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
