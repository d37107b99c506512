"""Layer plans: made once per generation and layer, and as long as the callbacks' edits are the same."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from models import logits_of, tiny_llama

import regaze
from regaze.kernels import AttentionEdit, StatsRequest
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.layer_plan import plan_layer
from regaze.toolkit.model.logits import LogitsCombination

CPU = torch.device("cpu")
LAYERS, PROMPT = 5, 4


class Counting(Callback):
    """Removes head 0; counts how often it is asked, by step."""

    def __init__(self):
        self.asked: dict[int, int] = {}
        self.made = AttentionEdit(head_gain=torch.tensor([[0.0, 1, 1, 1, 1, 1]]))

    def edit(self, layer, step, context):
        self.asked[step] = self.asked.get(step, 0) + 1
        return self.made


class Fixed(Counting):
    fixed_edits = True

    def edit(self, layer, step, context):
        return super().edit(layer, step, context)


class Redefined(Fixed):
    """A subclass whose edits change from step to step, unlike its base's."""

    def edit(self, layer, step, context):
        gain = super().edit(layer, step, context).head_gain
        return AttentionEdit(head_gain=gain) if step % 2 else None


@pytest.fixture(scope="module")
def text():
    return tiny_llama()


@pytest.fixture(scope="module")
def prompt():
    return {"input_ids": torch.arange(5, 5 + 2 * PROMPT).view(2, PROMPT)}


def test_fixed_edits_are_asked_for_in_the_prompt_and_the_first_step(text, prompt):
    for callback, steps in ((Counting(), 5), (Fixed(), 2), (Redefined(), 5)):
        with regaze.wrap(text).using(callback):
            logits_of(text, prompt)
        assert callback.asked == dict.fromkeys(range(steps), LAYERS)


def test_a_callback_without_edits_makes_nobody_ask(text, prompt):
    class Combining(Callback):
        def combine_logits(self, context):
            return LogitsCombination(2.0)

    fixed = Fixed()
    with regaze.wrap(text).using(fixed, Combining()), regaze.wrap(text).recording(masses=False, lse=True):
        logits_of(text, prompt)
    assert fixed.asked == {0: LAYERS, 1: LAYERS}


def test_one_callback_that_changes_is_enough_to_ask_all(text, prompt):
    fixed = Fixed()
    with regaze.wrap(text).using(fixed, Redefined()):
        logits_of(text, prompt)
    assert len(fixed.asked) == 5


def test_plans_belong_to_their_generation(text, prompt):
    """Two generations by turns, whose fixed edits differ."""

    class OfThePrompt(Callback):
        fixed_edits = True

        def edit(self, layer, step, context):
            heads = torch.arange(6) == context.input_ids[0, 0] % 6
            return context.state(self).setdefault("edit", AttentionEdit(head_gain=(~heads).float()[None]))

    other = {"input_ids": prompt["input_ids"] + 1}
    model, callback = text, OfThePrompt()

    def steps(inputs):
        out, ids = model(**inputs), inputs["input_ids"][:, :1]
        for _ in range(3):
            yield out.logits[:, -1]
            out = model(ids, past_key_values=out.past_key_values)

    with regaze.wrap(text).using(callback), torch.no_grad():
        alone = [list(steps(prompt)), list(steps(other))]
        both = list(zip(steps(prompt), steps(other), strict=True))
    for first, second, (a, b) in zip(*alone, both, strict=True):
        assert torch.equal(first, a)
        assert torch.equal(second, b)
    assert not torch.equal(alone[0][0], alone[1][0])


def test_an_inner_block_that_closes_takes_its_fixed_edits_along(text, prompt):
    """The cache goes on under the outer block alone."""
    gaze, ids = regaze.wrap(text), prompt["input_ids"][:, :1]
    with torch.no_grad(), gaze.using():
        with gaze.using(Fixed()):
            cache = text(**prompt).past_key_values
            edited = [text(ids, past_key_values=cache).logits for _ in range(2)]
        after = text(ids, past_key_values=cache).logits
        with gaze.using(Fixed()):
            cache = text(**prompt).past_key_values
            again = [text(ids, past_key_values=cache).logits for _ in range(3)]
    assert torch.equal(edited[1], again[1])
    assert not torch.equal(after, again[2])


