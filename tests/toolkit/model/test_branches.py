"""Branches: stacked second contexts, on a random LLaVA through stock `generate`."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from models import context_for, llava_processor, logits_of, picture, tiny_llama

import regaze
from regaze.errors import InputError
from regaze.interventions import HeadKnockout
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.branches import with_media, with_prompts, without_image, without_tokens
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.logits import LogitsCombination, combine
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role, TokenMap


class Contrast(Callback):
    """2 * main - branch, with the branch that `make` returns; keeps the logits of both."""

    def __init__(self, make, weight=1.0, name="other", cut=0.0):
        self.make, self.weight, self.name, self.cut = make, weight, name, cut
        self.seen: list[torch.Tensor] = []
        self.main: list[torch.Tensor] = []

    def branches(self, context):
        return {self.name: self.make(context)}

    def combine_logits(self, context):
        self.main.append(context.logits().clone())
        self.seen.append(context.logits(self.name).clone())
        return LogitsCombination(
            1 + self.weight, [(-self.weight, context.logits(self.name))], plausibility=self.cut
        )


def darker(context):
    return with_media(context, pixel_values=context.inputs["pixel_values"] * 0.3)


def last_half(context):
    """Drop the first half of the image's tokens."""
    image = context.tokens.mask(Role.IMAGE)
    return without_tokens(context, image & (image.cumsum(1) <= image.sum(1, keepdim=True) // 2))


def longer(context):
    """Three more tokens before everything."""
    prompts = [
        row[keep].tolist() for row, keep in zip(context.inputs["input_ids"], context.visible, strict=True)
    ]
    roles = [context.tokens.roles[i][keep] for i, keep in enumerate(context.visible)]
    longest = max(map(len, prompts)) + 3
    padded = torch.full((len(prompts), longest), int(Role.PAD))
    for row, values in enumerate(roles):
        padded[row, longest - len(values) - 3 :] = torch.cat([torch.full((3,), int(Role.SYSTEM)), values])
    return with_prompts(context, [[7, 8, 9, *prompt] for prompt in prompts], TokenMap.from_roles(padded))


BRANCHES = {"image": darker, "none": without_image, "tokens": last_half, "prompt": longer}


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(0), picture(1)], ["What is there?", "Is there a dog in this picture here?"])


