"""Tokens that a callback takes out of the prompt between two layers."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import assert_same_scores, inputs_of
from models import llava_processor, logits_of, tiny_llama, tiny_llava

import regaze
from regaze import Role, TokenMap
from regaze.errors import CompositionError, InputError, UnsupportedModelError
from regaze.interventions import VCD, FastV, HeadKnockout, MoA, PyramidDrop, SparseVLM
from regaze.kernels import AttentionEdit, LeavingTokens, StatsRequest
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch


class Every(Callback):
    """Every `n`-th image token leaves before each of some layers, one later at each."""

    def __init__(self, layers, n=3, hide=False):
        self.layers, self.n, self.hide = layers, n, hide

    def gone(self, upto, context):
        image = context.tokens.mask(Role.IMAGE)
        places = image.cumsum(1)
        left = [image & (places % self.n == k) for k, layer in enumerate(self.layers) if layer <= upto]
        return torch.stack(left).any(0) if left else None

    def leaving(self, layer, context):
        if self.hide or layer not in self.layers:
            return None
        gone, before = self.gone(layer, context), self.gone(layer - 1, context)
        new = gone if before is None else gone & ~before
        return LeavingTokens(new, tuple(new.sum(1).tolist()), context.tokens.mask(Role.IMAGE))

    def edit(self, layer, step, context):
        gone = self.gone(layer, context) if self.hide else None
        if gone is None:
            return None
        return AttentionEdit(bias=torch.zeros(gone.shape).masked_fill(gone, -torch.inf)[:, None])


class Watching(Callback):
    """Reads inputs of layers and outputs of MLPs."""

    needs_hidden_states = True

    def __init__(self):
        self.inputs, self.mlps = {}, {}

    def prepare(self, context):
        context.capture_hidden((3, 6))

    def edit(self, layer, step, context):
        if step == 0:
            self.inputs[layer] = context.hidden_states(layer)
        return None

    def edit_mlp(self, layer, hidden, context):
        self.mlps[layer, context.step] = hidden
        return hidden

    def combine_logits(self, context):
        self.captured = context.captured_hidden(3), context.captured_hidden(6)
        return None


def test_a_batch_goes_on_as_if_nobody_saw_what_left(model, gaze):
    inputs = inputs_of(gaze)
    with gaze.using(Every((1, 4), hide=True)):
        want = logits_of(model, inputs)
    with gaze.using(Every((1, 4))):
        assert_same_scores(logits_of(model, inputs), want, tolerance=2e-5)
        with torch.no_grad():  # one forward, without a cache
            got = model(**inputs, use_cache=False).logits[:, -1]
    assert_same_scores(got, want[0], tolerance=2e-5)


def test_what_is_read_has_all_tokens_of_the_prompt(model, gaze):
    inputs, seen = inputs_of(gaze), {}
    for hide in (True, False):
        seen[hide] = Watching()
        method = Every((2,), hide=hide)
        with gaze.using(method, seen[hide]), torch.no_grad():
            out = model(**inputs, output_hidden_states=True, output_attentions=True)
            seen[hide].out = out.hidden_states, out.attentions, out.logits
    tokens = gaze.tokens(inputs)
    image = tokens.mask(Role.IMAGE)
    gone = (image & (image.cumsum(1) % 3 == 0)) | tokens.mask(Role.PAD)
    there = ~gone[..., None]
    hidden, cut = seen[True], seen[False]
    for layer in range(6):
        late = gone if layer >= 2 else tokens.mask(Role.PAD)
        for name in ("inputs", "mlps"):
            key = layer if name == "inputs" else (layer, 0)
            one, other = getattr(cut, name)[key], getattr(hidden, name)[key]
            torch.testing.assert_close(one * there, other * there, rtol=1e-4, atol=2e-5)
            if late is gone:
                assert not one[gone].any()
        one, other = cut.out[1][layer], hidden.out[1][layer]
        assert one.shape == other.shape
        rows = ~gone[:, None, :, None]
        torch.testing.assert_close(one * rows, other * rows, rtol=1e-4, atol=2e-5)
    for one, other in zip(cut.out[0], hidden.out[0], strict=True):
        torch.testing.assert_close(one * there, other * there, rtol=1e-4, atol=1e-4)
    for one, other in zip(cut.captured, hidden.captured, strict=True):
        torch.testing.assert_close(one * there, other * there, rtol=1e-4, atol=1e-4)
    assert not cut.out[2][gone].any()


def test_records_name_the_columns_of_the_prompt(model, gaze):
    """Both rows of text alone, and all rows; masses sum to 1, and what left has none of them."""
    inputs = inputs_of(gaze, slice(0, 2))
    image = gaze.tokens(inputs).mask(Role.IMAGE)
    gone = image & (image.cumsum(1) % 3 == 0)
    traces = {}
    for rows in ("last", "text", "all"):
        for hide in (True, False):
            wanted = {"slices": "all", "rows": rows, "top1": True, "entropy": True, "edited": True}
            with gaze.using(Every((2,), hide=hide)), gaze.recording(**wanted) as record:
                logits_of(model, inputs, 3)
            traces[hide] = record[0]
        cut, want = traces[False], traces[True]
        assert torch.equal(cut.row_position, want.row_position)
        assert torch.equal(cut.row_active, want.row_active)
        prompt = cut.row_step == 0
        places = cut.row_position.clamp_max(image.shape[1] - 1)
        left = gone[:, places] & prompt  # [B, N]
        for name in ("slices", "masses", "entropy", "top_weight", "top_column"):
            one, other = getattr(cut, name), getattr(want, name)
            assert one.shape == other.shape
            lacks = left[None, :, None].view(1, 2, 1, -1, *[1] * (one.dim() - 4))
            late = torch.arange(6).view(-1, *[1] * (one.dim() - 1)) >= 2
            assert not one.masked_select(lacks & late).any()
            torch.testing.assert_close(
                one.masked_fill(lacks & late, 0), other.masked_fill(lacks & late, 0), rtol=1e-4, atol=1e-5
            )
        columns = gone[None, :, None, None].expand(4, 2, 6, len(places), -1)
        assert not cut.slices[2:, ..., : image.shape[1]][columns].any()
        present = cut.row_active & ~left
        torch.testing.assert_close(
            cut.masses.sum(-1)[:, present[:, None].expand(2, 6, -1)],
            torch.ones(6, 6 * int(present.sum())),
        )


class Late(Callback):
    """Contrasts with a branch that lacks a head from layer 4 on, and runs through the others once."""

    name = "late branch"

    def branches(self, context):
        return {"late": Branch(first_layer=4)}

    def edit(self, layer, step, context):
        if layer < 4:
            return None
        gain = torch.ones(context.batch, 6)
        gain[context.rows("late"), 0] = 0.0
        return AttentionEdit(head_gain=gain)

    def combine_logits(self, context):
        return LogitsCombination(2.0, [(-1.0, context.logits("late"))])


@pytest.mark.parametrize(
    "other", [VCD(), HeadKnockout(heads=((1, 1), (4, 2))), Late()], ids=lambda method: method.name
)
def test_other_methods_act_on_what_is_left(model, gaze, other):
    inputs, found = inputs_of(gaze, slice(0, 2)), []
    for hide in (True, False):
        with gaze.using(Every((2, 3), hide=hide), other):
            found.append(logits_of(model, inputs, 3))
    assert torch.equal(found[0].isinf(), found[1].isinf())
    torch.testing.assert_close(*found, rtol=1e-4, atol=2e-5)


def test_tried_tokens_are_taken_back_from_every_layer(model, gaze):
    """As `generate` with an assistant does: of five tokens that were tried, three are taken back.

    Older releases say how many tokens of the whole cache stay.
    """
    inputs, found = inputs_of(gaze, slice(0, 2)), []
    length = inputs["input_ids"].shape[1]
    for hide in (True, False):
        with gaze.using(Every((2, 4), hide=hide)), torch.no_grad():
            cache = model(**inputs, use_cache=True).past_key_values
            for count, total in ((5, 5), (4, 6)):
                mask = torch.nn.functional.pad(inputs["attention_mask"], (0, total), value=1)
                ids = torch.arange(2 * count).view(2, count) + 20
                logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits
                if count == 5:
                    cache.crop(-3 if hide else length + 2)
            found.append(logits)
            widths = [layer.keys.shape[2] for layer in cache.layers]
    torch.testing.assert_close(*found, rtol=1e-4, atol=2e-5)
    assert widths[0] == length + 6
    assert widths[0] > widths[2] > widths[4]


def test_the_model_is_left_as_it_was_and_the_cache_is_not_gone_on_with(model, gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    plain, before = logits_of(model, inputs), hooks(model)
    with gaze.using(Every((2,))), torch.no_grad():
        out = model(**inputs, use_cache=True)
    assert torch.equal(logits_of(model, inputs), plain)
    assert hooks(model) == before
    more = {
        "input_ids": inputs["input_ids"][:, :1],
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1),
    }
    with pytest.raises(InputError, match="removed tokens of the prompt from this key-value cache"):
        model(**more, past_key_values=out.past_key_values)
    with gaze.using(Every((2,)), VCD()), torch.no_grad():
        out = model(**inputs, use_cache=True)
    with pytest.raises(InputError, match="removed tokens of the prompt from this key-value cache"):
        model(**more, past_key_values=out.past_key_values)


def hooks(model):
    return [
        hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]


def refused(gaze, error, match, *methods, **options):
    with gaze.using(*methods), pytest.raises(error, match=match):
        gaze.model.generate(**inputs_of(gaze, slice(0, 1)), max_new_tokens=2, **options)


class Listening(Callback):
    def __init__(self, layer):
        self.layer = layer

    def on_attention(self, layer, call, context):
        if layer == self.layer:
            assert call.query.dim() == 4


def test_what_cannot_act_together(gaze):
    refused(gaze, CompositionError, "Every and FastV: each removes tokens", Every((1,)), FastV())
    refused(gaze, CompositionError, "windows count how many keys", FastV(), MoA(beta=0.2, block=8))
    refused(gaze, CompositionError, "Listening: reads the attention of all", FastV(), Listening(3))
    with gaze.using(FastV(), Listening(1)):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
    refused(
        gaze, InputError, "FastV cannot remove tokens: a static cache", FastV(), cache_implementation="static"
    )


class Early(Callback):
    """Looks ahead where no layer is about to run."""

    def leaving(self, layer, context):
        self.context = context
        return None


def test_looking_ahead_is_for_the_layer_that_is_about_to_run(gaze):
    early = Early()
    with gaze.using(early):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
    with pytest.raises(InputError, match="exist only in `leaving`"):
        early.context.look_ahead(StatsRequest(lse=True))


def test_hiding_works_where_removing_does_not(model, gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    hiding = FastV(remove=False), PyramidDrop(remove=False), SparseVLM(remove=False)
    for method in hiding:
        with gaze.using(method, MoA(beta=0.2, block=8)):
            assert not logits_of(model, inputs, 2).isnan().any()
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "eos_token_id": None}
    options["disable_compile"] = True
    for method in hiding:
        with gaze.using(method):
            pair = [
                torch.stack(
                    model.generate(
                        **inputs, **options, return_dict_in_generate=True, cache_implementation=kind
                    ).logits
                )
                for kind in ("dynamic", "static")
            ]
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)


def test_a_window_that_holds_the_last_keys_only():
    from transformers import AutoModelForCausalLM, MistralConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=100, num_hidden_layers=3, sliding_window=8, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    roles = torch.tensor([[Role.SYSTEM] * 2 + [Role.IMAGE] * 9 + [Role.QUERY] * 4])
    inputs = {"input_ids": torch.arange(15)[None] + 5}
    gaze = regaze.wrap(model)
    with gaze.using(FastV(first_layer=1), tokens=TokenMap.from_roles(roles)):
        with pytest.raises(UnsupportedModelError, match="the cache has a DynamicSlidingWindowLayer"):
            model(**inputs)
        got = model(**inputs, use_cache=False).logits  # what each row may see is known there
    with gaze.using(FastV(first_layer=1, remove=False), tokens=TokenMap.from_roles(roles)):
        want = model(**inputs).logits
    torch.testing.assert_close(got[:, 11:], want[:, 11:], rtol=1e-4, atol=1e-5)


def test_several_beams_keep_what_their_prompt_keeps(gaze):
    """In a batch of two prompts: the beams of each are those that it has alone."""
    inputs, found = inputs_of(gaze, slice(0, 2)), []
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    for method in (Every((2,)), Every((2,), hide=True)):
        with gaze.using(method):
            found.append(gaze.model.generate(**inputs, **options))
    assert torch.equal(*found)


def test_text_alone_is_left_alone(model):
    gaze = regaze.wrap(tiny_llava(seed=2), llava_processor())
    inputs = gaze.inputs([None], ["What?"])
    plain = logits_of(gaze.model, inputs)
    for method in (FastV(), PyramidDrop(), SparseVLM()):
        with gaze.using(method):
            assert torch.equal(logits_of(gaze.model, inputs), plain)


def test_roles_that_are_given_choose_what_leaves():
    model, roles = tiny_llama(), torch.tensor([[2, 3, 3, 3, 3, 3, 3, 5, 5, 6]])
    inputs = {"input_ids": torch.arange(10)[None] + 10}
    gaze, outputs = regaze.wrap(model), []
    for method in (FastV(dropped=0.7), FastV(dropped=0.7, remove=False)):
        with gaze.using(method, tokens=TokenMap.from_roles(roles)):
            outputs.append(logits_of(model, inputs))
    assert_same_scores(*outputs, tolerance=2e-5)
