"""Open-vocabulary maps: rows of a phrase against one forward over everything, and answers left alone."""

from __future__ import annotations

import pytest
import torch
from family_checks import case_of
from models import llava_processor, picture, tiny_llama
from transformers import LogitsProcessorList
from zoo.every import VISION, skip_if_older

import regaze
from regaze import VCD, HeadKnockout
from regaze.errors import BadParameterError, InputError, ShapeError, UnsupportedModelError
from regaze.toolkit.analysis import PhraseEmbedding, PhraseMaps, optimise_phrase, with_answers
from regaze.toolkit.model import compat
from regaze.toolkit.model.teacher_forcing import TeacherForcing

PHRASES = ["a red cat", "dog"]


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(picture(1), "Is there a bus in the image?")


def generated(model, inputs, tokens=4):
    options = {"do_sample": False, "eos_token_id": None, "output_logits": True}
    return model.generate(**inputs, max_new_tokens=tokens, return_dict_in_generate=True, **options)


def whole(gaze, inputs, phrase):
    """Maps of the phrase's last row in one forward over prompt and phrase, [layers, Hq, rows, columns]."""
    forced = with_answers(gaze, inputs, [f" {phrase}"])
    with gaze.recording(slices="image", rows="text", tokens=forced.tokens) as record, torch.no_grad():
        known = gaze.model.forward.__code__.co_varnames
        counted = "position_ids" in known and not compat.counts_positions(gaze.model, forced)
        positions = {"position_ids": forced["attention_mask"].cumsum(1) - 1} if counted else {}
        gaze.model(**forced, **positions, use_cache=False)
    return record[0].image_maps()[:, :, -1]


def test_a_phrase_looks_as_in_one_forward_over_everything(gaze, inputs):
    """Shorter phrases of a batch are padded; each has the map that it has alone."""
    maps = PhraseMaps(gaze, inputs).of(PHRASES, over="none")
    for phrase, own in zip(PHRASES, maps, strict=True):
        torch.testing.assert_close(own, whole(gaze, inputs, phrase), rtol=1e-4, atol=1e-6)
    assert PhraseMaps(gaze, inputs).of("dog").shape == (1, 8, 8)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "llava_next", "paligemma", "lfm2_vl"])
def test_families(name):
    """The phrase's last row is that of a generation which has been forced to write the phrase."""
    entry = next(each for each in VISION if each.name == name)
    skip_if_older(entry)
    case = case_of(entry)
    inputs, tokenizer = case.inputs(0), case.gaze.reader.tokenizer
    maps = PhraseMaps(case.gaze, inputs).of(["dog", PHRASES[0]], over="none")[1]
    ids = tokenizer(f" {PHRASES[0]}", add_special_tokens=False)["input_ids"]
    forced = TeacherForcing(torch.tensor([[*ids, 0]]), inputs["input_ids"].shape[1])
    options = {"max_new_tokens": len(ids) + 1, "do_sample": False, "eos_token_id": None}
    with case.gaze.recording(slices="image", rows="text") as record, torch.no_grad():
        case.model.generate(**inputs, **options, logits_processor=LogitsProcessorList([forced]))
    stepped = record[0].image_maps()[:, :, -1]
    torch.testing.assert_close(maps, stepped, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("inside", [False, True])
def test_the_answer_and_its_cache_are_left_alone(gaze, model, inputs, inside):
    """Maps taken in the middle of a generation change no bit of what is generated after them."""
    with gaze.using(*([HeadKnockout(heads=())] if inside else [])):
        expected = torch.stack(generated(model, inputs).logits[2:])
        first = generated(model, inputs, 2)
        cache, ids = compat.cache_of(first), first.sequences
        before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        maps = PhraseMaps(gaze, inputs, cache).of(PHRASES)
        for layer, (keys, values) in zip(cache.layers, before, strict=True):
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)
        logits = []
        for _ in range(2):
            mask = torch.ones_like(ids)
            step = {
                "input_ids": ids[:, -1:],
                "attention_mask": mask,
                "position_ids": mask.cumsum(1)[:, -1:] - 1,
            }
            with torch.no_grad():
                logits.append(model(**compat.with_cache(step, cache)).logits[:, -1])
            ids = torch.cat([ids, logits[-1].argmax(-1)[:, None]], 1)
    assert torch.equal(torch.stack(logits), expected)
    assert maps.shape == (2, 8, 8)


