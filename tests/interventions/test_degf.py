"""DeGF: its gate, and answers by an image and a drawn picture against separate forwards."""

from __future__ import annotations

import math

import pytest
import torch
from decoding_checks import assert_same_scores, check_json, close_as_goldens_ask, golden, plain_logits
from models import logits_of, picture
from standins import painted

from regaze.errors import BadParameterError, InputError
from regaze.interventions.controls import Sharpen
from regaze.interventions.degf import DeGF, _Feedback
from regaze.interventions.divergences import jensen_shannon, reversed_jensen_shannon
from regaze.interventions.vcd import VCD
from regaze.toolkit.model.logits import combine

IMAGES, QUESTIONS = [picture(1), picture(2)], ["Is there a dog in the image?", "What?"]


# The equations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q", "true", "released"),
    [
        ((0.7, 0.2, 0.1), (0.2, 0.5, 0.3), 0.132918, 0.147330),
        ((0.98, 0.015, 0.005), (0.7, 0.2, 0.1), 0.085373, 0.129129),
    ],
)
def test_hand_examples(p, q, true, released):
    """In the second the release contrasts what the paper's divergence adds."""
    log_p, log_q = torch.tensor(p).log(), torch.tensor(q).log()
    assert float(jensen_shannon(log_p, log_q)) == pytest.approx(true, abs=1e-6)
    assert float(reversed_jensen_shannon(log_p, log_q)) == pytest.approx(released, abs=1e-6)
    for method, agree in ((DeGF(), true < 0.1), (DeGF(as_released=True), released < 0.1)):
        main = method.combined(log_p[None, None], log_q[None, None]).main
        assert float(main) == (1.0 if agree else 2.0)


def test_impossible_tokens_count_nothing():
    log_p, log_q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.75, 0.0]).log()
    for divergence in (jensen_shannon, reversed_jensen_shannon):
        assert float(divergence(log_p, log_q)) == pytest.approx(float(divergence(log_p[:2], log_q[:2])))
    assert float(jensen_shannon(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log())) == (
        pytest.approx(math.log(2))
    )


def test_golden_gate(shared):
    """Scores by the released divergence, where a sample's own gate is that of its batch's mean."""
    spec, tensors = golden(shared / "goldens", "degf", "gate")
    compared = 0
    for name, case in spec["cases"].items():
        params = case["params"]
        main, other = (tensors[f"{name}/in/logits_{part}"] for part in ("main", "second"))
        logs = main.log_softmax(-1), other.log_softmax(-1)
        close_as_goldens_ask(jensen_shannon(*logs), tensors[f"{name}/out/js_true"], atol=5e-6)
        released = tensors[f"{name}/out/js_released"]
        close_as_goldens_ask(reversed_jensen_shannon(*logs), released, atol=5e-6)
        settings = {key: params[key] for key in ("gamma", "alpha_pos", "alpha_neg", "beta")}
        method = DeGF(**settings, as_released=True)
        for step, want in enumerate(tensors[f"{name}/out/scores"]):
            pair = main[step][:, None], other[step][:, None]
            got = combine(pair[0], [method.combined(*pair)])[:, 0]
            of_all = released[step].mean() < params["gamma"]
            for row in range(len(want)):
                if (released[step, row] < params["gamma"]) == of_all:
                    close_as_goldens_ask(got[row], want[row], atol=5e-6)
                    compared += 1
    assert len(spec["cases"]) >= 4
    assert compared >= 8


def test_the_gate_always_and_never():
    torch.manual_seed(0)
    main, other = torch.randn(2, 3, 4, 9)
    contrast = combine(main, [DeGF(gamma=0.0, beta=0.0).combined(main, other)])
    torch.testing.assert_close(contrast, 2 * main - other)
    added = combine(main, [DeGF(gamma=0.7, beta=0.0).combined(main, other)])
    torch.testing.assert_close(added, main + 3 * other)


# In a model -------------------------------------------------------------------------------------------


