"""ONLY: its equations, the authors' outputs, and a stream that the test computes from eager weights."""

from __future__ import annotations

import math

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
    close_as_goldens_ask,
    golden,
    inputs_of,
)
from models import logits_of, picture, tiny_llava
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

import regaze
from regaze import TokenMap
from regaze.errors import BadParameterError
from regaze.interventions import PAI, VCD
from regaze.interventions.controls import PlausibilityCut, Sharpen
from regaze.interventions.only import ONLY, text_heavy
from regaze.toolkit.model import attention_call, compat
from regaze.toolkit.model.logits import combine
from regaze.toolkit.prompts.token_map import Role

#: Contrasts some tokens of a random model, and adds others.
ACTING = ONLY(gamma=0.35, alpha_pos=2.0, alpha_neg=1.5, beta=0.0)


# The equations ----------------------------------------------------------------------------------------

HEADS = torch.tensor(
    [[0.30, 0.02, 0.03, 0.05, 0.20, 0.05, 0.10, 0.25], [0.20, 0.10, 0.10, 0.10, 0.10, 0.05, 0.05, 0.30]]
)[None, :, None]
IMAGE = torch.tensor([False, True, True, True, True, False, False, False])[None, None]
TEXT = torch.tensor([False, False, False, False, False, True, True, True])[None, None]


def test_hand_example():
    kept = text_heavy(HEADS, TEXT, IMAGE)[0, :, 0]
    torch.testing.assert_close(kept[0], torch.tensor([0.30, 0.02, 0.03, 0.05, 0.0, 0.05, 0.10, 0.0]))
    assert not kept[1].any()
    alike = text_heavy(HEADS[:, 1:].expand(-1, 2, -1, -1), TEXT, IMAGE)[0, 1, 0]  # no head is below the mean
    torch.testing.assert_close(alike, torch.tensor([0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.0]))


def test_invariants():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 5, 3, 20, generator=generator).softmax(-1)
    image, text = torch.zeros(2, 2, 3, 20, dtype=torch.bool)
    image[..., 3:9], text[..., 1:3], text[..., 9:] = True, True, True
    kept = text_heavy(weights, text, image)
    order = torch.tensor([0, 10, 2, 5, 4, 3, 6, 8, 7, 9, 1, *range(11, 20)])
    assert torch.equal(text_heavy(weights[..., order], text, image), kept[..., order])
    torch.testing.assert_close(text_heavy(3 * weights, text, image), 3 * kept)
    nothing = torch.zeros_like(image)
    assert torch.equal(text_heavy(weights, nothing, nothing), weights)
    single = nothing.clone()
    single[..., 4] = True  # one column has no deviation
    assert torch.equal(text_heavy(weights[:, :1], single, nothing), weights[:, :1])
    assert text_heavy(torch.zeros_like(weights), text, image).isfinite().all()


def test_golden_combine(shared):
    """Each sample has its own gate; where it is that of the released sum over the batch, scores are equal."""
    spec, tensors = golden(shared / "goldens", "only", "combine")
    compared = 0
    for name, case in spec["cases"].items():
        params = case["params"]
        settings = {key: params[key] for key in ("gamma", "alpha_pos", "alpha_neg", "beta")}
        main, other = (tensors[f"{name}/in/logits_{part}"] for part in ("main", "second"))
        distance = tensors[f"{name}/out/distance"]
        for step, want in enumerate(tensors[f"{name}/out/scores"]):
            pair = main[step][:, None], other[step][:, None]
            got = combine(pair[0], [ONLY(**settings).combined(*pair)])[:, 0]
            of_all = distance[step].sum() < params["gamma"]
            for row in range(len(want)):
                if (distance[step, row] < params["gamma"]) == of_all:
                    close_as_goldens_ask(got[row], want[row], atol=5e-6)
                    compared += 1
    assert len(spec["cases"]) >= 3
    assert compared >= 8


def test_golden_stream(shared):
    """The whole stream of a model whose layers between the first and the last change nothing."""
    spec, tensors = golden(shared / "goldens", "only", "stream")
    for name, case in spec["cases"].items():
        params = case["params"]
        model = golden_model(params, tensors, name)
        embeds = tensors[f"{name}/in/embeds"]
        roles = torch.full((1, params["prompt"]), int(Role.QUERY))
        start = params["image_start"]
        roles[:, start : start + params["image_tokens"]] = Role.IMAGE
        method = Seen(residual=params["residual_weight"], final_residual=params["final_weight"])
        with regaze.wrap(model).using(method, tokens=TokenMap.from_roles(roles)), torch.no_grad():
            out = model(inputs_embeds=embeds[:, :-1], logits_to_keep=1, use_cache=True)
            model(**compat.with_cache({"inputs_embeds": embeds[:, -1:]}, compat.cache_of(out)))
        for number, part in enumerate(("main", "second")):
            got = torch.stack([pair[number][:, -1] for pair in method.pairs])
            torch.testing.assert_close(got, tensors[f"{name}/out/logits_{part}"], rtol=1e-4, atol=2e-4)
    assert len(spec["cases"]) >= 2