def fresh_logits(model, gaze, make, inputs, answer):
    """What the branch predicts after `answer` [B, T], by a forward of its own without a cache."""
    with gaze.using(grab := Grab(make)):
        model.generate(**inputs, max_new_tokens=1)
    branch = {**inputs, **grab.branch.inputs}
    branch = {name: value for name, value in branch.items() if value is not None}
    branch["input_ids"] = torch.cat([branch["input_ids"], answer], 1)
    mask = branch["attention_mask"]
    branch["attention_mask"] = torch.cat([mask, torch.ones_like(answer)], 1)
    branch["position_ids"] = (branch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        return model(**branch).logits[:, -1]


class Grab(Callback):
    def __init__(self, make):
        self.make = make

    def branches(self, context):
        self.branch = self.make(context)
        return {}


@pytest.mark.parametrize("kind", BRANCHES)
def test_branch_logits_at_every_step_equal_a_fresh_forward_of_the_branch(model, gaze, inputs, kind):
    contrast = Contrast(BRANCHES[kind])
    with gaze.using(contrast):
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    answer = out[:, inputs["input_ids"].shape[1] :]
    assert answer.shape == (2, 4)
    assert len(contrast.seen) == 4
    for step in range(4):
        fresh = fresh_logits(model, gaze, BRANCHES[kind], inputs, answer[:, :step])
        torch.testing.assert_close(contrast.seen[step][:, -1], fresh, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(contrast.main[step], contrast.seen[step], atol=1e-3)


@pytest.mark.parametrize("kind", BRANCHES)
def test_weight_zero_changes_no_token_and_the_batch_comes_back_at_its_own_size(model, gaze, inputs, kind):
    plain = logits_of(model, inputs)
    with gaze.using(Contrast(BRANCHES[kind], weight=0.0)):
        out = model.generate(
            **inputs,
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    torch.testing.assert_close(torch.stack(out.logits), plain, rtol=1e-4, atol=1e-4)
    assert out.sequences.shape[0] == 2
    assert all(hidden.shape[0] == 2 for step in out.hidden_states for hidden in step)
    assert out.past_key_values.layers[0].keys.shape[0] == 2  # the branches' rows left with the block


@pytest.mark.parametrize("kind", BRANCHES)
def test_the_combined_logits_do_not_depend_on_the_batch_or_the_padding(model, gaze, inputs, kind):
    questions = ["What is there?", "Is there a dog in this picture here?"]
    with gaze.using(Contrast(BRANCHES[kind], cut=0.05)):
        both = logits_of(model, inputs)
        for row, question in enumerate(questions):
            alone = logits_of(model, gaze.inputs([picture(row)], [question]))
            torch.testing.assert_close(both[:, row], alone[:, 0], rtol=1e-3, atol=1e-3)


def test_two_contrasts_add_up_and_one_name_is_one_branch(model, gaze, inputs):
    a, b = Contrast(darker, name="dark"), Contrast(without_image, name="none")
    with gaze.using(a, b):
        both = logits_of(model, inputs, tokens=1)[0]
    want = a.main[0] + (a.main[0] - a.seen[0]) + (a.main[0] - b.seen[0])
    torch.testing.assert_close(both, want[:, -1], rtol=1e-4, atol=1e-4)
    again = Contrast(darker, name="dark")
    with gaze.using(a, again):
        logits_of(model, inputs, tokens=1)
    assert torch.equal(a.seen[-1], again.seen[0])


def test_sampling_draws_once_and_streams(model, gaze, inputs):
    class Streamer:
        def __init__(self):
            self.rows = []

        def put(self, value):
            self.rows.append(value.shape)

        def end(self):
            pass

    one = {name: value[:1] for name, value in gaze.inputs([picture(0)], ["What is there?"]).items()}
    streamer = Streamer()
    options = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 1.5, "max_new_tokens": 6}
    with gaze.using(Contrast(darker)):
        torch.manual_seed(0)
        first = model.generate(**one, **options, eos_token_id=None, streamer=streamer)
        torch.manual_seed(0)
        assert torch.equal(first, model.generate(**one, **options, eos_token_id=None))
    assert len(streamer.rows) == 7
    assert first.shape[0] == 1


def test_rows_that_end_early_leave_the_others_as_they_were(model, gaze, inputs):
    contrast = Contrast(darker)
    length = inputs["input_ids"].shape[1]
    with gaze.using(contrast):
        whole = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)[:, length:]
        stop = int(whole[0, 2])
        ended = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=stop)[:, length:]
    for row in range(2):
        until = whole[row].tolist()
        until = until[: until.index(stop) + 1] if stop in until else until
        assert ended[row, : len(until)].tolist() == until


class Counting(Contrast):
    """Keeps the sum of the fed tokens' logits per sequence, to see that it follows the beams."""

    def prepare(self, context):
        context.row_state(self)["fed"] = torch.zeros(context.batch, 0)

    def combine_logits(self, context):
        kept = context.row_state(self)
        step = torch.arange(context.batch)[:, None] * 0.0 + context.step
        kept["fed"] = torch.cat([kept["fed"], step], 1)
        self.shape = kept["fed"].shape
        return super().combine_logits(context)


