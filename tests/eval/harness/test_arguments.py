"""What the adapters to harnesses share: parsing arguments, and scoring given continuations."""

from __future__ import annotations

import pytest
import torch
from models import llava_processor, tiny_llama

import regaze
from regaze.errors import BadParameterError, UnknownMethodError
from regaze.eval.harness import arguments
from regaze.eval.run import loglikelihood
from regaze.interventions.registry import create_method

HEADS = {"heads": [[0, 0], [0, 1], [2, 3]]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("pretrained=a/b,dtype=float32", {"pretrained": "a/b", "dtype": "float32"}),
        ("method=knockout,heads=[[3,1],[4,0]]", {"method": "knockout", "heads": [[3, 1], [4, 0]]}),
        ("a=1,b=-1,c=1e-3,d=True,e=none", {"a": 1, "b": -1, "c": 1e-3, "d": True, "e": None}),
        ("prefix='one, two',x=a=b,", {"prefix": "'one, two'", "x": "a=b"}),
    ],
)
def test_commas_in_brackets_and_quotes_do_not_separate(text, expected):
    assert arguments.parse(text) == expected


def test_a_part_without_equals_sign_is_refused():
    with pytest.raises(BadParameterError, match="expected name=value, got 'knockout'"):
        arguments.parse("method=x,knockout")


@pytest.mark.parametrize("heads", [[[3, 1], [4, 0]], "[[3,1],[4,0]]", ((3.0, 1.0), (4.0, 0.0))])
def test_a_method_takes_its_parameters_and_leaves_the_rest(heads):
    given = {"pretrained": "x", "method": "knockout", "heads": heads}
    assert arguments.pop_method(given) == create_method("knockout", heads=((3, 1), (4, 0)))
    assert given == {"pretrained": "x"}


@pytest.mark.parametrize("none", [{}, {"method": "none"}, {"method": None}, {"method": "None"}])
def test_none_is_no_method(none):
    assert arguments.pop_method(none) is None
    assert none == {}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"method": "knockuot"}, UnknownMethodError, "did you mean 'knockout'"),
        ({"method": "knockout"}, BadParameterError, "changes nothing"),
        ({"method": "knockout", "heads": "some"}, BadParameterError, "heads=some"),
        ({"method": "dola", "beta": "big"}, BadParameterError, "beta=big"),
    ],
)
def test_wrong_methods_and_values_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        arguments.pop_method(given)


def test_an_unknown_argument_is_named_with_the_possible_ones():
    expected = r"unknown bta \(did you mean beta\?\); .*batch_size.*parameters of dola: .*beta"
    with pytest.raises(BadParameterError, match=expected):
        arguments.check_unknown({"bta": 1}, {"batch_size"}, create_method("dola"))


@pytest.mark.parametrize(("value", "size"), [(1, 1), ("8", 8), (" 16 ", 16)])
def test_a_batch_size_is_a_number_or_its_text(value, size):
    assert arguments.batch_size(value, "no search") == size


@pytest.mark.parametrize("value", ["auto", "auto:4", "0", 0, -1, 2.5, "many", None, True, ""])
def test_any_other_batch_size_is_refused(value):
    with pytest.raises(BadParameterError, match="expected a whole number from 1 on") as error:
        arguments.batch_size(value, "no search")
    assert ("no search" in str(error.value)) == str(value).startswith("auto")


# Scores -----------------------------------------------------------------------------------------------


def _batch(contexts):
    return llava_processor().tokenizer.pad({"input_ids": contexts}, padding_side="left", return_tensors="pt")


def _in_one_forward(model, context, continuation):
    logits = model(torch.tensor([context + continuation])).logits[0].float().log_softmax(-1)
    rows = logits[len(context) - 1 : -1]
    wanted = torch.tensor(continuation)
    return rows.gather(1, wanted[:, None]).sum().item(), bool((rows.argmax(-1) == wanted).all())


@pytest.fixture(scope="module")
def text_gaze():
    return regaze.wrap(tiny_llama(), llava_processor().tokenizer)


CONTEXTS = [[5, 9, 30, 41], [7, 8], [11, 12, 13, 14, 15, 16]]
CONTINUATIONS = [[20], [21, 2, 23, 24], [25, 26]]  # with the end token, 2, in the middle of one


@pytest.mark.parametrize("method", [None, create_method("knockout", **HEADS)])
def test_decoding_a_continuation_scores_it_as_one_forward_does(text_gaze, method):
    with torch.no_grad(), text_gaze.using(*filter(None, [method])):
        scores = loglikelihood.loglikelihoods(text_gaze.model, _batch(CONTEXTS), CONTINUATIONS)
        for score, context, continuation in zip(scores, CONTEXTS, CONTINUATIONS, strict=True):
            logprob, greedy = _in_one_forward(text_gaze.model, context, continuation)
            assert score.logprob == pytest.approx(logprob, abs=2e-4)
            assert score.greedy == greedy


def test_scores_are_those_of_the_logits_that_generation_sees(text_gaze):
    """DoLa mixes logits: what greedy decoding says under it is greedy in the scores, too."""
    with torch.inference_mode(), text_gaze.using(create_method("dola", beta=0.0)):
        out = text_gaze.model.generate(
            **_batch([CONTEXTS[0]]), max_new_tokens=4, do_sample=False, eos_token_id=None,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        said = out.sequences[0, 4:].tolist()
        expected = sum(step[0].log_softmax(-1).max().item() for step in out.logits)
        (score,) = loglikelihood.loglikelihoods(text_gaze.model, _batch([CONTEXTS[0]]), [said])
        (other,) = loglikelihood.loglikelihoods(
            text_gaze.model, _batch([CONTEXTS[0]]), [[*said[:3], (said[3] + 1) % 50]]
        )
    assert score.greedy
    assert score.logprob == pytest.approx(expected, abs=1e-4)
    assert not other.greedy
    assert other.logprob < score.logprob


def test_a_token_behind_the_plausibility_cut_costs_a_fixed_sum(text_gaze):
    with text_gaze.using(create_method("dola", beta=1.0)):  # leaves the most likely token alone
        one, two = loglikelihood.loglikelihoods(
            text_gaze.model, _batch([CONTEXTS[0]] * 2), [[40, 41], [42, 43]]
        )
    assert {one.logprob % loglikelihood.PRUNED_LOGPROB, two.logprob % loglikelihood.PRUNED_LOGPROB} == {0.0}
    assert one.logprob < 0
    assert (one.excluded, two.excluded) == tuple(
        each.logprob / loglikelihood.PRUNED_LOGPROB for each in (one, two)
    )


def test_the_models_own_generation_settings_come_back(text_gaze):
    own = text_gaze.model.generation_config
    loglikelihood.loglikelihoods(text_gaze.model, _batch([CONTEXTS[0]]), [[20]])
    assert text_gaze.model.generation_config is own
