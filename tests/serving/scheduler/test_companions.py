"""Second contexts as companions of requests: they share each step, and end with their request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parting import PATH
from served import TOKENS, Asked, by_engine, mixed

from regaze.errors import RegazeError
from regaze.interventions import registry
from regaze.serving.worker.mixing import Mixing

pytestmark = pytest.mark.vllm

VCD, ICD = {"method": "vcd"}, {"method": "icd"}
GUIDED = {"method": "pai", "gamma": 1.5, "alpha": 0.5}
DOLA = {"method": "dola", "weight": 0.5}
KNOCKOUT = {"method": "knockout", "heads": [[0, 0], [0, 3]]}


def scheduler_of(engine: Any) -> Any:
    return engine.llm_engine.engine_core.engine_core.scheduler


def check_nothing_left(engine: Any) -> None:
    engine.llm_engine.step()
    assert not scheduler_of(engine).requests
    groups = scheduler_of(engine).__dict__["_regaze_groups"]
    assert not groups.main
    assert not groups.companions


TOGETHER = [[VCD, ICD], [GUIDED], [VCD, KNOCKOUT], [GUIDED, {"method": "m3id"}], [VCD, DOLA]]


@pytest.mark.parametrize("methods", TOGETHER)
def test_several_contexts_and_edits_act_together(engine, asked, methods):
    edited, plain = asked.by_transformers(*methods), asked.by_transformers()
    wanted = [plain[i] if i % 4 == 3 else row for i, row in enumerate(edited)]
    assert edited != plain
    assert by_engine(engine, asked, mixed(methods, len(wanted))) == wanted
    check_nothing_left(engine)


@pytest.fixture
def parted(monkeypatch):
    """How many last rows ran without the others of their group."""
    found: list[int] = []
    known = Mixing.begin

    def counted(self: Any) -> list[str]:
        again = known(self)
        found.append(len(again))
        return again

    monkeypatch.setattr(Mixing, "begin", counted)
    return found


@pytest.fixture(scope="module")
def crowded(start):
    """An engine in which contexts seldom begin together."""
    return start(enable_prefix_caching=False, max_num_seqs=5, max_num_batched_tokens=80)


@pytest.mark.parametrize("methods", [[VCD], [ICD, VCD]])
def test_contexts_wait_for_each_other(crowded, asked, parted, methods):
    edited, plain = asked.by_transformers(*methods), asked.by_transformers()
    wanted = [plain[i] if i % 4 == 3 else row for i, row in enumerate(edited)]
    assert by_engine(crowded, asked, mixed(methods, len(wanted))) == wanted
    assert sum(parted) > 0


def ask(engine: Any, asked: Any, *methods: dict[str, Any], number: int = 0, **options: Any) -> Any:
    from vllm import SamplingParams

    given = {"temperature": 0, "max_tokens": TOKENS, **options}
    params = SamplingParams(**given, extra_args={"regaze": list(methods)})
    (output,) = engine.generate([asked.prompts[number]], params, use_tqdm=False)
    return output


def test_prompts_are_cached_apart(engine, asked):
    engine.reset_prefix_cache()
    plain, edited = asked.by_transformers()[0], asked.by_transformers(VCD)[0]
    assert plain != edited
    for methods, wanted, cached in (([VCD], edited, False), ([], plain, False), ([VCD], edited, True)):
        output = ask(engine, asked, *methods)
        assert list(output.outputs[0].token_ids) == wanted
        assert bool(output.num_cached_tokens) == cached


def test_samples_are_those_of_the_combined_distribution(engine, asked):
    """Every context goes on with the sampled token: forced to the same tokens, transformers agrees."""
    output = ask(engine, asked, VCD, temperature=1.0, seed=3, logprobs=0, max_tokens=12, ignore_eos=True)
    tokens = list(output.outputs[0].token_ids)
    found = [step[token].logprob for step, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
    gaze = asked.gaze
    inputs = gaze.inputs([[asked.images[0]]], [asked.questions[0]])
    length = inputs["input_ids"].shape[1]

    def only(batch: int, ids: torch.Tensor) -> list[int]:
        return [tokens[len(ids) - length]]

    options = {"max_new_tokens": 12, "do_sample": False, "prefix_allowed_tokens_fn": only}
    with gaze.using(registry.method_from_dict(VCD)), torch.inference_mode():
        whole = gaze.model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    wanted = [step[0].log_softmax(-1)[token].item() for step, token in zip(whole.logits, tokens, strict=True)]
    assert whole.sequences[0, length:].tolist() == tokens
    assert tokens != asked.by_transformers(VCD)[0][:12]
    assert found == pytest.approx(wanted, abs=1e-4)


def test_seeds_give_the_same_samples_beside_others(engine, asked):
    from vllm import SamplingParams

    given = [
        SamplingParams(temperature=1.0, seed=i, max_tokens=TOKENS, extra_args={"regaze": VCD})
        for i in range(12)
    ]
    together = engine.generate(asked.prompts, given, use_tqdm=False)
    alone = ask(engine, asked, VCD, number=7, temperature=1.0, seed=7)
    assert list(together[7].outputs[0].token_ids) == list(alone.outputs[0].token_ids)


def test_grammars_allow_what_the_combined_logits_choose_from(crowded, asked):
    """Companions do not begin, and take all sequences, while the grammars of their requests are made."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=8,
            structured_outputs=StructuredOutputsParams(regex=f"(yes|no){{1,{number + 1}}}"),
            extra_args={"regaze": VCD | {"beta": 0.0}},  # whose cut may leave no token of the grammar
        )
        for number in range(12)
    ]
    outputs = crowded.generate(asked.prompts, params, use_tqdm=False)
    assert {output.outputs[0].text[:2] for output in outputs} == {"ye", "no"}
    check_nothing_left(crowded)


