"""The search on a model whose retrieval head is known."""

from __future__ import annotations

import pytest
import torch
from copying_model import (
    DEPTHS,
    HAYSTACK,
    HEADS,
    LAYERS,
    LENGTHS,
    NEEDLE,
    OPTIONS,
    RETRIEVAL,
    copying_tokenizer,
)
from needle_tokenizers import trained_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from regaze.errors import InputError
from regaze.interventions.retrieval_heads import (
    Needle,
    count_copies,
    find_retrieval_heads,
    search,
)
from regaze.interventions.retrieval_heads.cached_prompt import CachedPrompt, stop_tokens
from regaze.interventions.retrieval_heads.needle_test import NeedleTest


def test_finds_the_one_head_that_retrieves(found):
    expected = torch.zeros(LAYERS, HEADS, dtype=torch.float64)
    expected[RETRIEVAL] = 1.0
    for scores in (found.mean("paper"), found.mean("released"), found.frequency()):
        assert torch.equal(scores, expected)
    assert found.top(1) == [RETRIEVAL]
    assert set(found.below(0.1)) == {(i, j) for i in range(LAYERS) for j in range(HEADS)} - {RETRIEVAL}
    assert found.about["trials_run"] == found.about["trials_succeeded"] == len(LENGTHS) * len(DEPTHS)
    assert [(t.length, t.depth) for t in found.trials] == [(n, d) for n in LENGTHS for d in DEPTHS]


def random_model(config):
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(config).eval()


SMALL = {
    "vocab_size": 25,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("window", [None, 13])
def test_equals_eager_attention_over_the_whole_sequence(tokenizer, window):
    """Also with a sliding window, where a cache that drops old keys would shift the columns."""
    config = LlamaConfig(**SMALL) if window is None else MistralConfig(**SMALL, sliding_window=window)
    model = random_model(config)
    needle = Needle("The gold is " + HAYSTACK[:80] + "dry well.", "Where?", HAYSTACK[:80] + "dry well")
    test = NeedleTest(model, tokenizer, HAYSTACK, [needle], (61, 90), (50, 100), **OPTIONS)
    found = find_retrieval_heads(
        model, tokenizer, HAYSTACK, [needle], (61, 90), (50, 100), min_recall=-1.0, **OPTIONS
    )
    model.set_attn_implementation("eager")
    copies = 0
    for prompt, paper, released in zip(test.prompts(), found.scores(), found.scores("released"), strict=True):
        ids = torch.tensor([prompt.ids])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=2
        )
        with torch.inference_mode():
            attentions = model(output, output_attentions=True).attentions
        rows = slice(len(prompt.ids) - 1, output.shape[1] - 1)
        columns = torch.stack([a[0, :, rows].argmax(-1) for a in attentions]).permute(2, 0, 1)
        copied = count_copies(columns, output[0, len(prompt.ids) :], prompt.ids, prompt.span)
        assert torch.equal(copied.paper, paper)
        assert torch.equal(copied.released, released)
        copies += int(copied.steps.sum())
    assert copies > 0


def test_stops_at_newlines_and_ends(copier):
    tokenizer = trained_tokenizer("bytes")
    stops = stop_tokens(copier, tokenizer)
    assert {tokenizer.eos_token_id, copier.generation_config.eos_token_id} <= stops
    assert tokenizer("\n", add_special_tokens=False)["input_ids"][0] in stops
    assert tokenizer("a", add_special_tokens=False)["input_ids"][0] not in stops
    words = copying_tokenizer()
    ids = words("gold is near dry well . gold is near")["input_ids"]
    gold, dry, near, well = (words.convert_tokens_to_ids(word) for word in ("gold", "dry", "near", "well"))
    prompt = CachedPrompt(copier, ids)
    assert prompt.answer(4, frozenset()) == words("dry well . gold")["input_ids"]
    assert prompt.answer(4, frozenset({well})) == [dry, well]  # wound back, and the stop token included
    assert prompt.answer(1, frozenset({gold, near})) == [dry]


def test_no_success_says_so(copier, tokenizer):
    needle = Needle("The gold is near.", "Where is the gold?", "near", "The old ship")
    with pytest.raises(InputError, match=r"none of 1 trials succeeded.*has 0% of the answer's words.*'sails"):
        find_retrieval_heads(copier, tokenizer, HAYSTACK, [needle], (60,), (50,), **OPTIONS)


def test_an_interrupted_run_goes_on(copier, tokenizer, tmp_path, monkeypatch, found):
    log, runs = tmp_path / "deep" / "trials.jsonl", []
    original = search._trial
    monkeypatch.setattr(search, "_trial", lambda test, prompt: runs.append(prompt) or original(test, prompt))

    def stop(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    def run(lengths=LENGTHS, **options):
        return find_retrieval_heads(
            copier,
            tokenizer,
            HAYSTACK,
            [NEEDLE],
            lengths,
            DEPTHS,
            log=log,
            name="copier",
            **{**OPTIONS, **options},
        )

    with pytest.raises(KeyboardInterrupt):
        run(progress=stop)
    assert len(runs) == len(log.read_text().splitlines()) == 2
    with log.open("a") as file:
        file.write('{"key": "killed while wri')
    again = run()
    assert len(runs) == 6
    assert torch.equal(again.paper, found.paper)
    assert again.trials == found.trials
    assert len(log.read_text().splitlines()) == 6
    run()
    run(lengths=(60,))  # part of what is known
    assert len(runs) == 6
    run(lengths=(60, 70), max_new_tokens=8)
    assert len(runs) == 9
    run(max_new_tokens=7)  # another configuration
    assert len(runs) == 15
    weight = copier.model.layers[1].self_attn.o_proj.weight
    with torch.no_grad():
        kept = weight[0, 0].item()
        weight[0, 0] = 0.5  # another model of the same shape
        try:
            run(lengths=(60,))
        finally:
            weight[0, 0] = kept
    assert len(runs) == 18
    log.write_text("something else\n")
    with pytest.raises(InputError, match="is not a log of trials: 'something else"):
        run()


def test_progress_counts(copier, tokenizer):
    told = []
    find_retrieval_heads(
        copier, tokenizer, HAYSTACK, [NEEDLE], (60,), (0, 100), progress=lambda *a: told.append(a), **OPTIONS
    )
    assert told == [("trials", 0, 2), ("trials", 1, 2), ("trials", 2, 2)]