def test_plans_are_freed_with_their_generation(text, prompt):
    made: list[weakref.ref] = []

    class Making(Fixed):
        fixed_edits = True

        def edit(self, layer, step, context):
            edit = AttentionEdit(head_gain=torch.ones(1, 6))
            made.append(weakref.ref(edit))
            return edit

    with regaze.wrap(text).using(Making()):
        logits_of(text, prompt)
        gc.collect()
        assert not [edit for edit in made if edit() is not None]


def test_a_plan_without_effect_leaves_the_layer_alone():
    callback = Callback()
    assert plan_layer([callback], [None], CPU) is None
    assert plan_layer([callback], [AttentionEdit()], CPU) is None
    both = plan_layer([callback, callback], [AttentionEdit(), None], CPU)
    assert both is None
    measured = plan_layer([callback], [AttentionEdit(stats=StatsRequest(lse=True))], CPU)
    assert measured is not None
    assert measured.neutral


def test_each_request_has_its_owner():
    owners = [Callback(), Callback()]
    requests = [StatsRequest(lse=True), StatsRequest(entropy=True, edited=True)]
    edits = [AttentionEdit(stats=request) for request in requests]
    plan = plan_layer(owners, edits, CPU)
    assert plan is not None
    assert plan.requests == ((owners[1], requests[1]), (owners[0], requests[0]))
    assert plan.edit.edit.stats is requests[1], "the edit's own pass measures edited rows"
    assert [other.edit.stats for other in plan.others] == [requests[0]]


class Measuring(Callback):
    """Requests statistics of every layer and notes when they arrive."""

    def __init__(self, events, fixed):
        self.events, self.fixed_edits, self.seen = events, fixed, []
        self.made = AttentionEdit(stats=StatsRequest(lse=True))

    def edit(self, layer, step, context):
        return self.made

    def on_stats(self, layer, stats, context):
        self.events.append((context.step, f"stats {layer}"))
        self.seen.append(stats.lse)


@pytest.mark.parametrize("fixed", [True, False])
def test_small_layers_are_measured_when_their_step_ends(text, prompt, fixed):
    """Only where no edit of the step may depend on it; the numbers are the same."""
    events = []
    last = text.get_decoder().layers[-1]
    ran = last.register_forward_hook(lambda *args: events.append((None, "last layer")))
    callback = Measuring(events, fixed)
    try:
        with regaze.wrap(text).using(callback):
            logits_of(text, prompt, tokens=2)
    finally:
        ran.remove()
    kinds = [kind for _, kind in events]
    ends = [index for index, kind in enumerate(kinds) if kind == "last layer"]
    measured = [f"stats {layer}" for layer in range(LAYERS)]
    assert kinds[: ends[0]] == measured, "the prompt's layers are measured at once"
    step = kinds[ends[0] + 1 :]
    assert step == (["last layer", *measured] if fixed else [*measured, "last layer"])
    immediate = Measuring([], fixed=False)
    with regaze.wrap(text).using(immediate):
        logits_of(text, prompt, tokens=2)
    assert all(torch.equal(a, b) for a, b in zip(callback.seen, immediate.seen, strict=True))


def test_a_step_that_fails_hands_out_no_measurement(text, prompt):
    def fail(*args):
        if len(callback.events) >= LAYERS:
            raise RuntimeError("out of memory")

    callback = Measuring([], fixed=True)
    failing = text.get_decoder().layers[-1].register_forward_hook(fail)
    try:
        with regaze.wrap(text).using(callback):
            with pytest.raises(RuntimeError, match="out of memory"):
                logits_of(text, prompt, tokens=2)
            assert [step for step, _ in callback.events] == [0] * LAYERS
            failing.remove()
            logits_of(text, prompt, tokens=2)
            assert [step for step, _ in callback.events] == [0] * 2 * LAYERS + [1] * LAYERS
    finally:
        failing.remove()
