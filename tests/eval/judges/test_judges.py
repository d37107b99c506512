"""Judges: requests to a server, stored verdicts, retries, limits and errors."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import logging
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from regaze.errors import InputError
from regaze.eval.judges import HttpJudge, ModelJudge, RecordedJudge, Verdicts, require_judge
from regaze.eval.judges.redaction import MAX_TEXT, redact


class Server(ThreadingHTTPServer):
    """Answers with the upper-case prompt; first fails with what is in `failures`."""

    def __init__(self, failures=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures = list(failures)
        self.seen = []
        self.drips = False  # a byte at a time
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


def completion(text):
    return {"choices": [{"message": {"content": text}}]}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        status, content, headers = 200, completion(body["messages"][0]["content"].upper()), {}
        if self.server.failures:
            status, content, *rest = self.server.failures.pop(0)
            headers = rest[0] if rest else {}
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for byte in data if self.server.drips else [data]:
            self.wfile.write(bytes([byte]) if self.server.drips else data)
            self.wfile.flush()
            time.sleep(0.05 if self.server.drips else 0.0)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    running = []

    def start(*failures):
        running.append(Server(failures))
        return running[-1]

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def judge_at(server, tmp_path, **options):
    options = {"workers": 1, "pause": 0.001, **options}
    return HttpJudge(server.url, "m", verdicts=Verdicts(tmp_path / "v.jsonl"), **options)


def test_a_server_gets_one_request_per_prompt_and_its_verdicts_are_stored(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    running = server()
    judge = judge_at(running, tmp_path, workers=3)
    assert judge.judge(["a", "b", "a"]) == ["A", "B", "A"]
    assert len(running.seen) == 2
    path, authorisation, body = running.seen[0]
    assert (path, authorisation) == ("/v1/chat/completions", "Bearer the-key")
    assert body["temperature"] == 0
    assert body["model"] == "m"
    kept = (tmp_path / "v.jsonl").read_text()
    assert [json.loads(line)["verdict"] for line in kept.splitlines()] in (["A", "B"], ["B", "A"])
    assert "the-key" not in kept
    # Another process, the same requests: nothing is asked again. Another model's are others.
    assert judge_at(running, tmp_path).judge(["b", "c"]) == ["B", "C"]
    assert len(running.seen) == 3
    HttpJudge(running.url, "other", verdicts=Verdicts(tmp_path / "v.jsonl")).judge(["a"])
    assert len(running.seen) == 4


def test_transient_errors_are_retried(server, tmp_path):
    running = server((500, {}), (429, {}), (200, {"choices": []}))
    assert judge_at(running, tmp_path).judge(["a"]) == ["A"]
    assert len(running.seen) == 4


def test_permanent_errors_are_not_retried(server, tmp_path):
    running = server((401, {"error": "no such key"}))
    with pytest.raises(InputError, match=r"judge m at http.*: 401 .*no such key"):
        judge_at(running, tmp_path).judge(["a", "b"])
    assert len(running.seen) <= 2
    running = server(*[(503, {})] * 9)
    with pytest.raises(InputError, match=r"no verdict after 3 attempts \(503"):
        judge_at(running, tmp_path, retries=2).judge(["a"])
    with pytest.raises(InputError, match="no verdict after 1 attempts"):
        HttpJudge("http://127.0.0.1:9/v1", "m", verdicts=Verdicts(tmp_path / "w.jsonl"), retries=0).judge(
            ["a"]
        )


def test_a_redirect_is_not_followed_and_carries_no_key(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    other, running = server(), server()
    running.failures = [(307, {}, {"Location": f"{other.url}/chat/completions"})] * 2
    with pytest.raises(InputError, match="307: redirects are not followed; give the URL it leads to"):
        judge_at(running, tmp_path).judge(["a"])
    assert other.seen == []
    assert len(running.seen) == 1


KEY = "sk-Test/Key+4f9a8b7c6d5e"


def spellings(key):
    """The key as servers send it back."""
    encoded = base64.b64encode(f"user:{key}".encode()).decode()
    return {
        "as it is": f"bad key {key}",
        "in a URL": f"see https://host/login?key={quote(key, safe='')}&x=1",
        "percent of each character": "".join(f"%{byte:02X}" for byte in key.encode()),
        "escaped JSON": "".join(f"\\u{ord(c):04x}" for c in key),
        "entities": "".join(f"&#{ord(c)};" for c in key),
        "base64": f"Basic {encoded}",
        "base64 in lines": "\n".join(re.findall(".{1,9}", encoded)),
        "base64 of percent": base64.b64encode(quote(key, safe="").encode()).decode(),
        "hexadecimal": key.encode().hex(),
        "in parts": " ".join(key),
        "in lines": "\n".join(re.findall(".{1,4}", key)),
        "a part": f"the key {key[5:17]}... is wrong",
        "capitals": key.upper(),
        "backwards": key[::-1],
        "base32": base64.b32encode(key.encode()).decode(),
        "octal": "".join(f"\\{ord(c):o}" for c in key),
        "codes": " ".join(str(ord(c)) for c in key),
        "bits": " ".join(f"{ord(c):08b}" for c in key),
        "C": ", ".join(f"0x{ord(c):02x}" for c in key),
        "quoted-printable": "".join(f"={ord(c):02X}" for c in key),
        "wide": "".join(chr(ord(c) + 0xFEE0) for c in key),
        "rot13": codecs.encode(key, "rot13"),
        "at the end of what is shown": "x" * (500 - len(key) // 2) + key,
    }


@pytest.mark.parametrize("how", spellings(KEY))
@pytest.mark.parametrize("status", [200, 401, 503])
def test_no_message_verdict_file_or_log_holds_the_key(server, tmp_path, monkeypatch, caplog, how, status):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    running = server()
    text = spellings(KEY)[how]
    running.failures = [(status, completion(text) if status == 200 else text.encode(), {"X-Echo": KEY})]
    judge = judge_at(running, tmp_path, retries=0)
    shown, problem = [repr(judge), judge.name], None
    try:
        shown += judge.judge(["a"])
    except InputError as error:
        problem = error
    if problem is not None:
        for each in (problem, problem.__cause__, problem.__context__):
            shown += [str(each), repr(each)]
        assert str(problem).isprintable()
    shown += [path.read_text() for path in tmp_path.iterdir()]
    shown += [record.getMessage() for record in caplog.records]
    for each in shown:
        assert redact(each, [KEY]) == each, how
        assert KEY[3:11] not in each
        if each != repr(judge) and each != judge.name:
            assert text not in each
    assert running.seen[0][1] == f"Bearer {KEY}"


def test_secrets_of_the_url_are_in_no_message_verdict_file_or_log(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    running = server()
    url = running.url.replace("http://", "http://person:pass%20word1@") + "/?key=abc123def"
    judge = HttpJudge(url, "m", verdicts=Verdicts(tmp_path / "v.jsonl"), retries=0)
    running.failures = [
        (200, completion("you are abc123def")),
        (401, b"no pass word1 for pass%20word1 of person"),
    ]
    shown = judge.judge(["a"])
    with pytest.raises(InputError) as caught:
        judge.judge(["b"])
    shown += [str(caught.value), repr(judge), judge.name, (tmp_path / "v.jsonl").read_text()]
    shown += [record.getMessage() for record in caplog.records]
    for secret in ("abc123def", "pass%20word1", "pass word1", "person"):
        assert not [each for each in shown if secret in each], secret
    assert running.seen[0][0] == "/v1/chat/completions?key=abc123def"


@pytest.mark.parametrize("key", ["EMPTY", "none", "no", "x"])
def test_a_placeholder_for_a_key_hides_nothing(server, tmp_path, monkeypatch, key):
    """It would turn a verdict of "no" into "***", which no scorer reads."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    running = server((200, completion(f"{key}: no.")))
    assert judge_at(running, tmp_path).judge(["a"]) == [f"{key}: no."]


