"""What VAR reads of hidden states is kept with the keys: cached prefixes change no answer."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from itertools import count
from typing import Any, NamedTuple

import pytest
from served import TOKENS, Asked, mixed

from regaze.serving.frontend.admission import Admission
from regaze.serving.worker.requests import EditedRequest

pytestmark = pytest.mark.vllm

#: Sinks lose all of their attention, in every head.
VAR = {"method": "var", "rho": 0.0, "moved": 1.0, "min_image_mass": 0.0}
#: Other parameters, with pages of their own.
OTHER = {"method": "var", "rho": 0.0, "moved": 0.5, "min_image_mass": 0.0}
KNOCKOUT = {"method": "knockout", "heads": [[0, 0], [0, 3]]}


class Answers(NamedTuple):
    """Greedy answers: their tokens, log-probabilities, and how much of each prompt came from the cache."""

    tokens: list[list[int]]
    scores: list[float]
    cached: list[int]


def ask(
    engine: Any, prompts: list[dict[str, Any]], *methods: dict[str, Any], tokens: int = TOKENS
) -> Answers:
    """Every fourth request is plain."""
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0, extra_args=each)
        for each in mixed(list(methods), len(prompts))
    ]
    outputs = engine.generate(prompts, params, use_tqdm=False)
    answers = [output.outputs[0] for output in outputs]
    return Answers(
        [list(answer.token_ids) for answer in answers],
        [answer.cumulative_logprob for answer in answers],
        [output.num_cached_tokens for output in outputs],
    )


@pytest.fixture(scope="module")
def alone(engine):
    """Answers to prompts that share nothing with any other, by a salt of their own."""
    known, numbers = dict[str, Answers](), count()

    def asked_alone(prompts: list[dict[str, Any]], *methods: dict[str, Any], tokens: int = TOKENS) -> Answers:
        key = repr((prompts, methods, tokens))
        if key not in known:
            salted = [{**prompt, "cache_salt": f"alone-{next(numbers)}"} for prompt in prompts]
            known[key] = ask(engine, salted, *methods, tokens=tokens)
            assert not any(known[key].cached)
        return known[key]

    return asked_alone


Alone = Callable[..., Answers]


def check(
    engine: Any, alone: Alone, prompts: list[dict[str, Any]], *methods: Any, **tokens: int
) -> list[int]:
    """Prompts are answered as alone; how many tokens of the edited ones were cached."""
    found, wanted = ask(engine, prompts, *methods, **tokens), alone(prompts, *methods, **tokens)
    assert found.tokens == wanted.tokens
    assert found.scores == pytest.approx(wanted.scores, abs=1e-4)
    return [cached for i, cached in enumerate(found.cached) if i % 4 != 3]


@pytest.fixture(scope="module")
def about_one(asked):
    """Questions about one image, whose rows they share."""
    return Asked(asked.gaze, asked.images[:1] * len(asked.images), asked.questions).prompts


@pytest.fixture
def fresh(engine):
    """Nothing is kept; a value that an earlier prompt left in a slot could be the right one by chance."""
    engine.reset_prefix_cache()
    runner = engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    runner.__dict__["_regaze_edits"]._values._kept.clear()
    return engine


def test_the_methods_give_other_answers(alone, about_one):
    plain, edited, other = (alone(about_one, *methods).scores for methods in ((), (VAR,), (OTHER,)))
    rows = [i for i in range(len(plain)) if i % 4 != 3]
    for one, another in ((plain, edited), (plain, other), (edited, other)):
        assert min(abs(one[i] - another[i]) for i in rows) > 3e-4


def test_the_same_prompts_read_their_prefixes(fresh, alone, asked):
    check(fresh, alone, asked.prompts, VAR)
    assert min(check(fresh, alone, asked.prompts, VAR)) > 0


def test_prompts_about_an_image_share_its_rows_within_a_forward(fresh, alone, about_one):
    """The keys of the first one's rows come in the forward in which the others read them."""
    cached = check(fresh, alone, about_one, VAR)
    assert cached[0] == 0
    assert min(cached[1:]) > 0


def test_other_parameters_have_pages_of_their_own(fresh, alone, about_one):
    for method in (VAR, OTHER, VAR, OTHER):
        check(fresh, alone, about_one, method)


def test_two_of_them_read_values_of_their_own(fresh, alone, about_one):
    for _ in range(2):
        check(fresh, alone, about_one, VAR, OTHER)


def test_a_prompt_without_an_image_keeps_values_for_one_that_goes_on_with_it(fresh, alone, asked):
    tokenizer, (prompt, *_) = fresh.get_tokenizer(), asked.prompts
    text = tokenizer("A question follows, and it is to be answered with yes or no. " * 4)["input_ids"]
    image = tokenizer(prompt["prompt"])["input_ids"][1:]
    further = {"prompt_token_ids": [*text, *image], "multi_modal_data": prompt["multi_modal_data"]}
    check(fresh, alone, [{"prompt_token_ids": text}], VAR)
    (cached,) = check(fresh, alone, [further], VAR)
    assert cached > 0


def test_an_engine_whose_keys_go_to_others_reads_no_prefixes(fresh, alone, about_one, monkeypatch):
    processor = fresh.llm_engine.input_processor
    config = copy(processor.vllm_config)
    config.kv_transfer_config = object()
    monkeypatch.setitem(processor.__dict__, "_regaze_admission", Admission(config))
    assert not any(check(fresh, alone, about_one, VAR))


@pytest.fixture(scope="module")
def narrow(start):
    """An engine whose cache has the prompts of eight requests, and which runs them in pieces."""
    return start(num_gpu_blocks_override=26, max_num_batched_tokens=96)


def test_pages_that_others_had_in_between(narrow, alone, asked, about_one):
    for prompts in (asked.prompts, about_one, asked.prompts):
        for method in (VAR, KNOCKOUT, OTHER):
            check(narrow, alone, prompts, method)
    assert min(check(narrow, alone, about_one, VAR)[1:]) > 0


def test_requests_that_gave_their_keys_away_read_them_again(narrow, alone, asked, about_one, monkeypatch):
    again, known = list[bool](), EditedRequest.keep_values

    def counted(self: Any, call: Any, rows: Any, *others: Any) -> None:
        again.append(rows.again)
        known(self, call, rows, *others)

    monkeypatch.setattr(EditedRequest, "keep_values", counted)
    for prompts in (asked.prompts, about_one):
        check(narrow, alone, prompts, VAR, tokens=40)
    assert any(again)


@pytest.fixture(scope="module")
def two(start):
    """An engine with two workers, each of which keeps the values."""
    return start(tensor_parallel_size=2)


def test_two_workers_read_what_each_has_kept(two, alone, about_one):
    for method in (VAR, OTHER):
        assert min(check(two, alone, about_one, method)[1:]) > 0
