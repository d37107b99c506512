"""Methods inside vLLM answer as `gaze.using` does: in mixed batches, in pieces, preempted, from caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from served import METHODS, TOKENS, Asked, by_engine, mixed, named

from regaze.errors import RegazeError, UnsupportedModelError
from regaze.serving.common.support import REFUSED, RUNS
from regaze.serving.records import record_of
from regaze.serving.worker import requests
from regaze.serving.worker.requests import EditedRequest

pytestmark = pytest.mark.vllm

#: Those whose prompts may run in pieces, as engines do by default.
DIVIDED = sorted({*RUNS} - {"cai", "eah", "mma", "sid"})


def check(engine: Any, asked: Any, *methods: dict[str, Any], tokens: int = TOKENS) -> None:
    """A batch of which every fourth request is plain has the very tokens of transformers."""
    edited, plain = asked.by_transformers(*methods, tokens=tokens), asked.by_transformers(tokens=tokens)
    wanted = [plain[i] if i % 4 == 3 else row for i, row in enumerate(edited)]
    assert by_engine(engine, asked, mixed(list(methods), len(wanted)), tokens) == wanted


def test_every_method_that_runs_is_tried():
    assert sorted(METHODS) == sorted(RUNS)


@pytest.mark.parametrize("name", DIVIDED)
def test_a_mixed_batch_answers_as_transformers_do(engine, asked, name):
    check(engine, asked, named(name))


CHANGING = ["adhh", "cai", "causalmm", "deco", "dola", "farsight", "flb", "gift", "icd", "knockout", "m3id"]


@pytest.mark.parametrize("name", [*CHANGING, "pai", "ritual", "sid", "sparc", "vaf", "var", "vcd", "vista"])
def test_the_methods_change_answers(asked, name):
    assert asked.by_transformers(named(name)) != asked.by_transformers()


def test_several_methods_act_together(engine, asked):
    check(engine, asked, named("pai"), named("knockout"))


def test_json_texts_name_methods_too(engine, asked):
    text = '{"method": "knockout", "heads": [[0, 0], [0, 3]]}'
    assert by_engine(engine, asked, [{"regaze": text}] * 12) == asked.by_transformers(named("knockout"))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_does_not_run_is_the_error_of_its_request(engine, asked, name):
    from acting_methods import PARAMETERS

    simple = {key: value for key, value in PARAMETERS.get(name, {}).items() if not _is_code(value)}
    with pytest.raises(RegazeError):
        by_engine(engine, asked, [{"regaze": {"method": name, **simple}}] * 12)
    assert engine.llm_engine.get_num_unfinished_requests() == 0


def _is_code(value: Any) -> bool:
    return not isinstance(value, int | float | str | list | tuple)


@pytest.mark.parametrize(
    ("asks", "message"),
    [
        ({"method": "knockout", "heads": [[0, 99]]}, r"head \(0, 99\) does not exist"),
        ({"method": "paint"}, "vision tower"),
        ({"method": "sid"}, "--no-enable-chunked-prefill"),
        ({"method": "vista"}, "it edits outputs of MLPs"),
        ({"method": "cai"}, "--no-enable-chunked-prefill"),
        ({"method": "causalmm", "where": "vision"}, "with where='vision' it reads"),
        ({"method": "eah"}, "--no-enable-chunked-prefill"),
        ({"method": "var", "rho": -1}, "rho"),
    ],
)
def test_a_wrong_request_says_why_and_the_engine_goes_on(engine, asked, asks, message):
    with pytest.raises(RegazeError, match=message):
        by_engine(engine, asked, [{"regaze": asks}] * 12)
    assert by_engine(engine, asked, [None] * 12) == asked.by_transformers()


def test_images_of_refused_requests_are_sent_again(engine, asked):
    engine.reset_mm_cache()
    with pytest.raises(RegazeError):
        by_engine(engine, asked, [{"regaze": {"method": "knockout", "heads": [[0, 99]]}}] * 12)
    assert by_engine(engine, asked, [None] * 12) == asked.by_transformers()


@pytest.fixture
def unsalted(monkeypatch):
    from regaze.serving.common import wire

    monkeypatch.setattr(wire, "salt", lambda methods, given: given)


def test_interleaved_requests_share_no_pages(engine, asked):
    for _ in range(2):
        check(engine, asked, named("knockout"))
        check(engine, asked, named("vaf"))


@pytest.mark.usefixtures("unsalted")
def test_without_salts_they_would(engine, asked):
    engine.reset_prefix_cache()
    by_engine(engine, asked, [{"regaze": named("knockout")}] * 12)
    assert by_engine(engine, asked, [None] * 12) != asked.by_transformers()
    engine.reset_prefix_cache()


def ask(engine: Any, prompt: dict[str, Any], name: str, count: int) -> Any:
    from vllm import SamplingParams

    asks = {"regaze": named(name)}
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, logprobs=0, extra_args=asks)
    (output,) = engine.generate([prompt], params, use_tqdm=False)
    return output.outputs[0]


def check_same(one: Any, other: Any) -> None:
    assert one.token_ids == other.token_ids
    assert one.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-5)


@pytest.mark.parametrize("name", ["pai", "sparc", "knockout", "farsight", "var"])
def test_a_further_turn_reads_no_rows_that_were_edited_for_their_place(engine, asked, name):
    """With the first turn's pages in the cache it is answered as without them."""
    tokenizer, image = engine.get_tokenizer(), asked.prompts[0]["multi_modal_data"]
    first = tokenizer(asked.prompts[0]["prompt"])["input_ids"]
    engine.reset_prefix_cache()
    answer = ask(engine, {"prompt_token_ids": first, "multi_modal_data": image}, name, 80).token_ids
    question = tokenizer(asked.prompts[1]["prompt"].replace("<image>", ""))["input_ids"][1:]
    further = {"prompt_token_ids": [*first, *answer, *question], "multi_modal_data": image}
    after = ask(engine, further, name, 8)
    engine.reset_prefix_cache()
    check_same(after, ask(engine, further, name, 8))