@given(st.text(max_size=200))
def test_a_text_without_the_key_stays_as_it_is(text):
    assert redact(text, [KEY, "not-needed", "EMPTY", ""]) == text


def test_long_texts_are_looked_at_in_time():
    start = time.process_time()
    for text in ("word " * 30_000, "QUJDRA==" * 20_000, "%41" * 50_000, "\\u0041" * 20_000, "41:" * 50_000):
        assert len(redact(text, [KEY])) <= MAX_TEXT
    assert time.process_time() - start < 10


def test_a_key_that_no_header_can_have_is_refused(server, tmp_path, monkeypatch):
    running = server()
    monkeypatch.setenv("OPENAI_API_KEY", "the-key\nX-Other: 1")
    with pytest.raises(
        InputError, match=r"^\$OPENAI_API_KEY holds a character that no HTTP header can have$"
    ):
        judge_at(running, tmp_path).judge(["a"])
    monkeypatch.setenv("OPENAI_API_KEY", "the-key\n")
    judge_at(running, tmp_path).judge(["a"])
    assert running.seen[0][1] == "Bearer the-key"


def test_secrets_of_the_url_are_sent_but_neither_stored_nor_shown(server, tmp_path):
    running = server()
    url = running.url.replace("http://", "http://me:word@") + "/?token=abc"
    judge = HttpJudge(url, "m", verdicts=Verdicts(tmp_path / "v.jsonl"))
    assert judge.judge(["a"]) == ["A"]
    assert running.seen[0][0] == "/v1/chat/completions?token=abc"
    assert judge.name == f"m at {running.url}/"
    assert not {"word", "abc"} & set((tmp_path / "v.jsonl").read_text().replace('"', " ").split())
    assert "word" not in (tmp_path / "v.jsonl").read_text()


