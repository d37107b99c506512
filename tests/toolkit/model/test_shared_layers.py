"""Branches that begin in a later layer: the same bits as without, from fewer rows of the prompt."""

from __future__ import annotations

import pytest
import torch
from family_checks import case_of
from models import llava_processor, logits_of, picture, tiny_llava
from torch.utils.flop_counter import FlopCounterMode
from zoo.every import VISION, runs, skip_if_older

import regaze
from regaze.errors import InputError
from regaze.interventions import ICD, SID, VCD, CausalMM
from regaze.kernels import AttentionEdit, StatsRequest
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch, Stack

FIRST = 3


class Late(Callback):
    """Contrasts with a branch that is biased against the first keys from one layer on."""

    def __init__(self, first=FIRST):
        self.first = first

    def branches(self, context):
        return {f"late {self.first}": Branch(first_layer=self.first)}

    def prepare(self, context):
        bias = torch.zeros(context.batch, 1, 20)
        bias[context.rows(f"late {self.first}")] = -3.0
        context.state(self)["edit"] = AttentionEdit(bias=bias)

    def edit(self, layer, step, context):
        return context.state(self)["edit"] if layer >= self.first else None

    def combine_logits(self, context):
        return LogitsCombination(2.0, [(-1.0, context.logits(f"late {self.first}"))])


class Neighbour(Callback):
    """Edits and measures everything in every layer, for each of the context's rows; keeps what it saw."""

    needs_hidden_states = True

    def prepare(self, context):
        self.seen = []
        context.capture_hidden((0, 2, 6))
        self.bias = AttentionEdit(
            bias=0.1 * torch.arange(20.0).expand(context.batch, 1, 20), stats=StatsRequest(full_rows=True)
        )

    def note(self, *parts):
        self.seen += [part.detach().clone() for part in parts]

    def edit(self, layer, step, context):
        if step == 0:
            self.note(context.hidden_states(layer))
        return self.bias

    def on_stats(self, layer, stats, context):
        self.note(stats.slices)

    def on_attention(self, layer, call, context):
        self.note(call.query, call.output, call.weights(slice(0, call.query.shape[2])))

    def edit_mlp(self, layer, hidden, context):
        self.note(hidden, context.mlp_input)
        return hidden * 1.1

    def edit_attention_output(self, layer, hidden, context):
        self.note(hidden)
        return hidden + 0.01 * torch.arange(len(hidden))[:, None, None] // context.user_batch % 1

    def combine_logits(self, context):
        self.note(*(context.captured_hidden(layer) for layer in (0, 2, 6)))


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(
        [picture(0), [picture(1), picture(2)], None], ["What is there?", "Is there a dog in here?", "Hello"]
    )


@pytest.fixture
def apart(monkeypatch):
    """Call it, and every branch runs through all layers."""
    return lambda: monkeypatch.setattr(Stack, "rows_in", lambda self, layer: len(self.names) * self.batch)


SEVERAL = ((Late(),), (Late(), Late(5)), (VCD(beta=0.0), Late()), (ICD(beta=0.0), Late(1)))
METHODS = ((SID(kept=9),), (SID(kept=9, first_layer=5),), (CausalMM(layers=(3, 5)),), (CausalMM(),))


def name(methods):
    return "-".join(type(method).__name__ + str(getattr(method, "first", "")) for method in methods)


@pytest.mark.parametrize("methods", [*SEVERAL, *METHODS], ids=name)
def test_the_logits_are_those_of_whole_branches(model, gaze, inputs, apart, methods):
    def run():
        with gaze.using(*methods):
            return logits_of(model, inputs, 3)

    plain, shared = logits_of(model, inputs, 3), run()
    apart()
    assert torch.equal(shared, run())
    assert not torch.allclose(shared, plain, atol=1e-2)


@pytest.mark.parametrize("methods", [(Late(), Late(5)), (SID(kept=9),)], ids=name)
def test_so_are_beams_samples_and_static_caches(model, gaze, inputs, apart, methods):
    def run():
        torch.manual_seed(0)
        with gaze.using(*methods):
            beams = model.generate(**inputs, num_beams=2, max_new_tokens=3, do_sample=False)
            samples = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2)
            return beams, samples, logits_of(model, {**inputs, "cache_implementation": "static"}, 3)

    shared = run()
    apart()
    for got, want in zip(shared, run(), strict=True):
        assert torch.equal(got, want)


