"""Judges: what is asked of a server, what is kept, what is repeated, and what is refused."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from regaze.errors import InputError
from regaze.eval.judges import HttpJudge, ModelJudge, RecordedJudge, Verdicts, need


class Server(ThreadingHTTPServer):
    """Answers with the upper-case prompt; first fails with what is in `failures`."""

    def __init__(self, failures=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures = list(failures)
        self.seen = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        status, content = 200, {"choices": [{"message": {"content": body["messages"][0]["content"].upper()}}]}
        if self.server.failures:
            status, content = self.server.failures.pop(0)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

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


def test_a_server_is_asked_once_per_prompt_at_temperature_0_and_its_words_are_kept(
    server, tmp_path, monkeypatch
):
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


def test_what_passes_is_repeated(server, tmp_path):
    running = server((500, {}), (429, {}), (200, {"choices": []}))
    assert judge_at(running, tmp_path).judge(["a"]) == ["A"]
    assert len(running.seen) == 4


def test_what_does_not_pass_is_not(server, tmp_path):
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


def test_verdicts_before_a_failure_are_kept(server, tmp_path):
    running = server()
    judge = judge_at(running, tmp_path)
    judge.judge(["a"])
    running.failures = [(400, {})]
    with pytest.raises(InputError):
        judge.judge(["b"])
    assert Verdicts(tmp_path / "v.jsonl")._known.keys() == judge.verdicts._known.keys()
    assert len(judge.verdicts._known) == 1


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


def test_no_judge_is_an_error_that_says_what_there_could_be():
    with pytest.raises(InputError, match="MMHal is graded by a judge, and none is configured: give the URL"):
        need(None, "MMHal")


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

    def generate(self, input_ids, do_sample, max_new_tokens):
        assert not do_sample
        self.calls += 1
        return torch.cat([input_ids, torch.tensor([[25, 5, 19]])], 1)


def test_a_model_judges_greedily_and_only_its_own_words_count(tmp_path):
    model = Model()
    judge = ModelJudge(model, Tokenizer(), "tiny", verdicts=Verdicts(tmp_path / "v.jsonl"))
    assert judge.judge(["x", "x"]) == ["yes", "yes"]
    assert model.calls == 1