def test_over_a_generation_s_cache_it_has_read_the_answer(gaze, model, inputs):
    output = generated(model, inputs, 3)
    read = {
        "input_ids": output.sequences[:, :-1],
        "attention_mask": torch.ones_like(output.sequences[:, :-1]),
    }
    maps = PhraseMaps(gaze, inputs, output).of(PHRASES)
    torch.testing.assert_close(maps, PhraseMaps(gaze, {**inputs, **read}).of(PHRASES), rtol=1e-4, atol=1e-7)
    assert not torch.allclose(maps, PhraseMaps(gaze, inputs).of(PHRASES), rtol=1e-3)


def test_scores_are_those_of_the_softmax(gaze, inputs):
    maps = PhraseMaps(gaze, inputs)
    scores, weights = (maps.of(PHRASES, over="none", scores=each).flatten(-2) for each in (True, False))
    torch.testing.assert_close(scores.softmax(-1), weights / weights.sum(-1, keepdim=True))


def test_choices(gaze, inputs):
    maps = PhraseMaps(gaze, inputs)
    every = maps.of(PHRASES, over="none")
    chosen = maps.of(PHRASES, layers=[1, 4], heads=[0, 5])
    torch.testing.assert_close(chosen, every[:, [1, 4]][:, :, [0, 5]].mean((1, 2)))
    torch.testing.assert_close(maps.of(PHRASES, over="max"), every.amax((1, 2)))
    assert torch.equal(maps.of("dog", rows="mean", over="none"), maps.of("dog", over="none"))  # one token


def test_an_embedding_of_its_own(gaze, model, inputs):
    maps = PhraseMaps(gaze, inputs)
    (ids,) = gaze.reader.tokenizer([" a red cat"], add_special_tokens=False)["input_ids"]
    same = PhraseEmbedding("a red cat", model.get_input_embeddings()(torch.tensor(ids)).detach())
    assert torch.equal(maps.of([same, "dog"]), maps.of(PHRASES))
    zero = PhraseEmbedding("dog", torch.ones(1, same.values.shape[1]))
    both = maps.of([same, zero])
    assert torch.equal(both[0], maps.of(PHRASES)[0])
    assert not torch.equal(both[1], maps.of(PHRASES)[1])
    with pytest.raises(BadParameterError, match="3 tokens, but 1 embeddings"):
        maps.of(PhraseEmbedding("a red cat", zero.values))


@pytest.mark.parametrize("scores", [False, True])
def test_an_optimised_phrase_points_at_the_known_boxes(gaze, model, scores):
    """A random model has no gaze to find, but even its queries can be turned to a place."""
    shares = torch.zeros(2, 8, 8, dtype=torch.float64)
    shares[:, 2:4, 5:7] = 1.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():  # as in a user's evaluation; the fit needs a graph all the same
        maps = [PhraseMaps(gaze, gaze.inputs(picture(seed), "What?")) for seed in (1, 2)]
        fitted = optimise_phrase(
            list(zip(maps, shares, strict=True)), "dog", steps=12, rate=0.3, scores=scores
        )
    assert len(fitted.losses) == 12
    assert fitted.losses[-1] < fitted.losses[0] - 0.02
    for each, share in zip(maps, shares, strict=True):
        plain, tuned = (each.of(p, scores=scores)[0].double() for p in ("dog", fitted))
        if scores:
            plain, tuned = (x.flatten().softmax(0).view(8, 8) for x in (plain, tuned))
        assert (tuned * share).sum() / tuned.sum() > (plain * share).sum() / plain.sum()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_gradient_is_that_of_finite_differences(gaze, model, inputs):
    """The first step of Adam has the sign of the slope."""
    maps, share = PhraseMaps(gaze, inputs), torch.zeros(8, 8, dtype=torch.float64)
    share[0, 0] = 1.0
    (ids,) = gaze.reader.tokenizer([" dog"], add_special_tokens=False)["input_ids"]
    start = model.get_input_embeddings()(torch.tensor(ids)).detach()
    step = optimise_phrase([(maps, share)], "dog", steps=1).values - start
    for axis in step.abs().argsort(descending=True)[0, :3].tolist():
        moved = start.clone()
        moved[0, axis] += 0.02 * step[0, axis].sign()
        losses = [
            -(found / found.sum())[0, 0].log()
            for found in (maps.of(PhraseEmbedding("dog", values))[0] for values in (start, moved))
        ]
        assert losses[1] < losses[0]