@pytest.mark.parametrize("url", ["ftp://host/v1", "http://", "http://[::1", "http://host:port/v1", "v1"])
def test_a_url_without_a_server_is_refused(url):
    with pytest.raises(InputError, match="the judge's URL is not one of a server"):
        HttpJudge(url, "m", verdicts=None)


@pytest.mark.parametrize("wait", ["86400", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_server_cannot_ask_for_a_day(server, tmp_path, monkeypatch, wait):
    monkeypatch.setattr("regaze.eval.judges.http.MAX_PAUSE", 0.01)
    running = server((429, {}, {"Retry-After": wait}))
    assert judge_at(running, tmp_path, pause=3600).judge(["a"]) == ["A"]
    assert len(running.seen) == 2


def test_a_server_may_ask_for_less_than_the_usual_pause(server, tmp_path):
    running = server(
        (429, {}, {"Retry-After": "0"}), (429, {}, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"})
    )
    assert judge_at(running, tmp_path, pause=3600).judge(["a"]) == ["A"]


def test_a_response_has_a_largest_size_and_a_longest_time(server, tmp_path, monkeypatch):
    monkeypatch.setattr("regaze.eval.judges.http.MAX_RESPONSE", 2**20)
    running = server((200, completion("x" * 2**20)))
    with pytest.raises(InputError, match="the response is larger than 1 MiB"):
        judge_at(running, tmp_path).judge(["a"])
    running.drips = True
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"after 1 attempts \(no complete response within 0.4 seconds\)"):
        judge_at(running, tmp_path, timeout=0.4, retries=0).judge(["a"])
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ({"error": "x"}, "is no chat completion"),
        (completion(None), "holds no text"),
    ],
    ids=["html", "binary", "nested", "error", "null"],
)
def test_a_response_without_a_completion_is_named(server, tmp_path, content, message):
    with pytest.raises(InputError, match=f"the server's answer {message}"):
        judge_at(server((200, content)), tmp_path, retries=0).judge(["a"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"nonsense\r\n\r\n", "illegal status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "peer closed connection|incomplete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "illegal chunk header"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n", "too long|too large|max|receive buffer"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx", "compressed"),
        (b"HTTP/1.1 99 Odd\r\n\r\n", "status"),
        (b"", "disconnected"),
    ],
)  # fmt: skip
def test_a_response_that_breaks_the_protocol_is_named(tmp_path, answer, message):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def respond():
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        threading.Thread(target=respond, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        judge = HttpJudge(url, "m", verdicts=Verdicts(tmp_path / "v.jsonl"), retries=0)
        with pytest.raises(InputError, match=f"(?i)^judge m at .*({message})"):
            judge.judge(["a"])


def test_an_address_that_is_none_is_named_at_once(tmp_path):
    for host in ("a..b", "x" * 300, "\u2025.org"):
        judge = HttpJudge(f"http://{host}/v1", "m", verdicts=Verdicts(tmp_path / "v.jsonl"), pause=0.001)
        with pytest.raises(InputError, match=r"^judge m at "):
            judge.judge(["a"])


def test_a_verdict_and_a_prompt_with_control_characters_are_read_again(server, tmp_path):
    judge_at(server((200, completion("\x1b[31m yes \0"))), tmp_path).judge(["a\x07"])
    assert RecordedJudge(tmp_path / "v.jsonl").judge(["a\x07"]) == ["\x1b[31m yes \0"]
    assert judge_at(server(), tmp_path).judge(["b"]) == ["B"]


def test_a_verdict_has_a_largest_size(server, tmp_path):
    running = server((200, completion("x" * (MAX_TEXT + 1))))
    with pytest.raises(InputError, match="the verdict has more than 65536 characters"):
        judge_at(running, tmp_path).judge(["a"])


def test_a_lone_surrogate_can_be_stored(server, tmp_path):
    running = server((200, b'{"choices": [{"message": {"content": "a\\ud800b"}}]}'))
    assert judge_at(running, tmp_path).judge(["a"]) == ["a?b"]


def test_a_judge_works_inside_an_event_loop(server, tmp_path):
    judge = judge_at(server(), tmp_path)

    async def notebook():
        return judge.judge(["a", "b"])

    assert asyncio.run(notebook()) == ["A", "B"]


def test_verdicts_before_a_failure_are_stored(server, tmp_path):
    running = server()
    judge = judge_at(running, tmp_path)
    judge.judge(["a"])
    running.failures = [(400, {})]
    with pytest.raises(InputError):
        judge.judge(["b"])
    assert Verdicts(tmp_path / "v.jsonl")._verdicts.keys() == judge.verdicts._verdicts.keys()
    assert len(judge.verdicts._verdicts) == 1


def test_recorded_verdicts_take_the_judges_place(server, tmp_path):
    judge_at(server(), tmp_path).judge(["a", "b"])
    recorded = RecordedJudge(tmp_path / "v.jsonl")
    assert recorded.judge(["b", "a", "b"]) == ["B", "A", "B"]
    with pytest.raises(InputError, match=r"v\.jsonl has no verdict on 2 of 3 prompts; the first begins 'c'"):
        recorded.judge(["a", "c", "d"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}', r"v\.jsonl:1: expected an object with the text 'verdict'"),
        ('{"prompt": "a", "verdict": "x"}\n{"prompt": "a", "verdict": "y"}', r"v\.jsonl:2: another verdict"),
        ("[1]", r"v\.jsonl:1: expected an object with the text 'prompt'"),
        ("nonsense", r"v\.jsonl:1: not valid JSON"),
    ],
)
def test_malformed_files_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "v.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        RecordedJudge(tmp_path / "v.jsonl")


