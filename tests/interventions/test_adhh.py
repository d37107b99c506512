"""AD-HH against its rule, the search for heads against planted ones, and what must never happen to them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from decoding_checks import (
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
)
from models import llava_processor, picture

from regaze import HeadKnockout
from regaze.errors import BadParameterError, InputError
from regaze.interventions.adhh.head_search import Caption, Influence, find_hallucination_heads
from regaze.interventions.adhh.method import ADHH, PUBLISHED, known_heads

QUESTIONS = ["Is there a red dog in the image?", "Please describe this image in detail.", "What?"]
IMAGES = [picture(1), picture(2), [picture(3), picture(4)]]
HEADS = ((1, 0), (1, 4), (3, 2), (5, 5))


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def adhh(**changes) -> ADHH:
    """With a threshold that some rows of a random model pass and some do not."""
    return ADHH(**{"heads": HEADS, "threshold": 0.2, **changes})


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(IMAGES, QUESTIONS)


def test_the_rule_on_recorded_rows(model, gaze, inputs):
    """Text after the image of a listed head is removed where it holds enough; nothing is renormalised."""
    method, wanted = adhh(), {"slices": "all", "rows": "last", "masses": False}
    with gaze.using(method), gaze.recording(**wanted) as plain:
        model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    with gaze.using(method), gaze.recording(**wanted, edited=True) as edited:
        model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    text = gaze.tokens(inputs).after_image()
    dropped = kept = 0
    for step in range(4):
        before, after = (record[0].slices[:, :, :, step] for record in (plain, edited))
        columns = torch.cat([text, torch.ones(3, before.shape[-1] - text.shape[1], dtype=torch.bool)], 1)
        for layer, head in ((layer, head) for layer in range(6) for head in range(6)):
            row, mass = before[layer, :, head], (before[layer, :, head] * columns).sum(1, keepdim=True)
            drop = (mass >= 0.2) & ((layer, head) in HEADS)
            close(after[layer, :, head], torch.where(drop & columns, 0.0, row), atol=1e-6)
            dropped, kept = dropped + int(drop.sum()), kept + int((mass < 0.2).sum())
    assert dropped > 4
    assert kept > 4


def test_what_every_method_must_satisfy(gaze):
    check_neutral(gaze, adhh(threshold=1.5), adhh(heads=()))
    for method in (adhh(), adhh(threshold=0.0)):  # also of prompts whose attention is all on text
        check_spares_text(gaze, method)
    check_padding(gaze, adhh())
    check_full_forward(gaze, adhh())
    check_shared_keys(adhh(heads=((1, 0), (1, 4), (3, 2))))
    check_json(adhh())


# Which heads ------------------------------------------------------------------------------------------


def config(**changes):
    sizes = {"num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32064}
    return SimpleNamespace(**{"model_type": "llama", **sizes, **changes})


def test_known_heads_belong_to_a_model(model, gaze, inputs):
    assert known_heads(config())[:2] == ((16, 29), (26, 9))
    assert [len(set(heads)) for heads in PUBLISHED.values()] == [20, 35]
    assert all(
        layer < depth and head < count for (depth, count), hs in PUBLISHED.items() for layer, head in hs
    )
    assert known_heads(config(vocab_size=128256, hallucination_heads=[[1, 2]])) == ((1, 2),)
    for other in ({"vocab_size": 128256}, {"model_type": "qwen2"}, {"num_hidden_layers": 33}):
        with pytest.raises(BadParameterError, match="are not published; find them"):
            known_heads(config(**other))
    with pytest.raises(BadParameterError, match="are not published"), gaze.using(ADHH()):
        model(**inputs)
    with pytest.raises(BadParameterError, match=r"head \(1, 6\) does not exist"), gaze.using(ADHH(((1, 6),))):
        model(**inputs)


def test_marked_words():
    caption = Caption.marked(None, "?", "A dog, two dogs and a hot dog by a cat.", ["dog", "cat"], {"dog"})
    assert [caption.answer[a:b] for a, b in caption.grounded] == ["dog", "dog"]
    assert caption.hallucinated == ((35, 38),)


@pytest.fixture(scope="module")
def captions():
    answers = ["there is a dog and a cat", "a red dog here"]
    marks = [{"dog"}, set()]
    words = ["dog", "cat"]
    return [
        Caption.marked(image, "What is there?", answer, words, present)
        for image, answer, present in zip(IMAGES[:2], answers, marks, strict=True)
    ]


@pytest.fixture(scope="module")
def influence(gaze, captions):
    return find_hallucination_heads(gaze, captions, heads_at_once=16)


def test_influence_is_what_a_removal_takes(model, gaze, captions, influence):
    """One head, by hand: a knock-out, a forward per caption, log-probabilities of the words' tokens."""
    tokenizer, head = llava_processor().tokenizer, (2, 3)
    taken = {"hallucinated": [], "grounded": []}
    for caption in captions:
        inputs = gaze.inputs([caption.image], [caption.question])
        encoded = tokenizer(caption.answer, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.cat([inputs["input_ids"], torch.tensor([encoded["input_ids"]])], 1)
        scores = []
        for heads in ((), (head,)):
            with gaze.using(HeadKnockout(heads=heads)), torch.no_grad():
                logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
            scores.append(logits[inputs["input_ids"].shape[1] - 1 : -1].log_softmax(-1))
        for kind, found in taken.items():
            for a, b in getattr(caption, kind):
                tokens = [i for i, (s, e) in enumerate(encoded["offset_mapping"]) if s < b and e > a]
                chosen = [encoded["input_ids"][i] for i in tokens]
                found.append(
                    sum(float((scores[0] - scores[1])[i, t]) for i, t in zip(tokens, chosen, strict=True))
                )
    assert (len(taken["hallucinated"]), len(taken["grounded"])) == (2, 1)
    for kind, values in taken.items():
        expected = sum(values) / len(values)
        assert float(getattr(influence, kind)[head]) == pytest.approx(expected, abs=1e-4)


def test_the_size_of_a_forward_does_not_matter(gaze, captions, influence):
    other = find_hallucination_heads(gaze, captions, heads_at_once=5)
    close(other.score, influence.score, atol=1e-5)


def test_a_removed_head_has_no_influence(model, gaze, captions):
    weight = model.model.language_model.layers[4].self_attn.o_proj.weight
    kept = weight.detach().clone()
    try:
        weight.data.zero_()
        found = find_hallucination_heads(gaze, captions[:1])
    finally:
        weight.data.copy_(kept)
    assert torch.equal(found.score[4], torch.zeros(6, dtype=torch.float64))
    assert found.score.abs().amax(1)[[0, 1, 2, 3, 5]].min() > 1e-4


def test_top_heads_and_their_file(tmp_path):
    score = torch.tensor([[0.1, 0.5, -1.0], [0.7, 0.0, 0.5]])
    influence = Influence(score, torch.zeros(2, 3))
    assert influence.top(3) == ((1, 0), (0, 1), (1, 2))
    influence.save(tmp_path / "heads.json", 3)
    assert ADHH.from_file(tmp_path / "heads.json", threshold=0.3) == ADHH(influence.top(3), 0.3)
    assert ADHH.from_file(tmp_path / "heads.json", top_k=1).heads == ((1, 0),)
    (tmp_path / "other.json").write_text("[1, 2]")
    for name, message in (
        ("other.json", 'has no list "hal_heads"'),
        ("missing.json", "cannot be read: No such"),
    ):
        with pytest.raises(InputError, match=message):
            ADHH.from_file(tmp_path / name)


def test_nothing_to_compare(gaze, captions):
    with pytest.raises(InputError, match="no grounded word is marked in 1 caption"):
        find_hallucination_heads(gaze, captions[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": -0.1}, "threshold must be float >= 0, got -0.1.*attention on text"),
        ({"heads": ((1, -2),)}, "heads must be"),
        ({"heads": ((1, 2, 3),)}, "heads must be"),
        ({"heads": "all"}, "heads must be"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        ADHH(**changes)