@pytest.mark.parametrize("name", ["farsight", "moa", "vaf", "pai", "var"])
def test_another_question_about_an_image_reads_no_rows_that_depend_on_the_first(engine, asked, name):
    one, other = asked.prompts[:2]
    other = {**other, "multi_modal_data": one["multi_modal_data"]}
    engine.reset_prefix_cache()
    ask(engine, one, name, 8)
    after = ask(engine, other, name, 8)
    engine.reset_prefix_cache()
    check_same(after, ask(engine, other, name, 8))


@pytest.fixture(scope="module")
def splitting(start):
    """An engine that runs long prompts in pieces."""
    return start(max_num_batched_tokens=96, enable_prefix_caching=False)


@pytest.mark.parametrize("name", DIVIDED)
def test_prompts_in_pieces(splitting, asked, name):
    check(splitting, asked, named(name))


@pytest.fixture(scope="module")
def unsplit(start):
    """An engine that runs every prompt in one piece."""
    return start(enable_chunked_prefill=False, max_num_batched_tokens=2048)


@pytest.mark.parametrize("name", ["cai", "eah", "mma", "sid", "var", "vcd"])
def test_prompts_in_one_piece(unsplit, asked, name):
    check(unsplit, asked, named(name))


#: Tokens of answers that need a fourth page.
LONG = 40


@pytest.fixture(scope="module")
def narrow(start):
    """An engine whose cache has the prompts of eight requests, and no fourth page for most answers."""
    return start(num_gpu_blocks_override=26, enable_prefix_caching=False)


@pytest.fixture(scope="module")
def described(asked):
    """Prompts that almost fill three pages."""
    tokenizer, question = asked.gaze.reader.tokenizer, "Describe the image."
    wanted = len(tokenizer(question)["input_ids"]) + 18  # of 75 tokens, with the image
    while len(tokenizer(question)["input_ids"]) < wanted:
        question = question.replace("Describe", "Describe the image. Describe", 1)
    return Asked(asked.gaze, asked.images, [question] * len(asked.images))


@pytest.fixture
def again(monkeypatch):
    """The steps whose rows ran again."""
    steps: list[int] = []
    known = EditedRequest.act

    def counted(self: Any, layer: int, rows: Any, device: Any) -> Any:
        if rows.again:
            steps.append(rows.step)
        return known(self, layer, rows, device)

    monkeypatch.setattr(EditedRequest, "act", counted)
    return steps


