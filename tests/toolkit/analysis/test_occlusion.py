"""Hiding parts of prompts from real model classes: images, text, speech, heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import picture, tiny_llama
from PIL import Image
from transformers import WhisperConfig, WhisperForConditionalGeneration

import regaze
from regaze import HeadKnockout, Role, demo
from regaze.errors import BadParameterError, InputError, ShapeError
from regaze.toolkit.analysis.answers import answer_log_probs, greedy_answer
from regaze.toolkit.analysis.boxes import holds_centre
from regaze.toolkit.analysis.causal import head_effects, ranked_heads, without_heads
from regaze.toolkit.analysis.faithfulness import occlusion_saliency, perturbation_curve, points_inside
from regaze.toolkit.analysis.occlusion import ImageCells, TextTokens
from regaze.toolkit.analysis.speech import EncoderWindows, SpectrogramPatches, Utterance
from regaze.toolkit.prompts.geometry import Geometry


@pytest.fixture(scope="module")
def seeing() -> Any:
    model, processor = regaze.load("demo")
    return regaze.wrap(model, processor)


def ask_for(category: str) -> str:
    return f"Is there a {category} in the image?"


# Log-probabilities of answers ---------------------------------------------------------------------------


def test_the_answers_log_probability_is_that_of_generation(seeing: Any) -> None:
    scenes = demo.scenes()[:3]
    inputs = seeing.inputs([s.image() for s in scenes], ["Please describe this image in detail."] * 3)
    out = seeing.model.generate(
        **inputs, max_new_tokens=12, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    answer = out.sequences[:, inputs["input_ids"].shape[1] :]
    expected = torch.stack(out.scores, 1).log_softmax(-1).gather(-1, answer[..., None])[..., 0]
    torch.testing.assert_close(answer_log_probs(seeing.model, inputs, answer), expected, atol=1e-4, rtol=1e-4)


def test_batches_with_padding_score_as_single_prompts(seeing: Any) -> None:
    image = demo.scenes()[0].image()
    questions = [ask_for("dog"), "Please describe this image in detail."]
    answers = [greedy_answer(seeing, image, question, 6) for question in questions]
    assert len(answers[0]) == 1
    both = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-100)
    together = answer_log_probs(seeing.model, seeing.inputs([image] * 2, questions), both)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        alone = answer_log_probs(seeing.model, seeing.inputs(image, question), answer)[0]
        torch.testing.assert_close(together[row, : len(answer)], alone, atol=1e-4, rtol=1e-4)
        assert not together[row, len(answer) :].any()


def test_answers_must_fit_the_prompts(seeing: Any) -> None:
    inputs = seeing.inputs(demo.scenes()[0].image(), ask_for("dog"))
    with pytest.raises(ShapeError, match=r"\[1, T\], got \[2, 1\]"):
        answer_log_probs(seeing.model, inputs, torch.ones(2, 1, dtype=torch.int64))
    padded = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    padded["attention_mask"][:, -2:] = 0
    with pytest.raises(InputError, match="padded on the left"):
        answer_log_probs(seeing.model, padded, torch.ones(1, 1, dtype=torch.int64))


# Images -------------------------------------------------------------------------------------------------


def test_hidden_cells_are_the_right_pixels(gaze: Any) -> None:
    answer = torch.tensor([5])
    image = picture(1, 64, 32)
    geometry = Geometry.squash((64, 32), (112, 112))
    for fill in ("mean", "blur", "black"):
        cells = ImageCells(gaze, image, "What?", answer, grid=(2, 4), fill=fill, geometry=geometry)
        hidden = torch.zeros(8, dtype=torch.bool)
        hidden[5] = True  # second row, second column
        before, after = np.asarray(image), np.asarray(cells.without(hidden))
        changed = (before != after).any(-1)
        assert changed[16:32, 16:32].mean() > 0.95
        changed[16:32, 16:32] = False
        assert not changed.any()
    assert after[16:32, 16:32].max() == 0
    mean = ImageCells(gaze, image, "What?", answer, grid=(1, 1), geometry=geometry).without(
        torch.tensor([True])
    )
    assert np.unique(np.asarray(mean).reshape(-1, 3), axis=0).tolist() == [
        before.mean((0, 1)).round().tolist()
    ]


def test_hiding_nothing_changes_nothing_and_batches_do_not_matter(seeing: Any) -> None:
    scene = demo.scenes()[0]
    question, image = ask_for(scene.objects[0].category), scene.image()
    answer = greedy_answer(seeing, image, question)
    hidden = torch.rand(5, 64, generator=torch.Generator().manual_seed(0)) < 0.3
    hidden[0] = False
    together = ImageCells(seeing, image, question, answer)(hidden)
    one_by_one = ImageCells(seeing, image, question, answer, batch_size=1)(hidden)
    torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=1e-4)
    plain = answer_log_probs(seeing.model, seeing.inputs(image, question), answer)
    torch.testing.assert_close(together[:1], plain, atol=1e-4, rtol=1e-4)
    assert (together[1:] - plain).abs().max() > 1e-3


def test_occlusion_points_at_the_thing_and_its_curve_beats_random_order(seeing: Any) -> None:
    hits, gains = [], []
    for scene in demo.scenes()[:6]:
        thing = min(scene.objects, key=lambda each: each.area)
        question, image = ask_for(thing.category), scene.image()
        cells = ImageCells(seeing, image, question, greedy_answer(seeing, image, question))
        saliency = occlusion_saliency(cells, cells.count)[0]
        inside = holds_centre([thing.box], cells.geometry, cells.grid)
        hits.append(points_inside(saliency.view(cells.grid), inside).item())
        noise = torch.rand(64, generator=torch.Generator().manual_seed(len(hits)))
        maps = torch.stack([saliency, noise])
        deletion, insertion = (
            perturbation_curve(cells, maps, k, points=5).area for k in ("deletion", "insertion")
        )
        gains.append((deletion[1] - deletion[0] + insertion[0] - insertion[1]).item())
    assert sum(hits) >= 5
    assert np.mean(gains) > 0.2


def test_scorers_of_images_say_what_they_need(gaze: Any) -> None:
    image, answer = picture(0), torch.tensor([5])
    with pytest.raises(BadParameterError, match="blur"):
        ImageCells(gaze, image, "What?", answer, fill="noise")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\[m, 64\] bool, got \[64\]"):
        ImageCells(gaze, image, "What?", answer)(torch.zeros(64, dtype=torch.bool))
    with pytest.raises(InputError, match="no image processor"):
        ImageCells(regaze.wrap(tiny_llama(), gaze.reader.tokenizer), image, "What?", answer)


# Text ---------------------------------------------------------------------------------------------------


def test_the_word_that_is_asked_for_matters_most(seeing: Any) -> None:
    scene = next(s for s in demo.scenes() if s.objects[0].category in ("car", "cow", "bed"))
    question, image = ask_for(scene.objects[0].category), scene.image()
    words = TextTokens(seeing, image, question, greedy_answer(seeing, image, question))
    assert [text.strip() for text in words.texts][:2] == ["Is", "there"]
    saliency = occlusion_saliency(words, words.count)[0]
    assert words.texts[int(saliency.argmax())].strip() == scene.objects[0].category


def test_a_hidden_token_is_as_good_as_another(gaze: Any) -> None:
    questions = "What is this thing?", "What is that thing?"
    scorers = [TextTokens(gaze, picture(0), question, torch.tensor([900, 40])) for question in questions]
    place = next(i for i, (a, b) in enumerate(zip(*(s.texts for s in scorers), strict=True)) if a != b)
    hidden = torch.zeros(2, scorers[0].count, dtype=torch.bool)
    hidden[1, place] = True
    first, second = (scorer(hidden) for scorer in scorers)
    assert (first[0] - second[0]).abs().max() > 1e-5
    torch.testing.assert_close(first[1], second[1], atol=1e-5, rtol=1e-5)


def test_the_last_token_cannot_be_hidden(gaze: Any) -> None:
    with pytest.raises(InputError, match="TAIL hold the last token"):
        TextTokens(gaze, picture(0), "What?", torch.tensor([5]), roles=(Role.TAIL,))
    with pytest.raises(InputError, match="PAD hold no token"):
        TextTokens(gaze, picture(0), "What?", torch.tensor([5]), roles=(Role.PAD,))


# Heads --------------------------------------------------------------------------------------------------


def test_heads_that_look_matter_more_than_others_of_their_layers(seeing: Any) -> None:
    batches = []
    for scene in demo.scenes()[:8]:
        inputs = seeing.inputs(scene.image(), ask_for(scene.objects[0].category))
        batches.append((inputs, greedy_answer(seeing, scene.image(), ask_for(scene.objects[0].category))))
    score = without_heads(seeing, batches, lambda heads: HeadKnockout(heads=heads))
    scores = torch.zeros(6, 6)
    scores[0, 0], scores[0, 3] = 2, 1  # documented: the two heads that look at what is asked for
    effects = head_effects(score, ranked_heads(scores), [2], draws=2)
    assert effects.top.shape == (1, 8)
    assert effects.others.shape == (1, 2, 8)
    change = effects.change(0)
    assert change["top"].value < -1
    assert change["difference"].high < 0
    direct = answer_log_probs(seeing.model, *batches[0]).sum(1)
    torch.testing.assert_close(effects.plain[:1], direct)


def test_random_heads_are_others_of_the_same_layers() -> None:
    ranking = [(layer, head) for head in range(4) for layer in (2, 0, 1)]
    asked: list[list[tuple[int, int]]] = []

    def score(heads: Any) -> torch.Tensor:
        asked.append(list(heads))
        return torch.tensor([-float(len(heads))])

    effects = head_effects(score, ranking, [1, 3], draws=3, seed=4)
    assert asked[:3] == [[], ranking[:1], ranking[:3]]
    for drawn, top in zip(asked[3:], [ranking[:1]] * 3 + [ranking[:3]] * 3, strict=True):
        assert not set(drawn) & set(top)
        assert sorted(layer for layer, _ in drawn) == sorted(layer for layer, _ in top)
    assert effects.change(1)["difference"].value == 0
    anywhere = head_effects(score, ranking, [2], draws=20, same_layers=False)
    assert {layer for heads in asked[-20:] for layer, _ in heads} == {0, 1, 2}
    assert anywhere.counts == (2,)
    with pytest.raises(BadParameterError, match=r"1\.\.6"):
        head_effects(score, ranking, [7])


# Speech -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def utterance() -> Utterance:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=50,
        max_target_positions=20,
        pad_token_id=1,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.3,
    )
    model = WhisperForConditionalGeneration(config).eval()
    features = torch.randn(1, 8, 100)
    return Utterance(model, features, torch.tensor([1, 5]), torch.tensor([7, 8, 9]), frames=57, width=6)


def test_an_utterance_knows_its_windows(utterance: Utterance) -> None:
    assert (utterance.stride, utterance.windows) == (2, 10)
    maps = utterance.cross_attention()
    assert maps.shape == (3, 2, 3, 50)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 3))
    windows = utterance.by_window(maps)
    assert windows.shape == (3, 2, 3, 10)
    torch.testing.assert_close(windows[..., 9], maps[..., 27:30].sum(-1))
    assert utterance.model.config._attn_implementation == "sdpa"


def test_cross_attention_and_scores_are_those_of_the_model(utterance: Utterance) -> None:
    ids = torch.tensor([[1, 5, 7, 8, 9]])
    with torch.inference_mode():
        logits = utterance.model(utterance.features, decoder_input_ids=ids).logits
    expected = logits.log_softmax(-1)[0, 1:4].gather(-1, torch.tensor([[7], [8], [9]]))[:, 0]
    for scorer in (SpectrogramPatches(utterance), EncoderWindows(utterance)):
        plain = scorer(torch.zeros(2, scorer.count, dtype=torch.bool))
        torch.testing.assert_close(plain, expected.expand(2, -1), atol=1e-5, rtol=1e-5)


def test_silenced_patches_are_those_asked_for(utterance: Utterance, monkeypatch: Any) -> None:
    heard = []
    original = Utterance.encode
    monkeypatch.setattr(Utterance, "encode", lambda self, x: heard.append(x.clone()) or original(self, x))
    scorer = SpectrogramPatches(utterance, bands=2)
    hidden = torch.zeros(1, 20, dtype=torch.bool)
    hidden[0, 13] = True  # upper band, fourth window
    scorer(hidden)
    changed = (heard[-1] != utterance.features)[0]
    assert changed[4:, 18:24].all()
    changed[4:, 18:24] = False
    assert not changed.any()
    assert heard[-1][0, 4:, 18:24].unique().tolist() == [utterance.features.min().item()]


def test_hidden_windows_of_the_encoder_say_nothing(utterance: Utterance) -> None:
    scorer, hidden = EncoderWindows(utterance), torch.zeros(1, 10, dtype=torch.bool)
    hidden[0, 2] = True
    mean = utterance.encoded.mean(1, keepdim=True)
    other = utterance.encoded.clone()
    other[:, 6:9] = mean
    torch.testing.assert_close(scorer(hidden), utterance.log_probs(other))
    assert (scorer(hidden) - scorer(~hidden)).abs().max() > 1e-4


def test_the_gradient_foretells_small_changes(utterance: Utterance) -> None:
    saliency = utterance.gradient_saliency()
    assert saliency.shape == (3, 10)
    softer = utterance.features.clone()
    softer[..., 12:18] -= 1e-3 * (softer[..., 12:18] - softer.amin())
    plain = utterance.log_probs(utterance.encoded)
    change = (plain - utterance.log_probs(utterance.encode(softer)))[0] / 1e-3
    torch.testing.assert_close(saliency[:, 2], change, atol=0.02, rtol=0.05)


def test_utterances_that_cannot_be(utterance: Utterance) -> None:
    parts = (utterance.model, utterance.features, utterance.prompt, utterance.answer)
    with pytest.raises(ShapeError, match="multiple"):
        Utterance(*parts, frames=50, width=5)
    with pytest.raises(ShapeError, match=r"1\.\.100"):
        Utterance(*parts, frames=101)
    with pytest.raises(ShapeError, match=r"\[1, mels, frames\]"):
        Utterance(parts[0], parts[1][0], *parts[2:], frames=50)


def test_the_models_own_answer_is_asked_for_with_care(seeing: Any) -> None:
    blank = Image.new("RGB", (112, 112))
    answer = greedy_answer(seeing, blank, ask_for("dog"))
    assert seeing.reader.tokenizer.decode(answer) in ("Yes", "No")
