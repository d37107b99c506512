"""What regaze keeps of a request goes with the request, however it ends."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from regaze.serving.worker import recorder
from regaze.serving.worker.requests import EditedRequest

pytestmark = pytest.mark.vllm

#: What aborted requests ask for: hidden states, statistics, second contexts, edits of each step, a record.
ASKS: list[dict[str, Any]] = [
    {"regaze": {"method": "var", "rho": 0.2}},
    {"regaze": {"method": "gift"}, "regaze_record": {"rows": "all", "entropy": True}},
    {"regaze": [{"method": "vcd"}, {"method": "icd"}], "regaze_record": True},
    {"regaze": {"method": "sparc", "alpha": 1.5, "tau": 0.1}},
    {"regaze": {"method": "dola"}},
    {"regaze": "[]"},
]


def kept() -> int:
    """How many requests with methods there are anywhere in the process."""
    gc.collect()
    return sum(isinstance(each, EditedRequest) for each in gc.get_objects())


def test_nothing_of_aborted_requests_is_kept(engine, asked, monkeypatch, tmp_path):
    from vllm import SamplingParams

    monkeypatch.setenv("REGAZE_SERVING_RECORDS", str(tmp_path))
    core = engine.llm_engine.engine_core.engine_core
    scheduler, runner = core.scheduler, core.model_executor.driver_worker.worker.model_runner
    edits, pool = runner.__dict__["_regaze_edits"], scheduler.kv_cache_manager.block_pool
    free, before, most = pool.get_num_free_blocks(), kept(), 0
    for number in range(50):
        name = f"given-up-{number}"
        params = SamplingParams(temperature=0, max_tokens=32, extra_args=ASKS[number % len(ASKS)])
        engine.llm_engine.add_request(name, asked.prompts[number % 12], params)
        for _ in range(number % 4):
            engine.llm_engine.step()
        most = max(most, len(edits._requests))
        engine.llm_engine.abort_request([name])
    engine.llm_engine.step()  # tells the model's process about the last ones
    groups = scheduler.__dict__["_regaze_groups"]
    assert most > 1
    assert (scheduler.requests, edits._requests, recorder._open, edits._stacks._newest) == ({}, {}, {}, {})
    assert not any(vars(groups).values())
    assert "regaze_answers" not in scheduler.__dict__
    assert pool.get_num_free_blocks() == free
    assert kept() == before
