"""Engines in which no request can be edited, and what they say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from regaze.errors import UnsupportedModelError
from regaze.serving.frontend.admission import Admission

MODEL = {
    "use_mla": False,
    "uses_alibi": False,
    "is_mm_prefix_lm": False,
    "attention_chunk_size": None,
    "is_hybrid": False,
    "has_inner_state": False,
    "is_encoder_decoder": False,
}
PARALLEL = dict.fromkeys(
    (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "decode_context_parallel_size",
    ),
    1,
)


def engine(**changes: Any) -> Any:
    """The configuration of an engine, with other values of the model or of what is parallel."""
    layers = SimpleNamespace(layer_types=changes.pop("layer_types", None))
    window = changes.pop("sliding_window", None)
    model = SimpleNamespace(hf_text_config=layers, hf_config=None, get_sliding_window=lambda: window)
    for name, value in MODEL.items():
        setattr(model, name, changes.get(name, value))
    parallel = SimpleNamespace(**{name: changes.get(name, value) for name, value in PARALLEL.items()})
    return SimpleNamespace(
        model_config=model,
        parallel_config=parallel,
        use_v2_model_runner=changes.get("use_v2_model_runner", False),
        speculative_config=changes.get("speculative_config"),
        cache_config=SimpleNamespace(cache_dtype=changes.get("cache_dtype", "auto")),
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_v2_model_runner": True}, "second model runner"),
        ({"pipeline_parallel_size": 2}, "layers are divided"),
        ({"prefill_context_parallel_size": 2}, "prompts are divided"),
        ({"decode_context_parallel_size": 2}, "cache is divided"),
        ({"speculative_config": object()}, "takes them back"),
        ({"use_mla": True}, "latent attention"),
        ({"sliding_window": 512}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "in several ways"),
        ({"cache_dtype": "fp8"}, "quantised"),
        ({"uses_alibi": True}, "ALiBi"),
        ({"is_mm_prefix_lm": True}, "images see later tokens"),
        ({"attention_chunk_size": 8192}, "in chunks"),
        ({"is_hybrid": True}, "without attention"),
        ({"has_inner_state": True}, "without attention"),
        ({"is_encoder_decoder": True}, "encoder of prompts"),
    ],
)
def test_engines_that_edit_nothing_say_why(changes, reason):
    params = SimpleNamespace(extra_args={"regaze": "var"})
    request = SimpleNamespace(sampling_params=params, cache_salt=None, request_id="0")
    with pytest.raises(UnsupportedModelError, match=reason):
        Admission(engine(**changes)).admit(request)


def test_beams_get_no_default_method(monkeypatch):
    monkeypatch.setenv("REGAZE_SERVING_METHODS", "var")
    params = SimpleNamespace(extra_args=None)
    request = SimpleNamespace(sampling_params=params, cache_salt=None, request_id="chat-1-beam-0")
    with pytest.raises(UnsupportedModelError, match="beam search has no methods"):
        Admission(engine()).admit(request)
