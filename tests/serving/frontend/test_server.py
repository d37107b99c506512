"""`regaze serve`: which options it gives vLLM's server, and two clients who ask it at once."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from acting_methods import acting

from regaze.serving.frontend.server import needed_options
from regaze.serving.records import record_of

#: Seconds that a server may take to start on a machine that is busy.
START = 600


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("knockout", []),
        ("var", ["--enforce-eager"]),
        ("eah", ["--no-enable-chunked-prefill"]),
        ("dola", ["--enforce-eager"]),
        ("cai", ["--no-enable-chunked-prefill", "--enforce-eager", "--no-async-scheduling"]),
        ("vcd", ["--no-async-scheduling"]),
    ],
)
def test_options_that_a_method_needs(name, options):
    assert needed_options(acting(name), cuda=False) == options
    assert needed_options(acting(name), cuda=True) == ["--attention-backend", "CUSTOM", *options]


def test_no_method_needs_no_options():
    assert needed_options(None, cuda=False) == []


@pytest.mark.parametrize(
    "words",
    [["--port", "8000", "demo"], ["--method", "vaf", "--port=8000", "demo"]],
)
def test_the_model_comes_before_options_of_vllm(words):
    from typer.testing import CliRunner

    from regaze.cli.app import app

    result = CliRunner().invoke(app, ["serve", *words])
    assert result.exit_code == 2
    assert "name the model before options of `vllm serve` such as --port" in result.stderr


class Server(NamedTuple):
    address: str
    records: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose answers lack two heads by default."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    words = ["serve", "demo", "--method", "knockout", "--set", "heads=[[0,0],[0,3]]", "--port", str(port)]
    options = ["--host", "127.0.0.1", "--enforce-eager", "--dtype", "float32", "--max-model-len", "512"]
    (log.parent / "records").mkdir()
    records = {"REGAZE_SERVING_RECORDS": str(log.parent / "records")}
    processes = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}  # unlike other engines of the tests
    environment = {
        **os.environ,
        "REGAZE_CACHE": str(log.parent),
        "OMP_NUM_THREADS": "1",
        **records,
        **processes,
    }
    command = [sys.executable, "-c", "from regaze.cli import main; main()", *words, *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}", process, log)
        yield Server(f"http://127.0.0.1:{port}", log.parent / "records")
    finally:
        process.terminate()
        process.wait(60)


def wait_for(address: str, process: Any, log: Any) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx2.get(f"{address}/health", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def ask(server: Server, asked: Any, number: int, more: Any = None, **xargs: str) -> Any:
    """The server's reply to one question; `more` of the body."""
    picture = BytesIO()
    asked.images[number].save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [image, {"type": "text", "text": asked.questions[number]}]
    body = {"messages": [{"role": "user", "content": content}], "model": "demo", "vllm_xargs": xargs}
    options = {"temperature": 0, "max_tokens": 16, "add_special_tokens": True, **(more or {})}
    return httpx2.post(f"{server.address}/v1/chat/completions", json={**body, **options}, timeout=300)


@pytest.mark.vllm
@pytest.mark.slow
def test_clients_get_what_each_asks_for(server, asked):
    knockout, vaf = ({"method": "knockout", "heads": [[0, 0], [0, 3]]}, {"method": "vaf", "enhance": 2.0})
    vcd, icd = {"method": "vcd"}, {"method": "icd"}
    wanted = {
        "default": (asked.by_transformers(knockout), {}),
        "named": (asked.by_transformers(vaf), {"regaze": json.dumps(vaf)}),
        "second context": (asked.by_transformers(vcd), {"regaze": json.dumps(vcd)}),
        "again, images not sent": (asked.by_transformers(icd), {"regaze": json.dumps(icd)}),
        "plain": (asked.by_transformers(), {"regaze": "[]"}),
    }
    for _name, (rows, xargs) in wanted.items():
        with ThreadPoolExecutor(2) as clients:
            replies = list(clients.map(lambda number, x=xargs: ask(server, asked, number, **x), range(6)))
        texts = [reply.json()["choices"][0]["message"]["content"].strip() for reply in replies]
        assert texts == [text.strip() for text in asked.gaze.reader.decode(rows[:6])]


@pytest.mark.vllm
@pytest.mark.slow
def test_a_wrong_request_gets_status_400_and_the_reason(server, asked):
    reply = ask(server, asked, 0, regaze='{"method": "knockout", "heads": [[0, 99]]}')
    assert reply.status_code == 400
    assert re.search(r"head \(0, 99\) does not exist", reply.text)
    assert ask(server, asked, 0).status_code == 200


@pytest.mark.vllm
@pytest.mark.slow
def test_records_come_from_the_process_that_runs_the_model(server, asked):
    reply = ask(server, asked, 0, regaze="[]", regaze_record='{"entropy": true}')
    (trace,) = record_of(reply.json()["id"], server.records)
    wanted = asked.by_transformers()[0]
    assert trace.output_ids.flatten().tolist() == wanted
    assert trace.entropy.shape[-1] == len(wanted)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_stop_text_ends_a_record_too(server, asked):
    """The server finds the text, and aborts the request in the engine."""
    text = ask(server, asked, 0, regaze="[]").json()["choices"][0]["message"]["content"]
    stop = text.split()[2]
    reply = ask(server, asked, 0, {"stop": [stop]}, regaze="[]", regaze_record="true")
    assert reply.json()["choices"][0]["finish_reason"] == "stop"
    (trace,) = record_of(reply.json()["id"], server.records)
    wanted = asked.by_transformers()[0]
    found = trace.output_ids.flatten().tolist()
    assert 0 < len(found) < len(wanted)
    assert wanted[: len(found)] == found


@pytest.mark.vllm
@pytest.mark.slow
def test_a_taken_id_and_beams_under_a_default_method_are_refused(server, asked):
    for status in (200, 400):
        headers = {"X-Request-Id": "mine"}
        body = {"model": "demo", "prompt": "Is it?", "max_tokens": 2}
        xargs = {"regaze": "[]", "regaze_record": "true"}
        url = f"{server.address}/v1/completions"
        reply = httpx2.post(url, json={**body, "vllm_xargs": xargs}, headers=headers, timeout=300)
        assert reply.status_code == status
        if status == 200:
            record_of(f"{reply.json()['id']}-0", server.records)
    assert "is there already" in reply.text
    beams = ask(server, asked, 0, {"use_beam_search": True, "n": 2})
    assert beams.status_code == 400
    assert "beam search has no methods" in beams.text
