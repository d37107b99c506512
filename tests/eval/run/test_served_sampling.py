"""What `generate` is given reaches vLLM with the same meaning, or is refused."""

from __future__ import annotations

import pytest

from regaze.errors import BadParameterError
from regaze.eval.run.served_sampling import acting_defaults, engine_sampling

KEY = "00000000000001ff"


def test_answers_are_greedy_unless_they_are_sampled():
    assert engine_sampling({"max_new_tokens": 16, "top_p": 0.5}, 16, KEY, 3) == {
        "temperature": 0.0,
        "max_tokens": 16,
    }
    assert engine_sampling({"do_sample": True, "top_k": 5, "min_p": 0.1}, 4, KEY, 3) == {
        "temperature": 1.0,
        "max_tokens": 4,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 0x1F + 3,
    }


def test_an_answer_without_a_limit_has_that_of_ask():
    assert engine_sampling({}, None, KEY, 0)["max_tokens"] == 128


def test_ends_are_those_that_are_given():
    for given in (7, [7]):
        found = engine_sampling({"eos_token_id": given, "min_new_tokens": 2, "num_beams": 1}, 9, KEY, 0)
        assert found == {
            "temperature": 0.0,
            "max_tokens": 9,
            "min_tokens": 2,
            "stop_token_ids": [7],
            "ignore_eos": True,
        }


@pytest.mark.parametrize(
    "given", [{"num_beams": 3}, {"no_repeat_ngram_size": 2}, {"typical_p": 0.5}, {"suppress_tokens": [1]}]
)
def test_what_vllm_does_not_have_is_refused(given):
    with pytest.raises(BadParameterError, match=next(iter(given))):
        engine_sampling(given, 4, KEY, 0)


def test_a_models_own_defaults_act_in_greedy_answers_as_under_transformers():
    own = {"temperature": 0.2, "do_sample": True, "eos_token_id": 2, "repetition_penalty": 1.2, "_id": 3}
    assert acting_defaults(own) == {"repetition_penalty": 1.2}
    assert engine_sampling(acting_defaults(own), 4, KEY, 0)["repetition_penalty"] == 1.2