def test_methods_act_on_the_rows_of_a_phrase(gaze, inputs):
    plain = PhraseMaps(gaze, inputs).of(PHRASES)
    with gaze.using(HeadKnockout(heads=[(0, 0), (1, 2)])):
        assert not torch.allclose(PhraseMaps(gaze, inputs).of(PHRASES), plain)
    assert torch.equal(PhraseMaps(gaze, inputs).of(PHRASES), plain)
    with gaze.using(VCD()), pytest.raises((InputError, UnsupportedModelError)):
        PhraseMaps(gaze, inputs).of(PHRASES)


def test_a_cache_that_tokens_have_left(gaze, model, inputs):
    output = generated(model, inputs, 2)
    layer = compat.cache_of(output).layers[2]
    layer.keys, layer.values = layer.keys[:, :, 5:], layer.values[:, :, 5:]
    with pytest.raises(UnsupportedModelError, match="different tokens of the prompt"):
        PhraseMaps(gaze, inputs, output).of("dog")


def test_errors(gaze, model, inputs):
    maps = PhraseMaps(gaze, inputs)
    with pytest.raises(InputError, match="about one prompt, got 2"):
        PhraseMaps(gaze, gaze.inputs([picture(1)] * 2, ["What?"] * 2))
    with pytest.raises(InputError, match="no image among its tokens"):
        PhraseMaps(gaze, gaze.inputs(None, "What?"))
    text = regaze.wrap(tiny_llama(), llava_processor().tokenizer)
    with pytest.raises(InputError, match="no image among its tokens"):
        PhraseMaps(text, {"input_ids": torch.arange(9)[None]})
    with pytest.raises(InputError, match="but the cache holds"):
        PhraseMaps(gaze, gaze.inputs(picture(1), "Is there a bus in the image? Look again."), maps._cache)
    for phrase in ("", "  ", []):
        with pytest.raises(BadParameterError, match=r"phrase"):
            maps.of(phrase)
    for wrong in ({"over": "sum"}, {"rows": "first"}, {"layers": [9]}, {"heads": [6]}, {"image": 1}):
        with pytest.raises(BadParameterError):
            maps.of("dog", **wrong)
    static = model.generate(
        **inputs, max_new_tokens=2, cache_implementation="static", return_dict_in_generate=True
    )
    with pytest.raises(UnsupportedModelError, match="cache_implementation='dynamic'"):
        PhraseMaps(gaze, inputs, compat.cache_of(static)).of("dog")
    with pytest.raises(ShapeError, match=r"\[8, 8\], but the shares are \[4, 4\]"):
        optimise_phrase([(maps, torch.ones(4, 4))], "dog", steps=1)
    with pytest.raises(InputError, match="covers no cell"):
        optimise_phrase([(maps, torch.zeros(8, 8))], "dog", steps=1)
    for wrong in ({"steps": 0}, {"rate": 0.0}):
        with pytest.raises(BadParameterError):
            optimise_phrase([(maps, torch.ones(8, 8))], "dog", **wrong)
