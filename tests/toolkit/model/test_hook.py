"""Sessions of one model: what a callback is called with, in which order, and what is undone at their end."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import llava_processor, logits_of, picture, tiny_llama, tiny_llava
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MambaConfig,
    MambaForCausalLM,
    StaticCache,
)

import regaze
from regaze import HeadKnockout, Role, TokenMap
from regaze.errors import CompositionError, InputError, UnsupportedModelError
from regaze.kernels import AttentionEdit
from regaze.toolkit.model import compat, hook
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.session import Session
from regaze.toolkit.model.stack import Branch

KNOCK = HeadKnockout(heads=((1, 1), (0, 2)))


class Spy(Callback):
    """Writes down what it is called with."""

    def __init__(self, name: str = "", records: bool = False):
        self.name, self.records = name, records  # type: ignore[misc]
        self.calls: list[tuple[Any, ...]] = []

    def prepare(self, context):
        self.calls.append(("prepare", context.prompt_length))

    def on_step(self, context, input_ids):
        ids = None if input_ids is None else input_ids.tolist()
        self.calls.append(("step", context.step, context.cache_length, ids))

    def on_generate(self):
        self.calls.append(("generate",))

    def on_chosen(self, sequences, ended):
        self.calls.append(("chosen", sequences[:, -1].tolist(), ended.tolist()))

    def edit(self, layer, step, context):
        self.calls.append(("edit", layer, step, context.cache_length, context.fed))


class Contrast(Callback):
    """The logits plus `weight` times those of a branch that is the prompt itself."""

    def __init__(self, weight: float = 0.5, cut: float = 0.0):
        self.weight, self.cut = weight, cut

    def branches(self, context):
        return {"again": Branch()}

    def combine_logits(self, context):
        return LogitsCombination(1.0, [(self.weight, context.logits("again"))], plausibility=self.cut)


class Longer(Callback):
    """A branch with four more tokens before the prompt, whose logits count nothing."""

    def branches(self, context):
        ids = torch.cat([torch.full((context.batch, 4), 7), context.input_ids], 1)
        mask = torch.cat([torch.ones(context.batch, 4).long(), context.visible.long()], 1)
        roles = torch.where(mask > 0, int(Role.QUERY), int(Role.PAD))
        inputs = {"input_ids": ids, "attention_mask": mask}
        return {"longer": Branch(inputs, TokenMap.from_roles(roles))}

    def combine_logits(self, context):
        return LogitsCombination(1.0, [(0.0, context.logits("longer"))])


class Doubled(Callback):
    """Twice the logits, without a branch."""

    def combine_logits(self, context):
        return LogitsCombination(2.0, [])


@pytest.fixture(scope="module")
def text() -> Any:
    return tiny_llama(num_hidden_layers=2)


@pytest.fixture(scope="module")
def prompt():
    """Two rows, the second padded on the left."""
    ids = torch.randint(15, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def reading(*callbacks: Callback) -> Session:
    """A session in which every token of a prompt is of the output."""
    return Session(callbacks, read_tokens=lambda given, mask: TokenMap.from_roles(given["input_ids"] * 0))


def step_after(model: Any, prompt: Any, out: Any, step: int = 1, **options: Any) -> Any:
    """The output of the n-th step with token 20 over the cache of a prefill."""
    mask = F.pad(prompt["attention_mask"], (0, step), value=1)
    return model(torch.full((2, 1), 20), mask, past_key_values=out.past_key_values, **options)


# Sessions -------------------------------------------------------------------------------------------------


def test_sessions_come_and_go_and_recordings_come_last(text):
    first, record, last = (Session((Spy(name, name == "record"),)) for name in ("first", "record", "last"))
    assert hook.hook_of(text) is None
    assert hook.open_callbacks(text) == ()
    hook.close_session(text, first)  # nothing is open
    for session in (first, record, last):
        hook.open_session(text, session)
    assert [each.name for each in hook.open_callbacks(text)] == ["first", "last", "record"]
    opened = hook.hook_of(text)
    assert text.config._attn_implementation == "regaze"
    hook.close_session(text, Session(()))  # one that was never opened
    hook.close_session(text, first)
    hook.close_session(text, first)
    assert [each.name for each in hook.open_callbacks(text)] == ["last", "record"]
    assert hook.hook_of(text) is opened
    for session in (record, last):
        hook.close_session(text, session)
    assert hook.hook_of(text) is None
    assert text.config._attn_implementation == "sdpa"
    assert not [key for module in text.modules() for key in module.__dict__ if "regaze" in key]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in text.modules())


def test_a_second_recording_is_refused_and_the_first_goes_on(text, prompt):
    gaze = regaze.wrap(text)
    with gaze.recording(masses=False, entropy=True) as record:
        with (
            pytest.raises(
                CompositionError,
                match=r"^a recording is already open on .* in one gaze\.recording$",
            ),
            gaze.recording(masses=False, lse=True),
        ):
            pass
        with gaze.using(KNOCK):
            text(**prompt)
    assert record[0].entropy.shape[0] == 2


def test_a_model_with_an_open_block_is_not_copied(text):
    refusal = "this LlamaForCausalLM has an open"
    with regaze.wrap(text).using(KNOCK):
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(InputError, match=refusal):
                duplicate(text)
            with pytest.raises(InputError, match=refusal):
                duplicate(hook.hook_of(text))


def test_another_thread_is_refused_by_the_name_of_the_model(gaze, model):
    inputs = gaze.inputs([picture(1)], ["What?"])
    calls = (
        lambda: model(**inputs),
        lambda: model.generate(**inputs, max_new_tokens=1),
        lambda: hook.open_session(model.model.language_model, Session(())),
        lambda: model.get_input_embeddings()(inputs["input_ids"]),  # which belongs to no block
    )
    with gaze.using(KNOCK), ThreadPoolExecutor(1) as pool:
        *refused, allowed = [pool.submit(call).exception() for call in calls]
    for error in refused:
        assert isinstance(error, InputError)
        assert str(error).startswith("this LlavaForConditionalGeneration has a gaze.using(...) or")
    assert allowed is None


def test_a_model_without_attention_is_refused():
    sizes = {"hidden_size": 8, "state_size": 2, "num_hidden_layers": 1, "vocab_size": 10}
    refusal = r"^MambaForCausalLM has no attention modules that regaze can reach$"
    model = MambaForCausalLM(MambaConfig(**sizes))
    with pytest.raises(UnsupportedModelError, match=refusal):
        hook.open_session(model, Session(()))
    hook.close_session(model, Session(()))


def test_hooks_whose_handles_an_interrupt_has_lost_are_found(text, prompt):
    """It may come after a hook was registered and before its handle was kept."""

    class Interrupting(Callback):
        needs_hidden_states = True

        def edit(self, layer, step, context):
            opened._layer_hooks._handles.clear()
            raise KeyboardInterrupt

    outer, session = reading(KNOCK), reading(Interrupting())
    hook.open_session(text, outer)
    opened = hook.hook_of(text)
    hook.open_session(text, session)
    with pytest.raises(KeyboardInterrupt):
        text(**prompt)
    hook.close_session(text, session)
    assert not any(layer._forward_pre_hooks for layer in text.model.layers)
    opened._handles.clear()
    hook.close_session(text, outer)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in text.modules())


def test_nothing_holds_a_session_that_has_ended(text, prompt):
    hook.open_session(text, outer := reading(Spy()))
    hook.open_session(text, inner := reading(Contrast()))
    text(**prompt)
    hook.close_session(text, inner)
    gone = weakref.ref(inner)
    del inner
    gc.collect()
    assert gone() is None
    hook.close_session(text, outer)


def test_another_attention_inside_a_block_is_refused(prompt):
    """The model would run as if there were no block."""
    model = tiny_llama(num_hidden_layers=2)
    gaze = regaze.wrap(model)
    with gaze.using(HeadKnockout(heads=[(0, 0)])):
        edited = model(**prompt).logits[:, -1]
        model.set_attn_implementation("eager")
        with pytest.raises(InputError, match=r"attention was set to 'eager' inside gaze\.using"):
            model(**prompt)
    model.set_attn_implementation("eager")
    with gaze.using(HeadKnockout(heads=[(0, 0)])):
        torch.testing.assert_close(model(**prompt).logits[:, -1], edited)


def test_suspended_blocks_take_part_in_nothing(text, prompt):
    plain, spy = text(**prompt).logits, Spy()
    with hook.suspended(text):
        assert torch.equal(text(**prompt).logits, plain)
    with regaze.wrap(text).using(KNOCK, spy):
        edited = text(**prompt).logits
        with hook.suspended(text):
            called = len(spy.calls)
            assert torch.equal(text(**prompt).logits, plain)
            assert len(spy.calls) == called
            assert hook.open_callbacks(text) == ()
        assert torch.equal(text(**prompt).logits, edited)
        assert hook.open_callbacks(text) == (KNOCK, spy)
    assert not torch.equal(edited, plain)


# What callbacks see ---------------------------------------------------------------------------------------


def test_a_callback_is_called_in_the_order_of_a_generation(text, prompt):
    with regaze.wrap(text).using(spy := Spy()):
        out = text.generate(**prompt, max_new_tokens=2, do_sample=False, eos_token_id=None)
    one, two = out[:, 9].tolist(), out[:, 10].tolist()
    assert spy.calls == [
        ("generate",),
        ("prepare", 9),
        ("step", 0, 0, prompt["input_ids"].tolist()),
        ("edit", 0, 0, 0, 9),
        ("edit", 1, 0, 0, 9),
        ("chosen", one, [False, False]),
        ("step", 1, 9, [[token] for token in one]),
        ("edit", 0, 1, 9, 1),
        ("edit", 1, 1, 9, 1),
        ("chosen", two, [True, True]),
    ]


def test_arguments_may_be_given_by_position(text, prompt):
    with regaze.wrap(text).using(spy := Spy(), KNOCK):
        named = text(**prompt).logits
        by_position = text(prompt["input_ids"], prompt["attention_mask"]).logits
        mixed = text(prompt["input_ids"], attention_mask=prompt["attention_mask"]).logits
    assert torch.equal(named, by_position)
    assert torch.equal(named, mixed)
    assert spy.calls == spy.calls[:4] * 3
    assert spy.calls[1] == ("step", 0, 0, prompt["input_ids"].tolist())


def test_embeddings_have_no_ids_and_are_counted(text, prompt):
    embeds = text.get_input_embeddings()(prompt["input_ids"])
    with regaze.wrap(text).using(spy := Spy()):
        text(inputs_embeds=embeds, attention_mask=prompt["attention_mask"])
        with pytest.raises(InputError, match=r"^the model was called without input_ids and inputs_embeds$"):
            text(attention_mask=prompt["attention_mask"])
    assert spy.calls[:3] == [("prepare", 9), ("step", 0, 0, None), ("edit", 0, 0, 0, 9)]


def test_without_callbacks_a_forward_is_the_plain_one(text, prompt):
    """Also over a cache that no block knows."""
    out = text(**prompt)
    with regaze.wrap(text).using():
        assert torch.equal(text(**prompt).logits, out.logits)
        step_after(text, prompt, out)


def test_a_prompt_without_a_cache_is_a_prompt_each_time(text, prompt):
    with regaze.wrap(text).using(spy := Spy()):
        for _ in range(2):
            text(**prompt, use_cache=False)
    assert spy.calls == spy.calls[:4] * 2


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_cache_is_as_long_as_what_was_fed(text, prompt, cache):
    options = {} if cache == "dynamic" else {"cache_implementation": "static", "disable_compile": True}
    with regaze.wrap(text).using(spy := Spy()):
        text.generate(**prompt, max_new_tokens=4, do_sample=False, eos_token_id=None, **options)
    steps = [call[1:3] for call in spy.calls if call[0] == "step"]
    assert steps == [(0, 0), (1, 9), (2, 10), (3, 11)]


def test_a_static_cache_is_asked_for_its_length_only_after_a_failure(text, prompt, monkeypatch):
    """Its length lies on its device."""

    class FailsAtStep(Callback):
        at = 2

        def edit(self, layer, step, context):
            if layer == 1 and step == self.at:
                raise RuntimeError("once")

    def length(*args: Any) -> None:
        raise AssertionError("the host waits")

    cache = StaticCache(text.config, max_cache_len=16)
    with regaze.wrap(text).using(FailsAtStep()):
        out = text(**prompt, past_key_values=cache)
        for expected in (9, 10):
            with monkeypatch.context() as patch:
                patch.setattr(StaticCache, "get_seq_length", length)
                assert compat.cache_length(cache) == expected
            if expected == 9:
                step_after(text, prompt, out)
        with pytest.raises(RuntimeError, match="once"):
            step_after(text, prompt, out, 2)
        assert compat.cache_length(cache) == 11  # of its first layer, which ran


def test_weights_are_returned_where_a_forward_is_asked_for_them(text, prompt):
    with regaze.wrap(text).using(Spy()):
        assert text(**prompt).attentions is None
        found = text(**prompt, output_attentions=True).attentions
    text.set_attn_implementation("eager")
    try:
        want = text(**prompt, output_attentions=True).attentions
    finally:
        text.set_attn_implementation("sdpa")
    for ours, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(ours[:, :, -1], theirs[:, :, -1], rtol=1e-4, atol=1e-5)


def test_a_vision_model_is_fed_no_tokens():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).eval()
    with regaze.wrap(tower).using(spy := Spy()):
        tower(pixel_values=torch.zeros(1, 3, 8, 8))
    assert spy.calls[1:] == [("step", 0, 0, None), ("edit", 0, 0, 0, 0)]


def test_after_a_failed_forward_the_next_one_begins_anew(text, prompt):
    class FailsOnce(Callback):
        failed = False

        def edit(self, layer, step, context):
            if layer == 1 and not self.failed:
                self.failed = True
                raise RuntimeError("once")

    with regaze.wrap(text).using(KNOCK):
        edited = text(**prompt).logits
    with regaze.wrap(text).using(FailsOnce(), KNOCK):
        with pytest.raises(RuntimeError, match="once"):
            text(**prompt)
        with pytest.raises(InputError, match="a part of the wrapped model was called by itself"):
            text.model(**prompt)
        assert torch.equal(text(**prompt).logits, edited)


def test_only_the_sessions_that_saw_the_prompt_go_on_from_its_cache(text, prompt):
    gaze = regaze.wrap(text)
    message = (
        r"^this key-value cache was filled outside the open .*; run .* its continuation inside one block$"
    )
    refusal = pytest.raises(InputError, match=message)
    out = text(**prompt)
    with gaze.using(KNOCK), refusal:
        step_after(text, prompt, out)
    with gaze.using(KNOCK):
        out = text(**prompt)
        with gaze.using(Spy()), refusal:
            step_after(text, prompt, out)
        step_after(text, prompt, out)
    with gaze.using(KNOCK), refusal:  # another block, though of the same callback
        step_after(text, prompt, out)


def test_prompt_and_steps_of_an_inner_block_go_on_in_the_outer_one(text, prompt):
    gaze = regaze.wrap(text)
    with gaze.using(spy := Spy()):
        with gaze.using(KNOCK):
            out = text(**prompt)
        step_after(text, prompt, out)
    assert [call[1:3] for call in spy.calls if call[0] == "step"] == [(0, 0), (1, 9)]


def test_ids_that_an_outer_model_embeds_are_those_of_the_prompt():
    model = tiny_llava()
    inputs = regaze.wrap(model, llava_processor()).inputs([picture(1)], ["What?"])
    part, seen = model.model.language_model, []

    class Reads(Callback):
        def prepare(self, context):
            seen.append(context.input_ids)
            context.extra_forward(context.inputs, Callback())  # of the embeddings, with or without their ids

        def edit(self, layer, step, context):  # a part that embeds something else meanwhile
            model.get_input_embeddings()(torch.zeros_like(inputs["input_ids"]))

    session = reading(Reads())
    hook.open_session(part, session, model)
    try:
        model(**inputs)
        embeds = model.get_input_embeddings()(input=inputs["input_ids"])  # by name: nothing is noted
        part(inputs_embeds=embeds)
        part(inputs_embeds=embeds[:, :3])  # not what was embedded
    finally:
        hook.close_session(part, session)
    assert torch.equal(seen[0], inputs["input_ids"])
    assert torch.equal(seen[1], inputs["input_ids"])
    assert seen[2] is None
    assert not model.get_input_embeddings()._forward_pre_hooks


def test_the_tokens_of_an_encoder_are_those_it_reads():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 50}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartForConditionalGeneration(BartConfig(**sizes, **heads, encoder_layers=1, decoder_layers=1))
    seen = []

    class Reads(Callback):
        def edit_cross(self, layer, step, context):
            seen.append(context.encoder_tokens)

    ids = torch.randint(5, 40, (2, 7))
    with regaze.wrap(bart.eval()).using(Reads()):
        bart(input_ids=ids, decoder_input_ids=ids[:, :3])
        bart(encoder_outputs=bart.get_encoder()(ids), decoder_input_ids=ids[:, :3])
    read, encoded_before = seen
    assert (read.length, read.roles.unique().tolist()) == (7, [int(Role.QUERY)])
    assert encoded_before is None


class Pixels(Callback):
    """Keeps the pixels that the forward of a prompt is given."""

    needs_pixels = True

    def prepare(self, context):
        self.pixels = context.inputs.get("pixel_values")


class PixelsOfBranches(Pixels):
    needs_pixels = False

    def branches(self, context):
        return {"again": Branch()}


class PixelsByChance(Pixels):
    needs_pixels = False


def test_generate_hands_pixels_to_callbacks_that_read_them(gaze, model):
    inputs = gaze.inputs([[picture(1), picture(2)], picture(3)], ["Which?", "What?"])
    first, second, third = inputs["pixel_values"].unbind()
    for callback in (Pixels(), PixelsOfBranches()):
        with gaze.using(callback):
            model.generate(**inputs, max_new_tokens=1)
            assert torch.equal(callback.pixels, inputs["pixel_values"])
            model.generate(**inputs, max_new_tokens=1, num_beams=2)
            want = torch.stack([first, second, first, second, third, third])
            assert torch.equal(callback.pixels, want)
    with gaze.using(callback := PixelsByChance()):
        model.generate(**inputs, max_new_tokens=1)
        assert (callback.pixels is None) == hasattr(model, "_supports_mm_encoder_outputs")


# Adopted caches and replays -------------------------------------------------------------------------------


def test_an_adopted_cache_is_continued_by_the_last_row_of_its_prompt(text, prompt):
    before = {name: value[:, :-1] for name, value in prompt.items()}
    last = {"input_ids": prompt["input_ids"][:, -1:], "attention_mask": prompt["attention_mask"]}
    hook.adopt_cache(text, None, prompt)  # without a block there is nobody to go on
    with regaze.wrap(text).using(spy := Spy()):
        with hook.suspended(text):
            cache = text(**before).past_key_values
        hook.adopt_cache(text, cache, prompt)
        out = text(**last, past_key_values=cache)
        for step in (1, 2):
            step_after(text, prompt, out, step)
    torch.testing.assert_close(out.logits[:, -1], text(**prompt).logits[:, -1], rtol=1e-4, atol=1e-4)
    assert [call[0] for call in spy.calls[:2]] == ["prepare", "step"]
    assert [call[1:3] for call in spy.calls if call[0] == "step"] == [(1, 8), (1, 9), (2, 10)]


def test_a_cache_of_one_context_cannot_be_adopted_by_several(text, prompt):
    cache = text(**prompt).past_key_values
    with (
        regaze.wrap(text).using(Contrast()),
        pytest.raises(UnsupportedModelError, match=r"^a cache that one context has filled cannot go on as"),
    ):
        hook.adopt_cache(text, cache, prompt)


class Replays(Callback):
    """Halves two heads of the first layer in the last row, as the second layer wants it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, bool, int]] = []

    def prepare(self, context):
        context.state(self)["edit"] = AttentionEdit(head_gain=torch.tensor([[1.0, 0.5, 0.5, 1.0, 1.0, 1.0]]))

    def edit(self, layer, step, context):
        self.seen.append((layer, step, context.replaying, context.cache_length))
        if layer == 1 and step == 0:
            context.replay_last_row()
        return context.state(self)["edit"] if layer == 0 and step else None