def test_of_the_prompt_fewer_rows_run_and_the_cache_has_all(model, gaze, inputs):
    batch, layers = 3, model.model.language_model.layers
    rows, images, cached = {}, [], []

    def count(number):
        return lambda module, args: rows.setdefault(number, []).append(len(args[0]))

    class Cached(Late):
        def combine_logits(self, context):
            cached.append(context.batch)
            return super().combine_logits(context)

    tower = model.model.vision_tower
    with gaze.using(Cached()):
        hooks = [layer.mlp.register_forward_pre_hook(count(number)) for number, layer in enumerate(layers)]
        hooks.append(
            tower.register_forward_pre_hook(
                lambda module, args, kwargs: images.append(len(args[0] if args else kwargs["pixel_values"])),
                with_kwargs=True,
            )
        )
        out = model(**inputs, use_cache=True)
        held = [len(layer.keys) for layer in compat.cache_of(out).layers]
        for hook in hooks:
            hook.remove()
    assert rows == {number: [batch if number < FIRST else 2 * batch] for number in range(6)}
    assert images == [3]
    assert held == [2 * batch] * 6
    assert cached == [2 * batch]
    assert [len(layer.keys) for layer in compat.cache_of(out).layers] == [batch] * 6


def test_what_others_see_and_do_in_shared_layers_is_as_in_whole_branches(gaze, inputs, apart):
    def run():
        neighbour, options = Neighbour(), {"output_hidden_states": True, "output_attentions": True}
        with gaze.using(neighbour, Late()), torch.no_grad():
            out = gaze.model(**inputs, **options)
        with gaze.using(Late()), gaze.recording(rows="all", slices="all") as record:
            gaze.model(**inputs)
        return [*neighbour.seen, *out.hidden_states, *out.attentions, out.logits, record[0].slices]

    shared = run()
    apart()
    whole = run()
    assert len(shared) == len(whole) > 50
    for got, want in zip(shared, whole, strict=True):
        assert torch.equal(got, want)


def test_a_prompt_of_sid_costs_less(model, gaze, inputs, apart):
    def operations():
        with gaze.using(SID()), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
        return counter.get_total_flops()

    shared = operations()
    apart()
    assert shared < 0.8 * operations()


FAMILIES = (
    *("llava_next", "qwen2_vl", "qwen3_vl", "qwen3_5", "gemma3", "gemma3n", "gemma4", "janus", "molmo2"),
    *("idefics3", "granite4_vision"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_share_or_run_whole_branches(family, apart):
    """Some take an image's features in several layers, share keys, or have layers of two kinds."""
    entry = next(each for each in VISION if each.name == family)
    skip_if_older(entry)
    if not runs(entry):
        pytest.skip(f"{family} does not run under this transformers")
    case = case_of(entry)
    late = Late(compat.text_config(case.gaze.host).num_hidden_layers - 1)
    early = [VCD(beta=0.0)] if family == "qwen2_vl" else []  # positions along several axes, of three contexts

    def run():
        with case.gaze.using(*early, late):
            return logits_of(case.model, case.inputs(0, 1), 3)

    plain, shared = logits_of(case.model, case.inputs(0, 1), 3), run()
    apart()
    torch.testing.assert_close(shared, run(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(shared, plain)


def test_a_branch_of_other_inputs_begins_with_them():
    for parts in ({"inputs": {"input_ids": torch.ones(1, 3)}}, {"embedding_gain": torch.ones(1, 3)}):
        with pytest.raises(InputError, match="begins in layer 2"):
            Branch(**parts, first_layer=2)


def test_after_an_error_in_a_shared_layer_nothing_is_left(inputs):
    model = tiny_llava()
    gaze = regaze.wrap(model, llava_processor())
    plain = logits_of(model, inputs)

    class Fails(Late):
        def edit(self, layer, step, context):
            if layer == 1:
                raise ZeroDivisionError
            return None

    def hooks():
        return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]

    before = hooks()
    with gaze.using(Fails()), pytest.raises(ZeroDivisionError):
        model(**inputs)
    assert hooks() == before
    assert torch.equal(logits_of(model, inputs), plain)