def test_every_step_adds_or_contrasts_a_fresh_forward_about_the_picture(model, gaze):
    inputs = gaze.inputs(IMAGES[:1], QUESTIONS[:1])
    method, (drawn,) = DeGF(generator=painted, gamma=0.02), painted(["a dog"])
    feedback = _Feedback(method, gaze, [[drawn.resize((112, 112))]], QUESTIONS[:1], None)
    with gaze.using(feedback):
        got = logits_of(model, inputs)
    answer = got.argmax(-1).T
    shown = gaze.inputs([drawn.resize((112, 112))], QUESTIONS[:1])["pixel_values"]
    main, other = (
        plain_logits(model, {**inputs, "pixel_values": pixels}, answer)
        for pixels in (inputs["pixel_values"], shown)
    )
    apart = jensen_shannon(main.log_softmax(-1), other.log_softmax(-1))[..., None]
    want = torch.where(apart < 0.02, main + 3 * other, 2 * main - other)
    cut = main < main.amax(-1, keepdim=True) + math.log(0.1)
    assert_same_scores(got, want.masked_fill(cut, -torch.inf), tolerance=1e-3)


def test_answers_do_not_depend_on_the_batch(gaze):
    method = DeGF(generator=painted, description_tokens=5)
    together = method.answer(gaze, IMAGES, QUESTIONS, max_new_tokens=4)
    alone = [
        method.answer(gaze, [image], [question], max_new_tokens=4)[0]
        for image, question in zip(IMAGES, QUESTIONS, strict=True)
    ]
    for got, want in zip(together, alone, strict=True):
        assert str(got) == str(want) == want.answer
        assert got.description == want.description
        assert got.picture.size == (112, 112)
        assert got.picture.tobytes() == want.picture.tobytes()
    assert gaze.ask(IMAGES, QUESTIONS, method=method, max_new_tokens=4) == [str(each) for each in together]


def test_it_is_described_by_the_question_and_by_greedy_search(gaze):
    asked = []

    def note(texts):
        asked.extend(texts)
        return painted(texts)

    sampling = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 2}
    for details in ("Briefly describe relevant details.", ""):
        DeGF(generator=note, details=details, description_tokens=4).answer(
            gaze, IMAGES[:1], QUESTIONS[:1], **sampling
        )
    questions = [f"{QUESTIONS[0]} Briefly describe relevant details.", QUESTIONS[0]]
    assert asked == [gaze.ask(IMAGES[:1], [question], max_new_tokens=4)[0] for question in questions]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True}])
def test_beams_and_samples_see_the_picture_of_their_prompt(gaze, options):
    method = DeGF(generator=painted, gamma=0.0, alpha_neg=0.0, beta=0.0, description_tokens=3)
    torch.manual_seed(0)
    got = method.answer(gaze, IMAGES, QUESTIONS, max_new_tokens=4, **options)
    torch.manual_seed(0)
    assert [str(each) for each in got] == gaze.ask(IMAGES, QUESTIONS, max_new_tokens=4, **options)
    strong = DeGF(generator=painted, gamma=1.0, beta=0.0, description_tokens=3)
    assert len(strong.answer(gaze, IMAGES, QUESTIONS, max_new_tokens=4, **options)) == 2


def test_beside_another_method_and_without_a_trace(model, gaze):
    inputs = gaze.inputs(IMAGES, QUESTIONS)
    plain = logits_of(model, inputs)
    method = DeGF(generator=painted, description_tokens=3)
    with gaze.using(VCD()):
        assert len(method.answer(gaze, IMAGES, QUESTIONS, max_new_tokens=3)) == 2
    assert torch.equal(logits_of(model, inputs), plain)


def test_what_it_has_to_beat_and_its_json():
    assert DeGF(beta=0.25).controls() == (Sharpen(3.0, 0.25),)
    assert DeGF(gamma=0.0).controls() == ()
    check_json(DeGF(gamma=0.2, beta=0.5, details="", as_released=True))
    assert DeGF(generator=painted).to_dict()["generator"] == "<painted>"


def test_what_it_needs(gaze):
    assert DeGF().lacks
    assert not DeGF(generator=painted).lacks
    with pytest.raises(BadParameterError, match="give `generator`"):
        DeGF().answer(gaze, IMAGES, QUESTIONS)
    with pytest.raises(InputError, match="one picture per question"):
        DeGF(generator=painted).answer(gaze, [IMAGES], QUESTIONS[:1])
    with pytest.raises(InputError, match="a PIL image for each of 2 texts"):
        DeGF(generator=lambda texts: painted(texts)[:1], description_tokens=2).answer(gaze, IMAGES, QUESTIONS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": -1.0}, "gamma must be float >= 0"),
        ({"alpha_pos": -1.0}, "alpha_pos must be float >= 0"),
        ({"generator": "stable-diffusion"}, "generator must be a function"),
        ({"description_tokens": 0}, "description_tokens must be int > 0"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        DeGF(**changes)