def test_a_replay_is_a_step_over_the_prompt_before_its_last_token(text, prompt):
    with regaze.wrap(text).using(replays := Replays()):
        out = text(**prompt, use_cache=True)
        after = step_after(text, prompt, out)
    assert replays.seen == [
        *[(0, 0, False, 0), (1, 0, False, 0)],
        *[(0, 1, True, 8), (1, 1, True, 8)],
        *[(0, 1, False, 9), (1, 1, False, 9)],
    ]
    plain = text(**prompt)
    assert torch.equal(out.logits[:, :-1], plain.logits[:, :-1])
    assert not torch.allclose(out.logits[:, -1], plain.logits[:, -1], atol=1e-3)
    assert after.past_key_values.get_seq_length() == 10
    with regaze.wrap(text).using(Replays()):
        by_position = text(prompt["input_ids"], prompt["attention_mask"], use_cache=True)
    assert torch.equal(by_position.logits, out.logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_dict": False}, "^an intervention that changes the logits .* return_dict=True$"),
        ({"use_cache": False}, "^an intervention that reads later layers .* the cache: use_cache=True$"),
        ({"attention_mask": torch.tensor([[1] * 9, [1] * 8 + [0]])}, "^prompts must be padded on the left"),
    ],
)
def test_what_a_replay_needs_is_named(text, prompt, options, message):
    with regaze.wrap(text).using(Replays()):
        with pytest.raises(InputError, match=message):
            text(**{**prompt, "use_cache": True, **options})
        text(**prompt, use_cache=True)