def test_the_number_of_second_contexts_is_bounded(engine, asked, monkeypatch):
    monkeypatch.setenv("REGAZE_SERVING_MAX_CONTEXTS", "3")
    with pytest.raises(RegazeError, match=r"has 4 second contexts .*REGAZE_SERVING_MAX_CONTEXTS=4"):
        ask(engine, asked, VCD, ICD, n=2, temperature=1.0)
    assert len(ask(engine, asked, VCD, n=3, temperature=1.0).outputs) == 3
    check_nothing_left(engine)


def test_several_answers_have_companions_each(engine, asked):
    output = ask(engine, asked, VCD, n=3, temperature=1.0, seed=1)
    assert len(output.outputs) == 3
    assert len({tuple(each.token_ids) for each in output.outputs}) > 1
    check_nothing_left(engine)


def test_answers_that_share_their_parameters_are_all_combined(engine, asked):
    """Without a seed vLLM gives the requests of all answers one object of parameters."""
    (best,) = ask(engine, asked, VCD, temperature=0).outputs
    output = ask(engine, asked, VCD, n=3, temperature=1e-3)
    assert [each.token_ids for each in output.outputs] == [best.token_ids] * 3
    check_nothing_left(engine)


def test_an_aborted_request_takes_its_companions_along(engine, asked):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=TOKENS, extra_args={"regaze": [VCD, ICD]})
    engine.llm_engine.add_request("given up", asked.prompts[0], params)
    for _ in range(3):
        for output in engine.llm_engine.step():
            assert output.request_id == "given up"
    assert len(scheduler_of(engine).requests) == 3
    engine.llm_engine.abort_request(["given up"])
    check_nothing_left(engine)
    assert by_engine(engine, asked, [None] * 12) == asked.by_transformers()


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("where", ["combine", "second"])
def test_an_error_ends_its_request_alone(engine, asked, monkeypatch, where, step):
    from vllm import SamplingParams

    monkeypatch.setitem(registry.BUILT_IN, "parting", PATH)
    plain, edited = asked.by_transformers(), asked.by_transformers(VCD)
    asks = {0: {"method": "parting", "where": where, "step": step}, 3: VCD}
    if where == "second" and step == 0:  # found where the request enters
        with pytest.raises(RegazeError, match="a mistake of a method"):
            by_engine(engine, asked, [{"regaze": asks[0]}] * 12)
        return
    params = [
        SamplingParams(temperature=0, max_tokens=TOKENS, extra_args={"regaze": asks.get(i, [])})
        for i in range(12)
    ]
    outputs = [output.outputs[0] for output in engine.generate(asked.prompts, params, use_tqdm=False)]
    assert (outputs[0].finish_reason, list(outputs[0].token_ids)) == ("error", plain[0][:step])
    for number, output in enumerate(outputs[1:], 1):
        assert list(output.token_ids) == (edited if number == 3 else plain)[number]
    check_nothing_left(engine)