@pytest.mark.parametrize("kind", ["image", "none", "prompt"])
def test_beam_search_reorders_the_rows_of_every_branch(model, gaze, kind):
    """The best beam's score equals the sum of its own log-probabilities under the combined logits."""
    inputs = gaze.inputs([picture(0)], ["What is there?"])
    contrast = Counting(BRANCHES[kind])
    with gaze.using(contrast):
        out = model.generate(
            **inputs,
            num_beams=3,
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    answer = out.sequences[:, inputs["input_ids"].shape[1] :]
    assert contrast.shape == (6, 5)
    total = 0.0
    for step in range(answer.shape[1]):
        main = fresh_logits(model, gaze, lambda context: Branch(), inputs, answer[:, :step])
        other = fresh_logits(model, gaze, BRANCHES[kind], inputs, answer[:, :step])
        total += float((2 * main - other).log_softmax(-1)[0, answer[0, step]])
    assert float(out.sequences_scores[0]) == pytest.approx(total, abs=1e-3)


def test_static_cache_and_a_long_forward_give_the_same(model, gaze, inputs):
    with gaze.using(Contrast(darker)):
        dynamic = logits_of(model, inputs)
        static = model.generate(
            **inputs,
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
            cache_implementation="static",
        )
        torch.testing.assert_close(torch.stack(static.logits), dynamic, rtol=1e-4, atol=1e-4)
        answer = static.sequences[:, inputs["input_ids"].shape[1] :]
        whole = {
            **inputs,
            "input_ids": static.sequences,
            "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(answer)], 1),
        }
        with torch.no_grad():
            full = model(**whole).logits
    torch.testing.assert_close(full[:, -6:-1].transpose(0, 1), dynamic, rtol=1e-3, atol=1e-3)


def test_edits_act_on_every_branch_and_a_record_holds_the_users_rows(model, gaze, inputs):
    knockout = HeadKnockout(heads=((2, 1), (3, 4)))
    contrast = Contrast(darker)
    with gaze.using(knockout, contrast), gaze.recording(masses=True) as record:
        model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    alone = Contrast(darker)
    with gaze.using(knockout):
        plain = logits_of(model, inputs, tokens=1)[0]
    with gaze.using(alone):
        logits_of(model, inputs, tokens=1)
    torch.testing.assert_close(contrast.main[0][:, -1], plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(contrast.seen[0], alone.seen[0], atol=1e-3)
    trace = record.traces[0]
    assert (trace.masses.shape[1], trace.tokens.batch, len(trace.text)) == (2, 2, 2)
    with gaze.using(knockout), gaze.recording(masses=True) as single:
        model.generate(**inputs, max_new_tokens=1, do_sample=False, eos_token_id=None)
    torch.testing.assert_close(
        trace.masses[:, :, :, :1], single.traces[0].masses[:, :, :, :1], rtol=1e-4, atol=1e-5
    )


def test_blanked_embeddings(model, gaze, inputs):
    """A gain of 0 on every image embedding is the same as a picture whose features are 0."""

    def blank(context):
        image = context.tokens.mask(Role.IMAGE)
        return Branch(embedding_gain=(~image).float())

    contrast = Contrast(blank)
    with gaze.using(contrast):
        logits_of(model, inputs, tokens=1)
    handle = model.model.multi_modal_projector.register_forward_hook(lambda *args: args[-1] * 0)
    try:
        zeros = logits_of(model, inputs, tokens=1)[0]
    finally:
        handle.remove()
    torch.testing.assert_close(contrast.seen[0][:, -1], zeros, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_branched_says_so(model, gaze, inputs):
    with gaze.using(Contrast(lambda context: Branch())):
        embeds = torch.zeros(1, 4, model.config.text_config.hidden_size)
        with pytest.raises(InputError, match="inputs_embeds"):
            model.generate(inputs_embeds=embeds, max_new_tokens=1)
        with pytest.raises(InputError, match="labels"):
            model(**inputs, labels=inputs["input_ids"])
    with gaze.using(Contrast(without_image)), pytest.raises(InputError, match="no prompt has an image"):
        model.generate(**gaze.inputs([None], ["What is there?"]), max_new_tokens=1)
    wrong = Contrast(lambda context: with_media(context, pixel_values=torch.zeros(1)))
    with gaze.using(wrong), pytest.raises(InputError, match="pixel_values is"):
        model.generate(**inputs, max_new_tokens=1)
    with pytest.raises(InputError, match="logits exist only"):
        context_for([[2, 5]]).logits()


def test_the_model_is_as_before_after_a_branch_failed(model, gaze, inputs):
    class Broken(Contrast):
        def combine_logits(self, context):
            raise RuntimeError("broken")

    plain = logits_of(model, inputs)
    with pytest.raises(RuntimeError, match="broken"), gaze.using(Broken(darker)):
        model.generate(**inputs, max_new_tokens=2)
    assert torch.equal(logits_of(model, inputs), plain)


def test_a_text_model_takes_branches_too():
    llama = tiny_llama()
    gaze = regaze.wrap(llama, llava_processor().tokenizer)
    inputs = gaze.inputs([None, None], ["What is there?", "Is there a dog?"])
    contrast = Contrast(longer)
    with gaze.using(contrast):
        out = llama.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    answer = out[:, inputs["input_ids"].shape[1] :]
    fresh = fresh_logits(llama, gaze, longer, inputs, answer[:, :2])
    torch.testing.assert_close(contrast.seen[2][:, -1], fresh, rtol=1e-4, atol=1e-4)


# Layers, MLPs, forwards aside, replays -----------------------------------------------------------------


def test_layer_logits_are_those_of_the_hidden_states(model, gaze, inputs):
    class Early(Callback):
        def prepare(self, context):
            context.capture_hidden((0, 3, context.num_layers))

        def combine_logits(self, context):
            self.logits = [context.layer_logits(n) for n in (0, 3)]
            self.last = context.layer_logits(context.num_layers, normalise=True)
            self.main = context.logits()

    early = Early()
    with gaze.using(early), torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    for layer, logits in zip((0, 3), early.logits, strict=True):
        torch.testing.assert_close(logits, model.lm_head(out.hidden_states[layer]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(early.last, early.main, rtol=1e-4, atol=1e-4)


def test_mlp_outputs_can_be_changed(model, gaze, inputs):
    @dataclass(frozen=True)
    class Off(Callback):
        factor: float = 0.0

        def edit_mlp(self, layer, hidden, context):
            return hidden * self.factor if layer == 2 else hidden

    plain = logits_of(model, inputs)
    with gaze.using(Off(1.0)):
        assert torch.equal(logits_of(model, inputs), plain)
    with gaze.using(Off()):
        off = logits_of(model, inputs)
    down = model.model.language_model.layers[2].mlp.down_proj
    kept = down.weight.data.clone()
    try:
        down.weight.data.zero_()
        torch.testing.assert_close(logits_of(model, inputs), off, rtol=1e-4, atol=1e-4)
    finally:
        down.weight.data.copy_(kept)
    assert torch.equal(logits_of(model, inputs), plain)


def test_an_extra_forward_runs_one_callback_alone(model, gaze, inputs):
    class Peek(Callback):
        def prepare(self, context):
            context.capture_hidden((1,))

        def combine_logits(self, context):
            self.hidden = context.captured_hidden(1)

    class Looks(Callback):
        def prepare(self, context):
            self.peek = Peek()
            self.out = context.extra_forward(without_media(context), self.peek).logits

    def without_media(context):
        return context.inputs

    looks = Looks()
    plain = logits_of(model, inputs)
    with gaze.using(looks, HeadKnockout(heads=((0, 0),))):
        edited = logits_of(model, inputs)
    torch.testing.assert_close(looks.out[:, -1], plain[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(edited, plain, atol=1e-3)
    assert looks.peek.hidden.shape[:2] == inputs["input_ids"].shape


class LastRowLater(Callback):
    """Halves a head of the last row in the first layers, chosen by statistics of a later layer."""

    def __init__(self, factor=0.5):
        self.factor = factor

    def edit(self, layer, step, context):
        if step == 0 and layer == 4:
            context.replay_last_row()
        if step == 0 or layer > 2:
            return None
        state = context.state(self)
        if "edit" not in state:
            gain = torch.ones(1, context.num_heads)
            gain[:, 1:3] = self.factor
            state["edit"] = AttentionEdit(head_gain=gain)
        return state["edit"]


def test_a_replayed_last_row_is_a_decode_step_over_the_prompt_before_it(model, gaze, inputs):
    gain = torch.ones(1, model.config.text_config.num_attention_heads, inputs["input_ids"].shape[1])
    gain[:, 1:3, -1] = 0.5

    class Direct(LastRowLater):
        def edit(self, layer, step, context):
            if layer > 2:
                return None
            return AttentionEdit(head_gain=gain) if step == 0 else super().edit(layer, step, context)

    with gaze.using(Direct()):
        want = logits_of(model, inputs)
    with gaze.using(LastRowLater()), gaze.recording(masses=True, rows="text") as record:
        got = logits_of(model, inputs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with gaze.using(Direct()), gaze.recording(masses=True, rows="text") as direct:
        logits_of(model, inputs)
    torch.testing.assert_close(record.traces[0].masses, direct.traces[0].masses, rtol=1e-4, atol=1e-5)
    with gaze.using(LastRowLater(1.0)):
        torch.testing.assert_close(logits_of(model, inputs), logits_of(model, inputs))
    right = {name: value.flip(1) if value.dim() == 2 else value for name, value in inputs.items()}
    with gaze.using(LastRowLater()), pytest.raises(InputError, match="left"), torch.no_grad():
        model(**right, use_cache=True)


def test_statistics_reach_every_callback_that_requests_them(model, gaze, inputs):
    from regaze.kernels import StatsRequest

    class Asks(Callback):
        def __init__(self):
            self.seen = {}

        def edit(self, layer, step, context):
            state = context.state(self)
            state.setdefault("edit", AttentionEdit(stats=StatsRequest(lse=True)))
            return state["edit"] if layer in (1, 2) else None

        def on_stats(self, layer, stats, context):
            self.seen[layer, context.step] = stats.lse

    first, second = Asks(), Asks()
    with gaze.using(first, second), gaze.recording(masses=True) as record:
        logits_of(model, inputs, tokens=2)
    assert set(first.seen) == {(1, 0), (2, 0), (1, 1), (2, 1)}
    for key, lse in first.seen.items():
        torch.testing.assert_close(lse, second.seen[key])
    assert record.traces[0].masses is not None


# Combined logits -----------------------------------------------------------------------------------


def test_combinations_by_hand():
    """VCD, AGLA and PAI examples: contrast, addition, and plausibility by the user's own logits."""
    main, other = torch.tensor([[[2.0, 1.0, 0.0]]]), torch.tensor([[[2.0, 2.0, -1.0]]])
    vcd = combine(main, [LogitsCombination(2.0, [(-1.0, other)], plausibility=0.1)])
    assert vcd.flatten().tolist() == [2.0, 0.0, 1.0]
    local = torch.tensor([[[0.5, 2.0, 0.0]]])
    agla = combine(main, [LogitsCombination(1.0, [(2.0, local)], plausibility=0.5)])
    assert agla.flatten().tolist() == [3.0, -torch.inf, -torch.inf]
    assert combine(main, [LogitsCombination(1.0, [(2.0, local)], plausibility=0.1)]).argmax() == 1
    p, u = torch.tensor([[[-0.2, -2.0, -3.5]]]), torch.tensor([[[-1.0, -0.6, -3.0]]])
    pai = combine(p, [LogitsCombination(1.1, [(-0.1, u)], plausibility=0.1)]).flatten()
    assert pai[:2].tolist() == pytest.approx([-0.12, -2.14])
    assert pai[2] == -torch.inf


def test_combinations_do_not_depend_on_their_order_and_log_softmax_gives_the_same_distribution():
    torch.manual_seed(0)
    main, a, b = (torch.randn(2, 3, 11) * 3 for _ in range(3))
    combinations = [
        LogitsCombination(2.0, [(-1.0, a)], plausibility=0.02),
        LogitsCombination(1.1, [(-0.1, b)], log_softmax=True, plausibility=0.05),
    ]
    torch.testing.assert_close(
        combine(main, combinations).softmax(-1),
        combine(main, combinations[::-1]).softmax(-1),
        rtol=1e-5,
        atol=1e-6,
    )
    raw = LogitsCombination(1.1, [(-0.1, b)], plausibility=0.05)
    torch.testing.assert_close(combine(main, [raw]).softmax(-1), combine(main, combinations[1:]).softmax(-1))
