"""The questions of a run, answered by an engine, have the answers and scores that transformers gives."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

import regaze
from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.run.engines import TransformersEngine
from regaze.eval.run.requests import Condition, ImageHashes, build_requests
from regaze.interventions import registry
from regaze.serving.frontend import offline

pytestmark = pytest.mark.vllm

LIMITS = {"max_model_len": 512, "max_num_seqs": 16, "block_size": 32, "limit_mm_per_prompt": {"image": 1}}


def method(name: str, **parameters: Any) -> Any:
    return registry.method_from_dict({"method": name, **parameters})


METHODS = {
    "knockout": method("knockout", heads=[[0, 0], [0, 3]]),
    "pai": method("pai", gamma=1.0, alpha=0.8),
    "var": method("var", rho=0.2),
    "vcd": method("vcd"),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from regaze.eval import VLLMEngine

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGAZE_CACHE", str(tmp_path_factory.mktemp("cache")))
        with closing(VLLMEngine("demo", **LIMITS)) as engine:
            yield engine


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(*regaze.load("demo"))


@pytest.fixture(scope="module")
def tasks():
    captions = Chair.of_demo(6, max_new_tokens=24)
    return [EvalTask(Pope.of_demo(limit=40), {"max_new_tokens": 4}), EvalTask(captions, {})]


@pytest.fixture(scope="module")
def by_transformers(gaze, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    results = evaluate(gaze, tasks, METHODS, folder, model_name="demo", progress=False)
    return results, answers(folder)


def answers(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def figures(results):
    """All that is scored, without costs, and the flags of these."""
    costs = ("cost", "sharing", "flags")
    return {
        (name, label): {key: value for key, value in entry.items() if key not in costs}
        for name, each in results["benchmarks"].items()
        for label, entry in [("plain", each["plain"]), *each["methods"].items()]
    }


def test_answers_and_scores_are_those_of_transformers(engine, tasks, by_transformers, tmp_path):
    results = evaluate(None, tasks, METHODS, tmp_path, model_name="demo", engine=engine, progress=False)
    assert answers(tmp_path) == by_transformers[1]
    assert figures(results) == figures(by_transformers[0])
    assert results["benchmarks"]["pope"]["methods"]["knockout"]["answers_changed"] > 0
    assert results["model"]["engine"]["name"] == "vllm"
    assert results["model"]["fingerprint"] != by_transformers[0]["model"]["fingerprint"]


def test_prompts_are_those_of_transformers(engine, gaze, tasks):
    condition = Condition("m", None, {}, 0)
    for task in tasks:
        generator = engine.generator(condition, EvalConfig())
        for request in build_requests(task.benchmark, condition, ImageHashes()).requests.values():
            (ids,) = gaze.inputs([list(request.images)], [request.question])["input_ids"].tolist()
            assert engine.offline.admit(generator._request(request, 0)) == ids


def test_a_stopped_run_goes_on(engine, tasks, by_transformers, tmp_path):
    """It is stopped in the second part, after which no request is left in the engine."""
    config, methods = EvalConfig(batch_size=8), {"knockout": METHODS["knockout"]}

    def stop(label, done, total):
        if label.startswith("pope") and done >= 8:
            raise KeyboardInterrupt

    def run(progress):
        return evaluate(
            *(None, tasks, methods, tmp_path),
            model_name="demo",
            engine=engine,
            config=config,
            progress=progress,
        )

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    kept = (tmp_path / "journal.0.jsonl").read_text()
    assert engine.offline.llm.llm_engine.get_num_unfinished_requests() == 0
    run(False)
    assert kept
    assert (tmp_path / "journal.0.jsonl").read_text().startswith(kept)
    wanted = [row for row in by_transformers[1] if row["condition"] in ("plain", "knockout")]
    assert answers(tmp_path) == wanted


def test_a_question_that_fails_ends_no_other(engine, tasks, by_transformers, tmp_path):
    pope = tasks[0].benchmark
    items = [
        replace(item, question=f"{item.question} " * 99) if n == 5 else item
        for n, item in enumerate(pope.items)
    ]
    benchmark = replace(pope, items=items)
    task = EvalTask(benchmark, tasks[0].generate_kwargs)
    evaluate(None, [task], {}, tmp_path, model_name="demo", engine=engine, progress=False)
    rows = answers(tmp_path)
    assert "512" in rows[5]["error"]
    wanted = [row for row in by_transformers[1] if (row["benchmark"], row["condition"]) == ("pope", "plain")]
    assert [row for n, row in enumerate(rows) if n != 5] == [row for n, row in enumerate(wanted) if n != 5]


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (method("paint"), "paint: it reads the attention of the vision tower"),
        (method("carve"), "carve: it answers in several passes"),
        (method("knockout", heads=[[0, 99]]), r"head \(0, 99\) does not exist"),
    ],
)
def test_a_refused_method_is_named_before_anything_is_asked(engine, tasks, tmp_path, refused, message):
    def run(**config):
        return evaluate(
            *(None, tasks[:1], {"m": refused}, tmp_path),
            model_name="demo",
            engine=engine,
            config=EvalConfig(**config),
            progress=False,
        )

    with pytest.raises(UnsupportedModelError, match=message):
        run(raise_method_errors=True)
    assert (tmp_path / "journal.0.jsonl").read_text() == ""
    entry = run()["benchmarks"]["pope"]
    assert entry["plain"]["cost"]["answers"] == 76
    assert re.search(message, entry["methods"]["m"]["error"])


def scored(engine, requests, method):
    """What an engine says of requests for likelihoods, by key."""
    config = EvalConfig(batch_size=4)
    generator = engine.generator(Condition("m", method, {}, 0), config)
    found: dict[str, str] = {}
    for part in generator.answer_all(requests):
        assert not part.errors
        found |= part.answers
    return found


@pytest.mark.parametrize("name", [None, "knockout", "pai", "var", "vcd"])
def test_likelihoods_are_those_of_transformers(engine, gaze, tasks, name):
    plain = build_requests(tasks[0].benchmark, Condition("m", None, {}, 0), ImageHashes()).requests
    texts = ("Yes, there is.", "No", "There is a dog in the image.")
    given = [
        replace(request, continuation=texts[number % 3])
        for number, request in enumerate([*plain.values()][:9])
    ]
    chosen = None if name is None else METHODS[name]
    ours = scored(engine, given, chosen)
    theirs = scored(TransformersEngine(gaze), given, chosen)
    assert ours.keys() == theirs.keys()
    for key, text in ours.items():
        logprob, tokens = text.split(" of ")
        wanted, same = theirs[key].split(" of ")
        assert float(logprob) == pytest.approx(float(wanted), abs=1e-3)
        assert tokens == same


@pytest.mark.parametrize("name", [None, "knockout"])
def test_likelihoods_need_log_probabilities_of_the_model(engine, tasks, monkeypatch, name):
    plain = build_requests(tasks[0].benchmark, Condition("m", None, {}, 0), ImageHashes()).requests
    given = [replace(request, continuation="No") for request in [*plain.values()][:2]]
    monkeypatch.setattr(engine.offline.llm.model_config, "logprobs_mode", "processed_logprobs")
    generator = engine.generator(Condition("m", name and METHODS[name], {}, 0), EvalConfig())
    with pytest.raises(UnsupportedModelError, match=r"gives processed_logprobs: .* raw_logprobs"):
        generator.check(given)
    (part,) = generator.answer_all(given)
    assert len(part.errors) == 2


@pytest.mark.parametrize("name", ["knockout", "vcd"])
def test_an_answer_without_room_is_an_error_and_no_score(engine, tasks, monkeypatch, name):
    plain = build_requests(tasks[0].benchmark, Condition("m", None, {}, 0), ImageHashes()).requests
    request = replace(next(iter(plain.values())), continuation="There is a dog in the image.")
    generator = engine.generator(Condition("m", METHODS[name], {}, 0), EvalConfig())
    asked = generator._request(request, 0)
    prompt, wanted = len(engine.offline.admit(asked)), len(asked.forced)
    scheduler = engine.offline.llm.llm_engine.engine_core.engine_core.scheduler
    known = scheduler.max_model_len

    def outcome(limit):
        monkeypatch.setattr(scheduler, "max_model_len", limit)
        (part,) = generator.answer_all([request])
        return part

    whole = outcome(known)
    assert whole.answers
    assert outcome(prompt + wanted).answers == whole.answers
    (error,) = outcome(prompt + wanted - 1).errors.values()
    assert f"after {wanted - 1} of {wanted} tokens" in error
    assert f"the prompt has {prompt}" in error


def test_an_answer_is_not_cut_off_without_a_word(engine, tasks, monkeypatch):
    condition = Condition("m", None, {}, 0)
    request = next(iter(build_requests(tasks[1].benchmark, condition, ImageHashes()).requests.values()))
    generator = engine.generator(condition, EvalConfig())
    prompt = len(engine.offline.admit(generator._request(request, 0)))
    scheduler = engine.offline.llm.llm_engine.engine_core.engine_core.scheduler
    monkeypatch.setattr(scheduler, "max_model_len", prompt + 2)
    (part,) = generator.answer_all([request])
    assert "after 2 of 24 tokens" in next(iter(part.errors.values()))


@pytest.mark.parametrize("name", [None, "knockout"])
def test_the_likeliest_option_is_that_of_transformers(engine, gaze, tasks, name):
    plain = build_requests(tasks[0].benchmark, Condition("m", None, {}, 0), ImageHashes()).requests
    given = [replace(request, options=("Yes", "No")) for request in [*plain.values()][:12]]
    chosen = None if name is None else METHODS[name]
    ours = scored(engine, given, chosen)
    assert ours == scored(TransformersEngine(gaze), given, chosen)
    assert len(set(ours.values())) == (2 if name is None else 1)


def test_a_sampled_answer_depends_on_its_own_seed_only(engine, tasks):
    options = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 8}

    def sampled(seed, count):
        condition = Condition("m", None, options, seed)
        requests = build_requests(tasks[1].benchmark, condition, ImageHashes()).requests
        generator = engine.generator(condition, EvalConfig())
        return [
            text
            for part in generator.answer_all([*requests.values()][:count])
            for text in part.answers.values()
        ]

    assert sampled(0, 1)[0] in sampled(0, 6)
    assert sampled(0, 6) != sampled(1, 6)


def test_arguments_of_generate_that_vllm_lacks_are_named(engine, tasks, tmp_path):
    task = EvalTask(tasks[0].benchmark, {"num_beams": 2, "max_new_tokens": 4})
    with pytest.raises(BadParameterError, match="num_beams=2"):
        evaluate(None, [task], {}, tmp_path, model_name="demo", engine=engine, progress=False)


def test_fingerprints_know_what_decides_answers(engine, monkeypatch):
    from regaze.eval import VLLMEngine
    from regaze.eval.run import fingerprint

    first = engine.describe("m")["fingerprint"]
    assert VLLMEngine("demo", max_num_seqs=2, enforce_eager=True).describe("n")["fingerprint"] == first
    for changed in (VLLMEngine("demo", dtype="bfloat16"), VLLMEngine("demo", tensor_parallel_size=2)):
        assert changed.describe("m")["fingerprint"] != first
    for name, value in {"REGAZE_SERVING": "0", "VLLM_FLOAT32_MATMUL_PRECISION": "high"}.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert engine.describe("m")["fingerprint"] != first
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert engine.describe("m")["fingerprint"] == first
    with monkeypatch.context() as patch:
        patch.setattr(offline.torch.cuda, "is_available", lambda: True)
        assert engine.describe("m")["engine"]["options"]["attention_backend"] == "CUSTOM"
    monkeypatch.setattr(fingerprint, "installed_release", lambda: "0.33.0")
    assert engine.describe("m")["fingerprint"] != first


def test_a_fingerprint_is_the_same_before_the_engine_starts_and_after(engine, monkeypatch):
    _ = engine.offline.llm
    after = engine.describe("m")["fingerprint"]
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "REGAZE_SERVING"):
        monkeypatch.delenv(name)
    assert engine.describe("m")["fingerprint"] == after


def test_a_regaze_that_vllm_would_not_find_is_named(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "others")
        with pytest.raises(UnsupportedModelError, match="VLLM_PLUGINS"):
            offline.OfflineEngine("demo")
    monkeypatch.setattr(offline, "entry_points", lambda **_: ())
    with pytest.raises(UnsupportedModelError, match="entry points"):
        offline.OfflineEngine("demo")


def test_an_argument_that_vllm_does_not_have_is_named():
    from regaze.eval import VLLMEngine

    with pytest.raises(UnsupportedModelError, match="no_such_argument"):
        _ = VLLMEngine("demo", no_such_argument=1).offline.llm
