"""URLs of servers, which may hold a user, a password or a key."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit


def without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return url if parts == _public(parts) else _public(parts).geturl()


def secrets_of(url: str) -> list[str]:
    """User and password, and the query; "" where there is none."""
    parts = urlsplit(url)
    return [parts.netloc.rpartition("@")[0], parts.query]


def _public(parts: SplitResult) -> SplitResult:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
