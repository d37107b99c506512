"""Options of transformers that an engine of vLLM does not have are refused before it starts."""

from __future__ import annotations

import pytest

from regaze.cli import engines
from regaze.cli.config import digest
from regaze.cli.options import _known_engine
from regaze.errors import BadParameterError, InputError
from regaze.eval.run.process_group import ProcessGroup

GIVEN = {
    "engine": "vllm",
    "engine_arg": ["tensor_parallel_size=2"],
    "device": None,
    "model_arg": None,
    "html": 0,
}


def test_the_default_engine_changes_no_folder():
    assert _known_engine("Transformers") is None
    assert _known_engine("VLLM") == "vllm"
    assert digest({"model": "demo", "engine": None, "engine_arg": None}) == digest({"model": "demo"})
    with pytest.raises(BadParameterError, match="transformers or vllm"):
        _known_engine("sglang")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": None}, "add --engine vllm"),
        ({"html": 3}, "--html"),
        ({"device": "cuda"}, "--device"),
        ({"model_arg": ["revision=main", "attn_implementation=eager"]}, "--model-arg attn_implementation"),
    ],
)
def test_what_does_not_go_together_is_named(change, message):
    with pytest.raises(BadParameterError, match=message):
        engines.check_options({**GIVEN, **change})


def test_the_rest_does():
    engines.check_options({**GIVEN, "model_arg": ["revision=main", "trust_remote_code=true"]})
    engines.check_options({**GIVEN, "engine": None, "engine_arg": None, "html": 3, "device": "cpu"})


def test_several_processes_do_not_each_start_an_engine():
    with pytest.raises(InputError, match="without accelerate"):
        engines.make_engine(GIVEN, [], ProcessGroup(0, 2))
