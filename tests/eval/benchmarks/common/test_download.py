"""Downloads: from a server into the cache, hashes, and what is left after a failure."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from regaze.errors import InputError
from regaze.eval import benchmarks
from regaze.eval.benchmarks.common.base import About
from regaze.eval.benchmarks.common.download import RemoteFile, benchmark_folder, download_files

CONTENT = b"[1]"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server with the file published.json."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "published.json").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_downloads_are_saved_and_checked(server, tmp_path):
    lines = []
    url, cache = f"{server}/published.json", tmp_path / "cache"
    files = [RemoteFile(url, "sub/a.json", DIGEST), RemoteFile(url, "b.json", None)]
    paths = download_files(files, cache, lines.append)
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert paths[0] == cache / "sub/a.json"
    assert "as pinned" in lines[0]
    assert "no hash is published" in lines[1]
    # A second time nothing is downloaded: the address may be gone.
    assert download_files([RemoteFile(f"{server}/gone.json", "sub/a.json", DIGEST)], cache) == paths[:1]


def test_a_wrong_file_is_not_saved(server, tmp_path):
    wrong = RemoteFile(f"{server}/published.json", "a.json", "0" * 64)
    with pytest.raises(InputError, match=rf"published\.json is not the published file: .*{DIGEST}"):
        download_files([wrong], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_present_file_that_is_wrong_is_named_and_stays(server, tmp_path):
    (tmp_path / "a.json").write_bytes(b"mine")
    file = RemoteFile(f"{server}/published.json", "a.json", DIGEST)
    with pytest.raises(InputError, match=rf"a\.json has sha256 .* expected {DIGEST}: not the published file"):
        download_files([file], tmp_path)
    assert (tmp_path / "a.json").read_bytes() == b"mine"


@pytest.mark.parametrize("address", ["{server}/gone.json", "http://127.0.0.1:9/gone.json"])
def test_a_missing_file_and_a_missing_network_say_what_to_do(server, tmp_path, address):
    file = RemoteFile(address.format(server=server), "a.json", None)
    with pytest.raises(InputError, match=r"gone\.json cannot be downloaded: .* save it as .*a\.json"):
        download_files([file], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file cannot be written: .*"):
        download_files([RemoteFile(f"{server}/published.json", "a.json", None)], tmp_path / "file")


def test_the_cache_can_be_put_elsewhere(server, tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "elsewhere"))
    gavie = benchmarks.load_class("gavie")
    files = (RemoteFile(f"{server}/published.json", "a.json", DIGEST),)
    monkeypatch.setattr(gavie, "about", About("t", "p", "l", "i", "h", files=files))
    assert benchmarks.download("gavie") == [benchmark_folder("gavie") / "a.json"]
    assert (tmp_path / "elsewhere/benchmarks/gavie/a.json").exists()