@pytest.fixture(scope="module")
def tiny(start):
    """An engine whose cache has the prompt of one request, and not of two."""
    return start(num_gpu_blocks_override=5, max_model_len=96, enable_prefix_caching=False)


def test_contexts_that_do_not_fit_together_end_their_request(tiny, asked):
    for methods, reason in (([VCD], "error"), ([], "stop")):
        output = ask(tiny, asked, *methods).outputs[0]
        assert output.finish_reason == reason
        check_nothing_left(tiny)
    assert list(output.token_ids) == asked.by_transformers()[0]


def test_answers_fit_into_the_longest_context(engine, asked, monkeypatch):
    config = engine.llm_engine.input_processor.vllm_config.model_config
    monkeypatch.setattr(config, "max_model_len", 112)
    plain = ask(engine, asked, max_tokens=None, ignore_eos=True)
    output = ask(engine, asked, {"method": "icd", "alpha": 1e-6}, max_tokens=None, ignore_eos=True)
    assert output.outputs[0].finish_reason == "length"
    assert 0 < len(output.outputs[0].token_ids) < len(plain.outputs[0].token_ids)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("async_scheduling", True, "--no-async-scheduling"),
        ("policy", "priority", "by priority"),
        ("max_num_seqs", 1, "one sequence at a time"),
    ],
)
def test_engines_that_cannot_keep_them_together_say_why(engine, asked, monkeypatch, name, value, reason):
    config = engine.llm_engine.input_processor.vllm_config
    monkeypatch.setattr(config.scheduler_config, name, value)
    with pytest.raises(RegazeError, match=reason):
        ask(engine, asked, VCD)
    monkeypatch.undo()
    with pytest.raises(RegazeError, match="prompt_logprobs are those of one context"):
        ask(engine, asked, VCD, prompt_logprobs=1)
    assert ask(engine, asked, KNOCKOUT).outputs[0].finish_reason


def test_a_mistake_of_ours_between_model_and_sampler_ends_the_requests_of_its_step(
    engine, asked, monkeypatch
):
    """Plain ones go on, and so do all that come later."""
    with monkeypatch.context() as patch:
        patch.setattr(Mixing, "_groups", lambda self: 1 / 0)
        outputs = by_engine(engine, asked, [{"regaze": VCD}, *[None] * 11])
    assert [outputs[0], *outputs[1:]] == [[], *asked.by_transformers()[1:]]
    check_nothing_left(engine)
    assert by_engine(engine, asked, [{"regaze": VCD}] * 12) == asked.by_transformers(VCD)


def test_pixels_before_their_normalisation_are_no_noised_ones(engine, asked, monkeypatch):
    config = engine.llm_engine.input_processor.vllm_config.model_config.multimodal_config
    monkeypatch.setattr(config, "mm_device_do_normalize", True)
    turned = Asked(asked.gaze, [asked.images[0].rotate(90)], asked.questions[:1])  # no other test's image
    with pytest.raises(RegazeError, match="--no-mm-device-do-normalize"):
        ask(engine, turned, VCD)
    assert ask(engine, turned, ICD).outputs[0].finish_reason != "error"
    # The image is known now where the engine runs, and there alone.
    assert ask(engine, turned, VCD).outputs[0].finish_reason == "error"
    check_nothing_left(engine)