class Seen(ONLY):
    """ONLY that shows its two logits, and combines nothing."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        object.__setattr__(self, "pairs", [])

    def combined(self, logits, other, where=None):
        self.pairs.append((logits, other))


def golden_model(params, tensors, name):
    """A Llama of these weights; layers between the first and the last add 0 to the stream."""
    config = LlamaConfig(
        hidden_size=params["hidden"], intermediate_size=params["mlp"], vocab_size=params["vocab"],
        num_hidden_layers=params["layers"], num_attention_heads=params["heads"],
        num_key_value_heads=params["kv_heads"], max_position_embeddings=2048, rms_norm_eps=1e-6,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = model.state_dict()
    for key in weights:
        if "o_proj" in key or "down_proj" in key:
            weights[key].zero_()
        parts = key.removeprefix("model.").removeprefix("layers.").removesuffix(".weight")
        if (given := tensors.get(f"{name}/weights/{parts}")) is not None:
            weights[key] = given
    model.load_state_dict(weights)
    return model


# In a model -------------------------------------------------------------------------------------------


def both_logits(method, inputs, answer):
    """[T, B, V] main and second logits of single prompts, each step by a fresh eager forward."""
    model = tiny_llava()
    model.set_attn_implementation("eager")
    decoder, config = model.model.language_model, model.config.text_config
    layer, last = decoder.layers[method.layer], decoder.layers[-1]
    pairs = []
    for step in range(answer.shape[1]):
        ids = torch.cat([inputs["input_ids"], answer[:, :step]], 1)
        streams = []
        handle = last.register_forward_hook(lambda module, args, out, s=streams: s.extend((args[0], out)))
        values = []
        keep = layer.self_attn.v_proj.register_forward_hook(lambda module, args, out, s=values: s.append(out))
        given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        given.pop("position_ids", None)
        with torch.no_grad():
            out = model(**given, output_attentions=True)
            handle.remove(), keep.remove()
            a = out.attentions[method.layer][0, :, -1]
            columns = torch.arange(ids.shape[1])
            image = ids[0] == model.config.image_token_id
            kinds = [~image & (columns > 0), image & (columns > 0)]
            entropies = []
            for kind in kinds:
                limit = a[:, kind].mean(1) + a[:, kind].std(1)
                a = torch.where(kind & (a > limit[:, None]), 0.0, a)
                u = a[:, kind] / a[:, kind].sum(1, keepdim=True)
                entropies.append(-(u * (u + 1e-6).log()).sum(1))
            ratio = entropies[0] / entropies[1]
            a = a * (ratio >= ratio.mean())[:, None]
            value = values[0][0].unflatten(-1, (config.num_key_value_heads, -1))
            value = value.repeat_interleave(len(a) // config.num_key_value_heads, 1)
            z = layer.self_attn.o_proj(torch.einsum("hk,khd->hd", a, value).flatten())
            x, left = (stream[0, -1] for stream in streams)
            z = last.input_layernorm(z) + method.residual * x
            z = z + last.mlp(last.post_attention_layernorm(z))
            second = model.lm_head(decoder.norm(z) + method.final_residual * decoder.norm(left))
            pairs.append((out.logits[:, -1], second[None]))
    return [torch.stack(part) for part in zip(*pairs, strict=True)]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("method", [ACTING, ONLY(layer=3, residual=1.0, final_residual=0.0)])
def test_every_step_is_the_stream_of_an_eager_forward(model, gaze, method, images):
    inputs = gaze.inputs([[picture(n) for n in range(images)]], ["Is there a dog in the image?"])
    with gaze.using(method):
        got = logits_of(model, inputs, tokens=4)
    main, second = both_logits(method, inputs, got.argmax(-1).T)
    apart = (main.softmax(-1) - second.softmax(-1)).abs().sum(-1, keepdim=True)
    assert (apart - method.gamma).abs().min() > 1e-4
    contrast = (1 + method.alpha_neg) * main - method.alpha_neg * second
    want = torch.where(apart < method.gamma, main + method.alpha_pos * second, contrast)
    if method.beta:
        threshold = main.amax(-1, keepdim=True) + math.log(method.beta)
        want = want.masked_fill(main < threshold, -torch.inf)
    assert_same_scores(got, want, tolerance=1e-3)


def test_the_gate_always_and_never():
    torch.manual_seed(0)
    main, other = torch.randn(2, 3, 4, 9)
    always, never = (combine(main, [ONLY(gamma=g, beta=0.0).combined(main, other)]) for g in (2.01, 0.0))
    torch.testing.assert_close(always, main + 3 * other)
    torch.testing.assert_close(never, 2 * main - other)
    where = torch.tensor([True, False, True])[:, None, None]
    got = combine(main, [ONLY(gamma=2.01).combined(main, other, where)])
    assert torch.equal(got[1], main[1])


def test_the_prompts_own_stream_stays_as_it_is(model, gaze):
    """What the model computes without it is to the bit what it computes beside it."""
    inputs, method = inputs_of(gaze), Seen(gamma=0.3)
    plain = logits_of(model, inputs)
    with gaze.using(method):
        assert torch.equal(logits_of(model, inputs), plain)
    assert torch.equal(torch.stack([main[:, -1] for main, _ in method.pairs]), plain)
    with gaze.using(ONLY(alpha_pos=0.0, alpha_neg=0.0, beta=0.3)):
        cut = logits_of(model, inputs)
    assert torch.equal(cut.masked_fill(cut.isinf(), 0.0), plain.masked_fill(cut.isinf(), 0.0))
    assert cut[:, :2].isinf().any()
    assert not cut[:, 2].isinf().any()


@pytest.mark.parametrize("method", [ACTING, ONLY()])
def test_batches_and_prompts_without_an_image(gaze, method):
    check_spares_text(gaze, method)


def test_neutral_strength_padding_shared_keys_choices_and_json(gaze):
    check_neutral(gaze, ONLY(alpha_pos=0.0, alpha_neg=0.0, beta=0.0))
    check_padding(gaze, ACTING)
    check_full_forward(gaze, ACTING)
    check_shared_keys(ACTING)
    check_choices(gaze, ACTING)
    check_json(ONLY(layer=2, gamma=0.6))


def test_beside_a_longer_branch_and_an_edit(model, gaze):
    """The stream is that of the user's rows, whose attention it takes as the edit left it."""
    inputs = inputs_of(gaze, slice(0, 1))
    seen, branch = Seen(), VCD(beta=0.0)
    parts = []
    for methods in ((seen,), (seen, branch), (seen, PAI(alpha=3.0, gamma=1.0, layers=(0, 1)))):
        seen.pairs.clear()
        with gaze.using(*methods), torch.no_grad():
            model(**inputs)
        parts.append(seen.pairs[0][1])
    torch.testing.assert_close(parts[1], parts[0], rtol=0, atol=1e-4)
    assert not torch.allclose(parts[2], parts[0], atol=1e-3)