def test_a_missing_judge_is_an_error_that_names_the_possible_ones():
    with pytest.raises(InputError, match="MMHal is graded by a judge, and none is configured: give the URL"):
        require_judge(None, "MMHal")


class Tokenizer:
    """Two tokens per prompt; reads token ids back as letters."""

    def apply_chat_template(self, messages, **options):
        assert options["add_generation_prompt"]

        class Inputs(dict):
            def to(self, device):
                return self

        return Inputs(input_ids=torch.tensor([[1, 2]]))

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(96 + token) for token in ids.tolist())


class Model:
    device = "cpu"
    calls = 0
    moved = ()

    def to(self, device):
        self.moved = (*self.moved, device)

    def generate(self, input_ids, do_sample, max_new_tokens):
        assert not do_sample
        self.calls += 1
        return torch.cat([input_ids, torch.tensor([[25, 5, 19]])], 1)


def test_a_model_judges_greedily_and_only_its_own_words_count(tmp_path):
    model = Model()
    judge = ModelJudge(model, Tokenizer(), "tiny", verdicts=Verdicts(tmp_path / "v.jsonl"))
    assert judge.judge(["x", "x"]) == ["yes", "yes"]
    assert model.calls == 1


def test_a_line_at_which_a_process_died_is_dropped_and_cut(tmp_path):
    path = tmp_path / "v.jsonl"
    Verdicts(path).store("a", {}, "p", "yes")
    whole = path.read_bytes()
    for end in range(1, len(whole) - 1):
        path.write_bytes(whole + whole[:end].replace(b'"a"', b'"b"'))
        assert RecordedJudge(str(path)).judge(["p"]) == ["yes"]
        verdicts = Verdicts(str(path))
        assert verdicts.get("b") is None
    verdicts.store("c", {}, "p", "yes")
    assert path.read_bytes() == whole + whole.replace(b'"a"', b'"c"')


