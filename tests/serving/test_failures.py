"""Methods that fail inside an engine: their request ends with an error, and no other does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from breaking import PATH
from served import answers

from regaze.errors import CompositionError, InputError
from regaze.interventions import registry
from regaze.serving.worker.edits import EngineEdits
from regaze.serving.worker.requests import EditedRequest

pytestmark = pytest.mark.vllm

KNOCKOUT = {"method": "knockout", "heads": [[0, 0], [0, 3]]}


@pytest.mark.parametrize("step", [2, 5])
@pytest.mark.parametrize("where", ["edit", "on_step", "on_stats"])
def test_an_error_ends_its_request_alone(engine, asked, monkeypatch, where, step):
    monkeypatch.setitem(registry.BUILT_IN, "breaking", PATH)
    breaking = {"method": "breaking", "where": where, "step": step}
    plain, edited = asked.by_transformers(), asked.by_transformers(KNOCKOUT)
    got = answers(engine, asked, {0: breaking, 3: KNOCKOUT, 9: breaking})
    for number, (reason, tokens) in enumerate(got):
        if number in (0, 9):
            assert (reason, tokens) == ("error", plain[number][:step])
        else:
            assert tokens == (edited if number == 3 else plain)[number]
            assert reason != "error"
    assert [tokens for _, tokens in answers(engine, asked, {})] == plain


def test_who_reads_what_a_failed_request_writes_in_the_same_step_ends_with_it(engine, asked, monkeypatch):
    from vllm import SamplingParams

    def outputs() -> list[tuple[str, list[int]]]:
        extra = [{"regaze": KNOCKOUT}, {"regaze": KNOCKOUT}, {}]
        params = [SamplingParams(temperature=0, max_tokens=6, extra_args=each) for each in extra]
        found = engine.generate(asked.prompts[:1] * 3, params, use_tqdm=False)
        return [(output.outputs[0].finish_reason, list(output.outputs[0].token_ids)) for output in found]

    engine.reset_prefix_cache()
    wanted = outputs()
    engine.reset_prefix_cache()
    failed, act = [], EditedRequest.act

    def fails_once(self: Any, layer: int, *rest: Any) -> Any:
        if layer == 1 and not failed:
            failed.append(self.name)
            raise ZeroDivisionError
        return act(self, layer, *rest)

    monkeypatch.setattr(EditedRequest, "act", fails_once)
    assert outputs() == [("error", []), ("error", []), wanted[2]]
    assert failed
    assert outputs() == wanted


def test_an_error_in_the_last_step_is_no_answer(engine, asked, monkeypatch):
    monkeypatch.setitem(registry.BUILT_IN, "breaking", PATH)
    plain = asked.by_transformers()[0]
    step = len(plain) - 1
    got = answers(engine, asked, {0: {"method": "breaking", "step": step}})
    assert got[0] == ("error", plain[:step])


@pytest.mark.parametrize(
    ("asks", "error", "message"),
    [
        ([{"method": "hgai"}, {"method": "pai", "gamma": 1.0}], CompositionError, "do not commute"),
        ([{"method": "spin"}, {"method": "adhh", "heads": [[0, 1]]}], CompositionError, "`policy`"),
        ({"method": "farsight", "cache": "none"}, InputError, "use cache='frozen'"),
        ([{"method": "breaking", "step": 1, "where": "on_step"}], InputError, "plain model"),
    ],
)
def test_what_would_fail_in_the_first_steps_is_refused(engine, asked, monkeypatch, asks, error, message):
    monkeypatch.setitem(registry.BUILT_IN, "breaking", PATH)
    with pytest.raises(error, match=message):
        answers(engine, asked, {1: asks})
    assert engine.llm_engine.get_num_unfinished_requests() == 0


def test_without_layers_that_can_be_edited_no_request_is_answered_plain(engine, asked, monkeypatch):
    """As where a model's layers are not as they are known, which the first process cannot see."""
    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    edits = runner.__dict__["_regaze_edits"]
    monkeypatch.setattr(edits, "obstacle", "unknown layers")
    got = answers(engine, asked, {4: KNOCKOUT})
    assert got[4] == ("error", [])
    assert all(reason != "error" for number, (reason, _) in enumerate(got) if number != 4)


def test_hidden_states_that_nobody_shows_end_the_request(engine, asked, monkeypatch):
    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    monkeypatch.setattr(runner.__dict__["_regaze_edits"], "shows_hidden", False)
    assert answers(engine, asked, {4: {"method": "var"}})[4] == ("error", [])


def test_logits_of_layers_that_nobody_reads_end_the_requests_that_want_them(engine, asked, monkeypatch):
    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    monkeypatch.setattr(runner.__dict__["_regaze_edits"], "layer_logits", None)
    got = answers(engine, asked, {0: KNOCKOUT, 4: {"method": "dola"}})
    assert got[4] == ("error", [])
    assert got[0][1] == asked.by_transformers(KNOCKOUT)[0]
    assert all(reason != "error" for number, (reason, _) in enumerate(got) if number != 4)


def test_a_mistake_of_ours_in_a_layer_ends_the_requests_of_its_step_alone(engine, asked, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(EngineEdits, "edit", lambda self, call, metadata: 1 / 0)
        got = answers(engine, asked, {4: KNOCKOUT})
    assert got[4] == ("error", [])
    assert [tokens for number, (_, tokens) in enumerate(got) if number != 4] == [
        tokens for number, tokens in enumerate(asked.by_transformers()) if number != 4
    ]
    assert answers(engine, asked, {4: KNOCKOUT})[4][1] == asked.by_transformers(KNOCKOUT)[4]


def test_layers_are_found_by_their_attention():
    from torch import nn

    from regaze.serving.worker.attachment import watch_stream

    class Attention(nn.Module):
        pass

    class Block(nn.Module):  # not called a decoder layer
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"attn": Attention()})

        def forward(self, positions: Any, hidden_states: Any) -> Any:
            return hidden_states

    class Other(Block):
        def forward(self, positions: Any, stream: Any) -> Any:
            return stream

    for cls, found in ((Block, True), (Other, False)):
        model = nn.Module()
        model.layers = nn.ModuleList([cls(), cls()])
        attention = {layer.inner["attn"]: number for number, layer in enumerate(model.layers)}
        assert watch_stream(model, attention, SimpleNamespace()) is found
        assert all(bool(layer._forward_pre_hooks) is found for layer in model.layers)