def test_long_prompts_are_read_in_blocks_of_rows(monkeypatch, model, gaze):
    inputs, seen = inputs_of(gaze), Seen()
    with gaze.using(seen), torch.no_grad():
        model(**inputs)
        monkeypatch.setattr(attention_call, "CPU_BLOCK_ELEMENTS", 3 * 6 * inputs["input_ids"].shape[1] * 20)
        model(**inputs)
    whole, blocks = (second for _, second in seen.pairs)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(blocks[real], whole[real], rtol=0, atol=1e-4)


def test_a_row_that_runs_again_is_the_last_one(model, gaze):
    """GIFT-like methods run the prompt's last row once more when the prefill ends."""
    inputs, seen = inputs_of(gaze, slice(0, 1)), Seen()

    class Again(Seen):
        def prepare(self, context):
            super().prepare(context)
            context.replay_last_row()

    again = Again()
    for method in (seen, again):
        with gaze.using(method), torch.no_grad():
            model(**inputs)
    torch.testing.assert_close(again.pairs[0][1], seen.pairs[0][1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("window", [None, 7, 14])
def test_a_window_that_has_left_keys_behind(window):
    """Steps over a sliding cache are rows of one forward, whose mask hides the keys before the window."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 32}
    config = MistralConfig(
        **sizes, intermediate_size=48, vocab_size=60, sliding_window=window, initializer_range=0.3
    )
    torch.manual_seed(0)
    model, seen = AutoModelForCausalLM.from_config(config).eval(), Seen()
    roles = torch.tensor([[Role.SYSTEM] * 4 + [Role.IMAGE] * 6 + [Role.QUERY] * 8])
    ids = torch.randint(5, 60, (1, 18), generator=torch.Generator().manual_seed(1))
    tokens = TokenMap.from_roles(roles)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with regaze.wrap(model).using(seen, tokens=tokens):
        answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    steps = torch.stack([second[:, -1] for _, second in seen.pairs], 1)
    roles = torch.cat([roles, torch.full((1, 4), int(Role.OUTPUT))], 1)
    with regaze.wrap(model).using(seen, tokens=TokenMap.from_roles(roles)), torch.no_grad():
        model(input_ids=answer[:, :-1], attention_mask=torch.ones_like(answer[:, :-1]))
    torch.testing.assert_close(seen.pairs[-1][1][:, -5:], steps, rtol=0, atol=1e-4)


def test_its_controls():
    assert ONLY().controls() == (PlausibilityCut(0.1), Sharpen(3.0, 0.1))
    assert ONLY(alpha_neg=0.0).controls() == (Sharpen(3.0, 0.1),)
    assert ONLY(gamma=0.0).controls() == (PlausibilityCut(0.1),)


def test_layers_that_are_not_there(gaze):
    with pytest.raises(BadParameterError, match="before the last layer, 5"), gaze.using(ONLY(layer=5)):
        gaze.model(**inputs_of(gaze, slice(0, 1)))


def test_bad_parameters():
    with pytest.raises(BadParameterError, match="gamma must be float >= 0"):
        ONLY(gamma=-0.1)