def test_a_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "v.jsonl"
    path.write_text('{"key": "a", "prompt": "p", "verdict": "yes"}')
    Verdicts(path).store("b", {}, "p", "yes")
    assert {Verdicts(path).get(key) for key in "ab"} == {"yes"}


def test_verdicts_that_do_not_fit_on_the_disk_are_an_input_error(tmp_path, monkeypatch):
    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "v.jsonl"
    Verdicts(path).store("a", {}, "p", "yes")
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"verdicts cannot be kept in .*: No space left on device"):
        Verdicts(path).store("b", {}, "p", "yes")
    assert path.read_bytes() == before


def test_verdicts_that_cannot_be_written_are_named_before_the_run(tmp_path, monkeypatch):
    from regaze.cli import app

    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    arguments = [
        "evaluate",
        "mmhal",
        "--judge",
        "http://127.0.0.1:9/v1#judge",
        "--output",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "verdicts.jsonl cannot be written: " in result.stderr
    assert "cache is no folder" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_runs_on_the_device_that_was_chosen_once_it_is_asked(tmp_path):
    model = Model()
    judge = ModelJudge(model, Tokenizer(), "tiny", "cuda:1", verdicts=Verdicts(tmp_path / "v.jsonl"))
    assert model.moved == ()  # the model that answers has the memory before
    judge.judge(["x"])
    assert model.moved == ("cuda:1",)
    judge.judge(["x"])
    assert model.moved == ("cuda:1",)  # a stored verdict needs no model


@pytest.mark.parametrize("name", ["evaluate", "compare"])
def test_commands_give_the_judge_their_device(monkeypatch, name):
    from regaze.cli import app

    given = []
    monkeypatch.setattr(ModelJudge, "load", lambda model, device=None: given.append((model, device)) or 1 / 0)
    result = CliRunner().invoke(app, [name, "mmhal", "--judge", "./judge", "--device", "cuda:1"])
    assert isinstance(result.exception, ZeroDivisionError)
    assert given == [("./judge", "cuda:1")]


def test_code_of_a_judges_folder_is_never_run(tmp_path):
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('code of the judge was run')")
    with pytest.raises(InputError, match=r"^judge .* cannot be loaded: .*custom code|trust_remote_code"):
        ModelJudge.load(str(tmp_path), "cpu")
    with pytest.raises(InputError, match=r"^judge .*/none' cannot be loaded: "):
        ModelJudge.load(str(tmp_path / "none"), "cpu")


def test_the_demo_model_can_be_loaded_as_a_judge(tmp_path):
    judge = ModelJudge.load("demo", "cpu", max_new_tokens=2, verdicts=Verdicts(tmp_path / "v.jsonl"))
    (verdict,) = judge.judge(["Is there a dog?"])
    assert verdict
    assert Verdicts(tmp_path / "v.jsonl").path.is_file()
