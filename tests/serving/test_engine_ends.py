"""Engines end where nobody needs them any more, and never while another one starts.

An engine of vLLM that runs in this process ends with the last reference to it, which may be whenever garbage
is collected, and with it end the groups of workers, which all engines of the process share.
"""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from regaze.cli import app
from regaze.serving.frontend.offline import OfflineEngine
from regaze.serving.plugin import register

pytestmark = pytest.mark.vllm

LIMITS = {"max_model_len": 512, "max_num_seqs": 4, "block_size": 32, "limit_mm_per_prompt": {"image": 1}}


@pytest.fixture
def ended(monkeypatch):
    """The engines that have been ended, each after the other."""
    from vllm.v1.engine.core import EngineCore

    found: list[Any] = []
    known = EngineCore.shutdown

    def counted(self: Any) -> None:
        found.append(self)
        known(self)

    monkeypatch.setattr(EngineCore, "shutdown", counted)
    return found


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))


@pytest.mark.usefixtures("cache")
def test_an_engine_that_was_dropped_does_not_end_while_another_starts(monkeypatch, ended):
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    register()  # not in the place of what this test puts there for a while
    load = CPUModelRunner.load_model
    count: list[int] = []

    def loaded(self: Any, *args: Any, **kwargs: Any) -> Any:
        gc.collect()
        count.append(len(ended))
        return load(self, *args, **kwargs)

    monkeypatch.setattr(CPUModelRunner, "load_model", loaded)
    gc.disable()  # only where this test collects garbage
    try:
        dropped: list[Any] = [OfflineEngine("demo", options=LIMITS).llm]
        dropped.append(dropped)  # as frames of an error do that was caught
        del dropped
        second = OfflineEngine("demo", options=LIMITS)
        assert second.llm
        assert count == [0, 1]  # the first one ended before the second loaded its model
        second.close()
        assert len(ended) == 2
    finally:
        gc.enable()


def test_the_command_answers_by_an_engine(tmp_path, monkeypatch, ended):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    limits = ["max_model_len=512", 'limit_mm_per_prompt={"image":1}', "block_size=32"]
    command = ["evaluate", "pope", "--limit", "8", "--engine", "vllm", "--method", "eah"]
    for each in limits:
        command += ["--engine-arg", each]
    done = CliRunner().invoke(app, [*command, "--json", "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    model = json.loads((tmp_path / "run" / "results.json").read_text())["model"]
    assert model["engine"]["options"]["max_model_len"] == 512
    assert "engine: vllm" in (tmp_path / "run" / "run.yaml").read_text()
    assert len(ended) == 1
