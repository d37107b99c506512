"""SPARC against a loop that scales the cache itself, and what must never happen to it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from decoding_checks import check_json, check_neutral, check_shared_keys, check_spares_text
from models import logits_of, picture

from regaze import Role
from regaze.errors import BadParameterError
from regaze.interventions import HeadKnockout, Intervention
from regaze.interventions.sparc import SPARC

QUESTIONS = ["Is there a red dog in the image?", "Please describe this image in detail.", "What?"]
IMAGES = [picture(1), picture(2), [picture(3), picture(4)]]


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def sparc(**changes) -> SPARC:
    """With rises that a random model shows."""
    return SPARC(**{"alpha": 1.7, "tau": 0.05, "beta": 0.3, "selected_layer": 3, **changes})


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(IMAGES, QUESTIONS)


def by_hand(model, inputs, columns, method: SPARC, steps: int):
    """Greedy logits [steps, V] of one prompt, the cache scaled in place, and how often each value was."""
    previous = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    first, last = method.layers or (0, 5)
    times, average, risen, logits = torch.zeros(int(columns.sum())), None, None, []
    fed = dict(inputs)
    try:
        for step in range(steps):
            if step:
                for layer in fed["past_key_values"].layers[first : last + 1]:
                    layer.values[:, :, columns.nonzero().flatten()[risen]] *= method.alpha
            out = model(**fed, output_attentions=True)
            now = out.attentions[method.selected_layer][0, :, -1][:, : len(columns)][:, columns].mean(0)
            if step == 0:
                average, risen = now, torch.zeros_like(now).bool()
            else:
                risen = (now - average) / average >= method.tau
                times += risen
                average = (1 - method.beta) * now + method.beta * average
            logits.append(out.logits[0, -1])
            fed = {"input_ids": logits[-1].argmax()[None, None], "past_key_values": out.past_key_values}
    finally:
        model.set_attn_implementation({"text_config": previous})
    return torch.stack(logits), times


@pytest.mark.parametrize("changes", [{}, {"layers": (4, 5)}, {"layers": (0, 2), "beta": 0.9}])
def test_it_equals_scaling_the_cache(model, gaze, changes):
    method = sparc(**changes)
    for image, question in zip(IMAGES, QUESTIONS, strict=True):
        inputs = gaze.inputs([image], [question])
        columns = gaze.tokens(inputs).mask(Role.IMAGE)[0]
        expected, times = by_hand(model, inputs, columns, method, 7)
        assert times.max() >= 2  # a token that rises twice is scaled twice
        assert times.min() == 0
        with gaze.using(method):
            close(logits_of(model, inputs, 7)[:, 0], expected)


def test_the_first_two_tokens_are_plain(model, gaze, inputs):
    """The first rise is seen at the second step."""
    plain = logits_of(model, inputs)
    with gaze.using(sparc(tau=1e30)):  # no token rises
        close(logits_of(model, inputs), plain, atol=1e-5)
    with gaze.using(sparc()):
        edited = logits_of(model, inputs)
    assert torch.equal(edited[:2], plain[:2])
    assert not torch.allclose(edited[2], plain[2], atol=1e-3)


def test_what_every_method_must_satisfy(gaze):
    check_neutral(gaze, sparc(alpha=1.0))
    check_spares_text(gaze, sparc())
    check_shared_keys(sparc())
    check_json(sparc(layers=(1, 2)))


def test_state_follows_its_beam(model, gaze, inputs):
    """Every beam's score is that of its tokens fed one by one."""
    options = {"max_new_tokens": 6, "num_beams": 4, "num_return_sequences": 4, "do_sample": False}
    one = gaze.inputs(IMAGES[:1], QUESTIONS[:1])
    with gaze.using(sparc()):
        out = model.generate(
            **one,
            **options,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
            length_penalty=0.0,
        )
        length = one["input_ids"].shape[1]
        assert len({int(beam) for beam in out.beam_indices[:, :6].flatten()}) > 1
        for answer, score in zip(out.sequences[:, length:], out.sequences_scores, strict=True):
            fed, total = dict(one), 0.0
            for token in answer:
                with torch.no_grad():
                    step = model(**fed)
                total += float(step.logits[0, -1].log_softmax(-1)[token])
                fed = {"input_ids": token[None, None], "past_key_values": step.past_key_values}
            assert total == pytest.approx(float(score), abs=1e-3)


def test_right_padding_is_the_same_at_the_first_steps(model, gaze, inputs):
    """The average begins with the last real row, wherever it is."""
    ids, attended, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    shift = (attended == 0).sum(1).tolist()
    right = [torch.stack([x.roll(-s) for x, s in zip(t, shift, strict=True)]) for t in (ids, attended)]
    averages = []
    for ids_, mask_ in ((ids, attended), right):
        method = Watching(**{f: getattr(sparc(), f) for f in ("alpha", "tau", "beta", "selected_layer")})
        with gaze.using(method):
            model(
                input_ids=ids_,
                attention_mask=mask_,
                pixel_values=pixels,
                position_ids=(mask_.cumsum(1) - 1).clamp_min(0),
            )
        averages.append(method.seen[-1])
    close(averages[0], averages[1], atol=1e-6)
    assert averages[0].shape == (3, 128)
    assert torch.equal(averages[0][0, 64:], torch.zeros(64))


@dataclass(frozen=True)
class Watching(SPARC):
    """SPARC that shows its average."""

    @property
    def seen(self) -> list:
        return self.__dict__.setdefault("_seen", [])

    def on_stats(self, layer, stats, context):
        super().on_stats(layer, stats, context)
        self.seen.append(context.row_state(self)["average"])


class Replays(Intervention):
    """Has the prompt's last row run again, and changes nothing."""

    def edit(self, layer, step, context):
        if step == 0:
            context.replay_last_row()
        return None


def test_a_replayed_row_is_no_step(model, gaze, inputs):
    with gaze.using(sparc()):
        plain = logits_of(model, inputs, 6)
    with gaze.using(sparc(), Replays()):
        close(logits_of(model, inputs, 6), plain)


def test_it_composes_with_a_knockout(model, gaze, inputs):
    heads = HeadKnockout(heads=tuple((layer, head) for layer in (4, 5) for head in range(6)))
    with gaze.using(heads):
        plain = logits_of(model, inputs)
    with gaze.using(sparc(layers=(4, 5)), heads):
        close(logits_of(model, inputs), plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "alpha must be float > 0, got 0"),
        ({"beta": 1.5}, r"beta must be float in \[0, 1\], got 1.5.*weight of the past"),
        ({"tau": float("nan")}, "finite number"),
        ({"selected_layer": -1}, "selected_layer must be int >= 0 or None, got -1"),
        ({"layers": "all"}, "layers must be the first and the last layer"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        SPARC(**changes)
