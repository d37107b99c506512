"""Fetch a picture from a URL: only where the caller allows it, within limits, and from public addresses.

A URL may come from a file of others, and a request to it must not reach what only this machine can see. So
the name is resolved here, every address must be a public one, and the connection goes to the address that was
checked; redirects are followed by the same rules. Size and time are limited.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urljoin, urlsplit

from regaze.errors import InputError

#: Bytes of a response, seconds for all of it with its redirects, and the number of these.
MAX_BYTES = 32 * 2**20
MAX_SECONDS = 30.0
MAX_REDIRECTS = 5

#: IPv6 addresses that are assigned for the internet, and those that stand for IPv4 addresses (RFC 6052).
_UNICAST, _NAT64 = ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("64:ff9b::/96")
_URL = re.compile(r"https?://", re.IGNORECASE)


def is_url(value: object) -> bool:
    """Whether a value is a text with a URL."""
    return isinstance(value, str) and _URL.match(value) is not None


def fetch(url: str) -> bytes:
    """What a URL leads to.

    Raises:
        InputError: it is no URL of a public server, there is no picture, or it exceeds a limit.
    """
    with ThreadPoolExecutor(1) as pool:  # a notebook's thread has a loop that runs already
        return pool.submit(asyncio.run, _fetch(url)).result()


async def _fetch(url: str) -> bytes:
    try:  # the client's own limits are per read: a server that sends a byte a second never exceeds them
        return await asyncio.wait_for(_follow(url), MAX_SECONDS)
    except asyncio.TimeoutError:
        raise InputError(f"{shown(url)} took more than {MAX_SECONDS:g} seconds") from None


async def _follow(first: str) -> bytes:
    url = first
    for _ in range(MAX_REDIRECTS + 1):
        content, location = await _get(url)
        if not location:
            return content
        url = urljoin(url, location)
        if not is_url(url):
            raise InputError(f"{shown(first)} redirects to what is no web address")
    raise InputError(f"{shown(first)} redirects more than {MAX_REDIRECTS} times")


def shown(url: str) -> str:
    """A URL in a message: without user, password and query, which may hold secrets."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "the URL"
    text = parts._replace(netloc=host, query="", fragment="").geturl()
    return "".join(sign if sign.isprintable() else "?" for sign in text)[:200]


def addresses_of(host: str, port: int) -> list[str]:
    """The IP addresses of a host. Raises OSError where there are none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def _get(url: str) -> tuple[bytes, str]:
    """(content, "") of a URL, or (b"", where it redirects to)."""
    import httpx2

    try:
        target, options = _checked(url)
        # Without the environment's proxy, which would resolve the name anew.
        client = httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=MAX_SECONDS)
        async with client, client.stream("GET", target, **options) as response:
            if response.is_redirect:
                return b"", str(response.headers.get("Location", ""))
            if not response.is_success:
                raise InputError(f"{shown(url)} answers with status {response.status_code}")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise InputError(f"{shown(url)} answers compressed, which was not asked for")
            return await _read(response, shown(url)), ""
    except InputError:
        raise
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, ValueError) as error:
        raise InputError(f"{shown(url)} cannot be fetched: {type(error).__name__}") from None


async def _read(response: Any, name: str) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_BYTES:
            raise InputError(f"{name} is larger than {MAX_BYTES // 2**20} MiB")
    return bytes(content)


def _checked(url: str) -> tuple[str, dict[str, Any]]:
    """The URL with a checked address for its host, and options by which the server knows the host."""
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port or (443 if parts.scheme.lower() == "https" else 80)
    if not host or parts.username or parts.password:
        raise InputError(f"{shown(url)}: expected a URL like https://host/picture.jpg, without a user")
    found = addresses_of(host, port)
    refused = next((each for each in found if not _is_public(each)), None)
    if refused is not None or not found:
        raise InputError(f"{shown(url)} leads to {refused}, which is no public address; save the picture")
    address = f"[{found[0]}]" if ":" in found[0] else found[0]
    headers = {"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity"}
    target = parts._replace(netloc=f"{address}:{port}", fragment="").geturl()
    return target, {"headers": headers, "extensions": {"sni_hostname": host}}


def _is_public(address: str) -> bool:
    """Whether an address is one of the internet; one that carries an IPv4 address is what that is."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None
        carried = found.ipv4_mapped or found.sixtofour or translated
        if carried is None and found not in _UNICAST:
            return False
        return _is_public(str(carried)) if carried else found.is_global
    return found.is_global and not found.is_multicast