@pytest.mark.parametrize(
    "name", ["adhh", "causalmm", "dola", "gift", "knockout", "m3id", "pai", "sparc", "var", "vcd"]
)
def test_requests_that_gave_their_keys_away_go_on(narrow, described, again, name):
    check(narrow, described, named(name), tokens=LONG)
    assert max(again) > 0


def test_edits_that_are_too_many_to_keep_end_requests_that_run_again(narrow, described, again, monkeypatch):
    from vllm import SamplingParams

    monkeypatch.setattr(requests, "MOST_BYTES", 1)
    params = SamplingParams(temperature=0, max_tokens=LONG, extra_args={"regaze": named("sparc")})
    outputs = [output.outputs[0] for output in narrow.generate(described.prompts, params, use_tqdm=False)]
    wanted = described.by_transformers(named("sparc"), tokens=LONG)
    assert again
    assert {output.finish_reason for output in outputs} > {"error"}
    for output, tokens in zip(outputs, wanted, strict=True):
        found = list(output.token_ids)
        assert found == (tokens[: len(found)] if output.finish_reason == "error" else tokens)


@pytest.mark.parametrize("name", ["var", "dola", "deco"])
def test_compiled_models_show_no_hidden_states(engine, asked, monkeypatch, name):
    config = engine.llm_engine.input_processor.vllm_config.compilation_config
    monkeypatch.setattr(config, "mode", 3)
    with pytest.raises(UnsupportedModelError, match="enforce_eager=True"):
        by_engine(engine, asked, [{"regaze": named(name)}] * 12)


@pytest.fixture(scope="module")
def compiled(start):
    """An engine whose model is compiled, which takes a minute or more."""
    return start(enforce_eager=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adhh", "gift", "knockout", "pai", "vaf", "vcd"])
def test_compiled_models_are_edited(compiled, asked, name):
    assert compiled.llm_engine.vllm_config.compilation_config.mode
    check(compiled, asked, named(name))


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
    """An engine with two workers that share the heads of each layer."""
    with pytest.MonkeyPatch.context() as patch:
        # Read by the workers, too, which start here.
        patch.setenv("REGAZE_SERVING_RECORDS", str(tmp_path_factory.mktemp("records")))
        yield start(tensor_parallel_size=2)


@pytest.mark.parametrize("name", DIVIDED)
def test_two_workers_answer_as_transformers_does(two, asked, name):
    check(two, asked, named(name))


def test_maps_of_other_heads_are_refused_where_workers_share_them(two, asked, monkeypatch):
    processor = two.llm_engine.input_processor
    vars(processor).pop("_regaze_admission", None)
    monkeypatch.setattr(processor.vllm_config.scheduler_config, "enable_chunked_prefill", False)
    with pytest.raises(RegazeError, match="lie in other processes"):
        by_engine(two, asked, mixed([named("eah")], 12))
    vars(processor).pop("_regaze_admission", None)


def test_two_workers_write_one_record(two, engine, asked):
    from vllm import SamplingParams

    def recorded(which: Any) -> Any:
        extra = {"regaze": named("gift"), "regaze_record": {"entropy": True}}
        params = SamplingParams(temperature=0, max_tokens=6, extra_args=extra)
        (output,) = which.generate(asked.prompts[:1], params, use_tqdm=False)
        which.generate(asked.prompts[:1], SamplingParams(max_tokens=1), use_tqdm=False)  # workers hear of it
        return record_of(output.request_id)

    ours, theirs = recorded(two), recorded(engine)
    assert len(ours.traces) == len(theirs.traces)
    for one, other in zip(ours.traces, theirs.traces, strict=True):
        torch.testing.assert_close(one.masses, other.masses, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.entropy, other.entropy, atol=1e-4, rtol=0)


def test_unsupported_engines_are_named(engine, asked, monkeypatch):
    config = engine.llm_engine.input_processor.vllm_config.parallel_config
    engine.llm_engine.input_processor.__dict__.pop("_regaze_admission", None)
    monkeypatch.setattr(config, "pipeline_parallel_size", 2)
    with pytest.raises(UnsupportedModelError, match="its layers are divided between processes"):
        by_engine(engine, asked, [{"regaze": named("knockout")}] * 12)
    engine.llm_engine.input_processor.__dict__.pop("_regaze_admission", None)