# Combined logits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_rows_of_a_branch_are_seen_by_nobody(text, prompt, weight):
    """Outputs, cache and records have the user's rows, during the block and after it."""
    plain = text(**prompt, output_hidden_states=True)
    with regaze.wrap(text).using(Contrast(weight)):
        out = text(**prompt, output_hidden_states=True)
        assert out.past_key_values.layers[0].keys.shape[0] == 4
        after = step_after(text, prompt, out)
    torch.testing.assert_close(out.logits, (1 + weight) * plain.logits, rtol=1e-4, atol=1e-4)
    assert after.logits.shape == (2, 1, plain.logits.shape[2])
    for ours, theirs in zip(out.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    cache = out.past_key_values
    assert type(cache) is type(plain.past_key_values)
    assert (cache.layers[0].keys.shape[0], cache.get_seq_length()) == (2, 10)


def test_positions_that_the_user_gives_are_those_of_the_users_rows(text, prompt):
    positions = 3 * torch.arange(9).expand(2, -1)
    plain = text(**prompt, position_ids=positions)
    with regaze.wrap(text).using(Contrast(0.0)):
        out = text(**prompt, position_ids=positions)
    torch.testing.assert_close(out.logits, plain.logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out.logits, text(**prompt).logits, atol=1e-2)


def test_shorter_prompts_are_padded_as_the_model_pads(text, prompt):
    class Reads(Longer):
        def prepare(self, context):
            self.ids = context.input_ids

    with regaze.wrap(text).using(reads := Reads()):
        text(**prompt)
    assert reads.ids[:2].tolist() == [[3] * 4 + row for row in prompt["input_ids"].tolist()]
    assert reads.ids[2:].tolist() == [[7] * 4 + row for row in prompt["input_ids"].tolist()]


def test_the_columns_of_a_longer_branch_are_seen_by_nobody(text, prompt):
    wanted = {"output_hidden_states": True, "output_attentions": True}
    text.set_attn_implementation("eager")
    try:
        plain = text(**prompt, **wanted)
        plain_step = step_after(text, prompt, plain)
        with regaze.wrap(text).using(Longer()):
            out = text(**prompt, **wanted)
            cache = out.past_key_values
            assert cache.get_seq_length() == 9
            step = step_after(text, prompt, out, **wanted)
            assert cache.get_seq_length() == 10
    finally:
        text.set_attn_implementation("sdpa")
    visible = prompt["attention_mask"].bool()
    torch.testing.assert_close(out.logits[visible], plain.logits[visible], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(step.logits, plain_step.logits, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(out.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(ours[visible], theirs[visible], rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(out.attentions, plain.attentions, strict=True):
        torch.testing.assert_close(ours[:, :, -1], theirs[:, :, -1], rtol=1e-4, atol=1e-5)
        assert ours.shape == (2, 6, 9, 9)
    assert [state.shape for state in step.hidden_states] == [(2, 1, 48)] * 3
    assert [weights.shape for weights in step.attentions] == [(2, 6, 1, 10)] * 2
    assert cache.layers[1].keys.shape == (2, 2, 10, 8)


def test_logits_are_combined_without_a_branch_too(text, prompt):
    plain = text(**prompt).logits
    with regaze.wrap(text).using(Doubled()):
        assert torch.equal(text(**prompt).logits, 2 * plain)
        with pytest.raises(InputError, match="needs outputs by name: return_dict=True"):
            text(**prompt, return_dict=False)

    class Abstains(Callback):
        def combine_logits(self, context):
            return None

    with regaze.wrap(text).using(Abstains()):
        assert torch.equal(text(**prompt).logits, plain)


def test_a_branch_that_nobody_combines_is_seen_by_nobody(text, prompt):
    class Unused(Callback):
        def branches(self, context):
            return {"again": Branch()}

    class Abstains(Unused):
        def combine_logits(self, context):
            return None

    plain = text(**prompt).logits
    for unused in (Unused(), Abstains()):
        with regaze.wrap(text).using(unused):
            torch.testing.assert_close(text(**prompt).logits, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 6, 12])
def test_a_static_cache_has_room_for_a_longer_branch(text, prompt, window):
    model = text
    if window is not None:
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
        layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**sizes, **layers, num_key_value_heads=1, vocab_size=64, sliding_window=window)
        ).eval()
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "output_logits": True}
    options |= {"cache_implementation": "static", "disable_compile": True, "return_dict_in_generate": True}
    plain = model.generate(**prompt, **options)
    with regaze.wrap(model).using(Longer()):
        out = model.generate(**prompt, **options)
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(plain.logits), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(out.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert ours.keys.shape == theirs.keys.shape


def test_of_branches_with_one_name_the_first_counts(text, prompt):
    class Named(Callback):
        def __init__(self, token):
            self.token, self.seen = token, []

        def branches(self, context):
            return {"other": Branch({"input_ids": torch.full_like(context.input_ids, self.token)})}

        def combine_logits(self, context):
            self.seen.append(context.logits("other"))

    with regaze.wrap(text).using(first := Named(20), second := Named(30)):
        out = text(**prompt)
        assert out.past_key_values.layers[0].keys.shape[0] == 4
    want = text(input_ids=torch.full((2, 9), 20), attention_mask=prompt["attention_mask"]).logits
    torch.testing.assert_close(first.seen[0], want, rtol=1e-4, atol=1e-4)
    assert torch.equal(first.seen[0], second.seen[0])


@pytest.mark.parametrize(
    ("guidance", "cut", "refused"), [(1.5, 0.1, True), (1.5, 0.0, False), (1, 0.1, False)]
)
def test_guidance_does_not_go_with_a_cut(text, prompt, guidance, cut, refused):
    one = {name: value[:1] for name, value in prompt.items()}
    options = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": None}

    class Cut(Callback):
        def combine_logits(self, context):
            return LogitsCombination(2.0, [], plausibility=cut)

    with regaze.wrap(text).using(Cut()):
        if refused:
            with pytest.raises(
                InputError, match=r"^guidance_scale of generate does not go with a method that"
            ):
                text.generate(**one, **options, guidance_scale=guidance)
        else:
            text.generate(**one, **options, guidance_scale=guidance)
        text.generate(**one, **options)  # the one before has ended


# Forwards aside -------------------------------------------------------------------------------------------


def test_a_forward_aside_runs_one_callback_and_leaves_the_other_alone(text, prompt):
    class Aside(Callback):
        def __init__(self):
            self.spy = Spy()

        def prepare(self, context):
            self.out = context.extra_forward(context.inputs, self.spy)

    plain = text(**prompt)
    with regaze.wrap(text).using(aside := Aside(), outer := Spy(), KNOCK), torch.enable_grad():
        first = text(**prompt).logits
        second = text(**prompt, return_dict=False)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, plain.logits)
    torch.testing.assert_close(aside.out.logits[:, -1], plain.logits[:, -1], rtol=1e-5, atol=1e-5)
    assert (aside.out.past_key_values, aside.out.logits.requires_grad) == (None, False)
    assert first.requires_grad
    assert [call[0] for call in aside.spy.calls] == ["prepare", "step", "edit", "edit"] * 2
    assert [call[0] for call in outer.calls] == ["prepare", "step", "edit", "edit"] * 2


def test_a_layers_mlp_is_edited_in_every_step(text, prompt):
    class Off(Callback):
        def edit_mlp(self, layer, hidden, context):
            return hidden * (layer != 1)

    with regaze.wrap(text).using(Off()):
        got = logits_of(text, prompt, 2)
    mlp = text.model.layers[1].mlp.down_proj
    kept = mlp.weight.data.clone()
    try:
        mlp.weight.data.zero_()
        torch.testing.assert_close(got, logits_of(text, prompt, 2), rtol=1e-5, atol=1e-5)
    finally:
        mlp.weight.data.copy_(kept)
