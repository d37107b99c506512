"""Pictures behind URLs: only public servers, within limits, and only where the caller allows it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from models import picture

from regaze.errors import InputError
from regaze.toolkit.prompts import remote
from regaze.toolkit.prompts.images import open_image


def png() -> bytes:
    out = io.BytesIO()
    picture(0, 20, 10).save(out, "png")
    return out.getvalue()


class Handler(BaseHTTPRequestHandler):
    hosts: list[str]

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest or "/picture.png")
            self.end_headers()
            return
        self.send_response(404 if kind == "none" else 200)
        if kind == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if kind == "slow":
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.02)
        self.wfile.write(bytes(2**20) if kind == "large" else png())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    """The address of a server that counts as public under the name pictures.test."""
    Handler.hosts = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real, public = remote.addresses_of, remote._is_public
    known = {"pictures.test": ["127.0.0.1"], "mixed.test": ["127.0.0.1", "10.0.0.1"]}
    monkeypatch.setattr(remote, "addresses_of", lambda host, port: known.get(host) or real(host, port))
    monkeypatch.setattr(remote, "_is_public", lambda each: each == "127.0.0.1" or public(each))
    yield f"http://pictures.test:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_picture_is_fetched_from_the_address_that_was_checked(server):
    for url in (f"{server}/picture.png?key=secret", f"{server}/to", f"{server}/to/{server}/x"):
        opened = open_image(url, allow_urls=True)
        assert np.array_equal(np.asarray(opened), np.asarray(picture(0, 20, 10)))
        assert "secret" not in str(opened.info)
    assert set(Handler.hosts) == {server.removeprefix("http://")}


def test_it_must_be_allowed(server):
    with pytest.raises(InputError, match=r"/a\.png is a URL: allow_urls=True \(--allow-urls\) lets it"):
        open_image(f"{server}/a.png")
    assert not Handler.hosts


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none", "/none answers with status 404"),
        ("packed", "/packed answers compressed, which was not asked for"),
        ("large", "/large is larger than 0 MiB"),
        ("slow", "/slow took more than 0.5 seconds"),
        ("to/to/to/to/to/to/to", "/to/to/to/to/to/to/to redirects more than 3 times"),
        ("to/file:///etc/passwd", "redirects to what is no web address"),
        ("to/http://10.0.0.1/x", "http://10.0.0.1/x leads to 10.0.0.1, which is no public address"),
    ],
)
def test_limits(server, monkeypatch, path, message):
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    monkeypatch.setattr(remote, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(remote, "MAX_REDIRECTS", 3)
    with pytest.raises(InputError, match=message):
        remote.fetch(f"{server}/{path}")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1/a",
            "http://localhost/a",
            "http://10.1.2.3/a",
            "http://192.168.0.1/a",
            "http://0/a",
        ),
        *(
            "http://169.254.169.254/a",
            "http://[::1]/a",
            "http://[::ffff:127.0.0.1]/a",
            "http://[fe80::1%25lo]/a",
        ),
        *(
            "http://[64:ff9b::a00:1]/a",
            "http://[2002:a00:1::]/a",
            "http://[::10.0.0.1]/a",
            "http://[fec0::1]/a",
        ),
        *("http://2130706433/a", "http://100.64.0.1/a", "http://224.0.0.1/a", "https://[fd00::1]/a"),
    ],
)
def test_addresses_that_are_not_public_are_refused(url):
    with pytest.raises(InputError, match=r"which is no public address|cannot be fetched: gaierror"):
        remote.fetch(url)


def test_addresses_of_the_internet_are_public():
    for address in ("93.184.216.34", "2606:4700::1", "64:ff9b::5db8:d822", "2002:5db8:d822::1"):
        assert remote._is_public(address)


def test_one_address_that_is_not_public_is_enough(server):
    with pytest.raises(InputError, match=r"leads to 10\.0\.0\.1, which is no public address"):
        remote.fetch(server.replace("pictures", "mixed"))


@pytest.mark.parametrize(
    "url", ["http://me:secret@host/a", "http:///a", "http://host:99999/a", "http://[::1/a"]
)
def test_what_is_no_url_of_a_server_is_refused_without_its_secrets(url):
    with pytest.raises(InputError) as raised:
        remote.fetch(url)
    assert "secret" not in str(raised.value)
