"""Options of sampling act, or are refused."""

from __future__ import annotations

import pytest
import torch
from models import picture
from transformers import GenerationConfig

from regaze.errors import BadParameterError
from regaze.toolkit.model.sampling_choice import with_sampling_choice


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, {"do_sample": False}),
        ({"max_new_tokens": 3}, {"do_sample": False, "max_new_tokens": 3}),
        ({"temperature": 1.5}, {"do_sample": True, "temperature": 1.5}),
        ({"temperature": 1}, {"do_sample": True, "temperature": 1}),
        ({"top_p": 0.9}, {"do_sample": True, "top_p": 0.9}),
        ({"top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
        ({"typical_p": 0.5}, {"do_sample": True, "typical_p": 0.5}),
        ({"epsilon_cutoff": 0.1}, {"do_sample": True, "epsilon_cutoff": 0.1}),
        ({"top_p": 1.0, "top_k": None}, {"do_sample": False, "top_k": None}),
        ({"temperature": 0, "top_p": 0.9}, {"do_sample": False}),
        ({"temperature": 0, "do_sample": False}, {"do_sample": False}),
        ({"temperature": 1.0, "top_p": 1.0, "do_sample": False}, {"do_sample": False}),
        ({"do_sample": True}, {"do_sample": True}),
        ({"max_length": 9}, {"do_sample": False, "max_length": 9}),
    ],
)
def test_what_options_ask_for(given, chosen):
    assert with_sampling_choice(given) == chosen


def test_whole_numbers_become_floats_where_floats_are_meant():
    given = {"temperature": 2, "top_k": 5, "repetition_penalty": 1, "num_beams": 1, "use_cache": True}
    assert list(map(type, with_sampling_choice(given).values())) == [float, int, float, int, bool, bool]


@pytest.mark.parametrize("option", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}])
def test_sampling_without_sampling_is_refused(gaze, option):
    with pytest.raises(BadParameterError, match="do_sample=False"):
        with_sampling_choice({**option, "do_sample": False})
    with pytest.raises(BadParameterError, match="do_sample=False"):
        gaze.ask([picture(1)], ["What?"], **option, do_sample=False)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 30.0},
        {"top_p": 0.999, "temperature": 30.0},
        {"top_k": 500},
        {"generation_config": GenerationConfig(do_sample=True, temperature=30.0, max_new_tokens=6)},
        {"generation_config": GenerationConfig(temperature=30.0, max_new_tokens=6)},
    ],
)
def test_ask_samples_where_it_is_asked_to(gaze, options):
    ask = [picture(1)] * 6, ["What?"] * 6
    options = {"eos_token_id": None, **options}
    if "generation_config" not in options:
        options["max_new_tokens"] = 6
    greedy = gaze.ask(*ask, max_new_tokens=6, eos_token_id=None)
    assert len(set(greedy)) == 1
    torch.manual_seed(0)
    assert len(set(gaze.ask(*ask, **options))) > 1


def test_a_generation_config_counts_as_options_do():
    hot, greedy = GenerationConfig(temperature=2.0), GenerationConfig(do_sample=False)
    assert with_sampling_choice({"generation_config": hot})["do_sample"] is True
    assert with_sampling_choice({"generation_config": GenerationConfig(top_p=1.0)})["do_sample"] is False
    assert "do_sample" not in with_sampling_choice({"generation_config": greedy})
    with pytest.raises(BadParameterError, match=r"temperature=2\.0 changes how .*, but do_sample=False"):
        with_sampling_choice({"generation_config": greedy, "temperature": 2.0})
    with pytest.raises(BadParameterError, match=r"top_p=0\.5 changes how .*, but do_sample=False"):
        with_sampling_choice({"top_p": 0.5, "generation_config": hot, "do_sample": False})


def test_the_length_of_an_answer_is_that_of_the_options_or_their_config(gaze):
    def tokens(**options):
        with gaze.recording() as record:
            gaze.ask([picture(1)], ["What?"], eos_token_id=None, **options)
        return record[0].output_ids.shape[1]

    assert tokens(max_new_tokens=3) == tokens(generation_config=GenerationConfig(max_new_tokens=3)) == 3
    assert tokens(max_new_tokens=3, max_length=90) == 3
    for options in ({"max_length": 90}, {"generation_config": GenerationConfig(max_length=90)}):
        with pytest.raises(BadParameterError, match=r"max_length=90 counts the prompts, too"):
            gaze.ask([picture(1)], ["What?"], **options)
