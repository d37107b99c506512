"""Retrieval heads: scores, prompts, the search on a model whose retrieval head is known, files, masking."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from copying_model import (
    HAYSTACK,
    HEADS,
    LAYERS,
    NEEDLE,
    PREVIOUS,
    RETRIEVAL,
    TEMPLATE,
    copying_model,
    copying_tokenizer,
)
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

from regaze.cli import app
from regaze.errors import BadParameterError, InputError, RegazeError, ShapeError
from regaze.interventions.retrieval_heads import (
    NEEDLES,
    Needle,
    RetrievalHeads,
    ablate_heads,
    count_copies,
    find_retrieval_heads,
    needle_span,
    read_haystack,
    search,
    unigram_recall,
)
from regaze.interventions.retrieval_heads.ablation import choose_masks
from regaze.interventions.retrieval_heads.cached_prompt import CachedPrompt, stop_tokens
from regaze.interventions.retrieval_heads.haystack import Haystack, sentence_ends
from regaze.interventions.retrieval_heads.needle_test import NeedleTest
from regaze.interventions.retrieval_heads.prompt_builder import PromptBuilder
from regaze.toolkit import plot
from regaze.toolkit.prompts.families import family_of
from regaze.toolkit.prompts.prompt_reader import PromptReader

LENGTHS, DEPTHS = (60, 150), (0, 30, 100)
OPTIONS = {"template": TEMPLATE, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def copier():
    return copying_model()


@pytest.fixture(scope="module")
def tokenizer():
    return copying_tokenizer()


@pytest.fixture(scope="module")
def found(copier, tokenizer):
    return find_retrieval_heads(
        copier, tokenizer, HAYSTACK, [NEEDLE], LENGTHS, DEPTHS, name="copier", **OPTIONS
    )


# Scores
# -----------------------------------------------------------------------------------------------------------


def golden(shared, name):
    return json.loads((shared / "goldens/methods/retrieval" / name).read_text())["cases"].items()


def test_goldens_of_the_score(shared):
    tensors = load_file(shared / "goldens/methods/retrieval/score.safetensors")
    for case, about in golden(shared, "score.json"):
        params, given = about["params"], lambda name, case=case: tensors[f"{case}/{name}"]
        output = given("out/output_used")
        rows = given("in/attn")[: len(output)]
        columns = rows.argmax(-1)
        assert torch.equal(columns, given("in/argmax")[: len(output)])
        span = (params["needle_start"], params["needle_end"])
        copied = count_copies(columns, output, given("in/prompt"), span)
        torch.testing.assert_close(copied.released, given("out/score"), rtol=0, atol=1e-9)
        torch.testing.assert_close(copied.paper, given("out/score_set"), rtol=0, atol=1e-9)


def test_goldens_of_the_needle_span(shared):
    for _, about in golden(shared, "needle_span.json"):
        prompt, needle = about["params"]["prompt"], about["params"]["needle"]
        assert (needle_span(prompt, needle, as_released=True) or (-1, -1))[0] == about["found_start"]
        assert (needle_span(prompt, needle) or (-1, -1))[0] == about["exact_start"]


def test_the_released_matcher_starts_early_with_many_different_tokens():
    for kinds, early in ((10, 0), (20, 1)):
        needle = list(range(kinds))
        prompt = [100 + i for i in range(30)] + needle + [200, 201]
        assert needle_span(prompt, needle) == (30, 30 + kinds)
        assert needle_span(prompt, needle, as_released=True) == (30 - early, 30 - early + kinds)


def test_hand_example():
    prompt = [1, 11, 12, 13, 50, 51, 52, 53, 54, 20, 21]
    columns = torch.tensor([4, 5, 6, 7, 7, 0]).view(6, 1, 1)
    copied = count_copies(columns, [50, 51, 99, 53, 53, 54], prompt, (4, 9))
    assert float(copied.released) == pytest.approx(0.8)
    assert float(copied.paper) == pytest.approx(0.6)


def test_invariants_of_the_score():
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(0, 9, (40,), generator=generator)  # tokens repeat, within the needle, too
    span, steps = (11, 24), 30
    output = torch.randint(0, 9, (steps,), generator=generator)
    columns = torch.randint(8, 28, (steps, 3, 5), generator=generator)
    output[:13], columns[:13, 1, 2] = (
        prompt[11:24],
        torch.arange(11, 24),
    )  # a head that copies it all, once ...
    columns[13:, 1, 2] = 0  # ... and then rests
    copied = count_copies(columns, output, prompt, span)
    assert float(copied.paper[1, 2]) == 1.0
    assert float(copied.released[1, 2]) == 1.0
    assert copied.paper.min() >= 0
    assert copied.paper.max() <= 1
    assert (copied.released > 0).sum() > 3  # chance copies something elsewhere
    assert ((copied.paper > 0) == (copied.released > 0)).all()
    order = torch.randperm(5, generator=generator)
    again = count_copies(columns[:, :, order], output, prompt, span)
    assert torch.equal(again.paper, copied.paper[:, order])
    assert torch.equal(again.released, copied.released[:, order])
    for layer in range(3):  # the definition, slowly
        for head in range(5):
            looked = columns[:, layer, head].tolist()
            hits = [
                int(token)
                for j, token in zip(looked, output, strict=True)
                if 11 <= j < 24 and prompt[j] == token
            ]
            assert float(copied.released[layer, head]) == pytest.approx(len(hits) / 13)
            kinds = len(set(prompt[11:24].tolist()))
            assert float(copied.paper[layer, head]) == pytest.approx(len(set(hits)) / kinds)


def test_misfits_of_the_score():
    with pytest.raises(ShapeError, match=r"columns must be \[M, layers, Hq\]"):
        count_copies(torch.zeros(2, 1, 1, dtype=torch.long), [1], [1, 2], (0, 1))
    for span in ((1, 1), (0, 3), (-1, 1)):
        with pytest.raises(ShapeError, match="not a span of the prompt's 2 tokens"):
            count_copies(torch.zeros(1, 1, 1, dtype=torch.long), [1], [1, 2], span)


@pytest.mark.parametrize(
    ("answer", "response", "recall"),
    [  # as the rouge-score package (0.1.2, use_stemmer=True) gives them
        (
            "eat a sandwich and sit in Dolores Park on a sunny day",
            "Eating sandwiches, sitting in the park",
            5 / 12,
        ),
        ("a a b", "a b b", 2 / 3),
        ("the whales", "The WHALE!", 1.0),
        ("well", "", 0.0),
        ("größer als Übermut", "größer ALS übermut", 1.0),  # ours: letters beyond ASCII count
    ],
)
def test_recall(answer, response, recall):
    assert unigram_recall(answer, response) == pytest.approx(recall)


# Prompts
# -----------------------------------------------------------------------------------------------------------

BOOK = (
    "Mr. Holmes met Dr. Watson at 7 a.m. in St. James Park, near the old bank of the river. "
    "It rained all day and nobody was surprised by that! “Is it far?” asked the doctor, who was tired. "
    "J. Smith and the others left early.\n\nThe next chapter begins quietly... and then goes on. "
    "Nobody knows why."
) * 3


def trained(kind):
    """Tokenizers of the two great families, trained on the spot: byte-level, and with a space mark."""
    special = ["<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "metaspace"))
    texts = [BOOK, *(needle.text + needle.question + needle.cue for needle in NEEDLES)]
    alphabet = []
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted({*"".join(texts), *string.printable, "▁"})
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_bos_token = True
    from tokenizers.processors import TemplateProcessing

    fast.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return fast


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("chat", [False, True])
def test_prompts_are_exact(kind, chat):
    tokenizer = trained(kind)
    if chat:
        tokenizer.chat_template = "<s>{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    reader = PromptReader(tokenizer, family_of(LlamaConfig()))
    builder = PromptBuilder(
        reader, [BOOK, BOOK[300:]], NEEDLES, "About: {question}\n\n{context}\n\nSay: {question}"
    )
    plain = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" " + BOOK, " " + BOOK[300:])
    ]
    for number, needle in enumerate(NEEDLES):
        for length in (301, 1500):  # more than the text has: it is repeated
            for depth in (0, 12.5, 50, 100):
                prompt = builder.build(number, length, depth)
                assert len(prompt.ids) == length
                assert (prompt.number, prompt.depth) == (number, depth)
                text = tokenizer.decode(prompt.ids[slice(*prompt.span)])
                assert text.strip().rstrip(".") == needle.answer  # "flour." may be one token
                assert list(prompt.ids).count(tokenizer.bos_token_id) == 1
                assert prompt.ids[0] == tokenizer.bos_token_id
                whole = tokenizer.decode(prompt.ids, skip_special_tokens=True)
                ending = "]" if chat else "\nAnswer:"
                assert whole.endswith(f"Say: {needle.question}{ending} {needle.cue}")
                assert whole.count(needle.text) == 1
                before, _ = whole.split(needle.text)
                if 0 < depth < 100:
                    assert re.search(r"[.!?]”?\s*$", before)
                    assert not re.search(r"\b(Mr|Dr|St|J|a\.m)\.\s*$", before)
                # Apart from the needle, the context is the text's own tokens.
                (head, tail), (hidden, (start, _)) = builder._frames[number], builder._hidden[number]
                place, count = prompt.span[0] - start, length - len(head) - len(tail) - len(hidden)
                rest = list(prompt.ids[:place] + prompt.ids[place + len(hidden) :])
                assert rest == head + (plain[number % 2] * 30)[:count] + tail


def test_the_needle_is_as_in_running_text():
    for kind in ("bytes", "metaspace"):
        tokenizer = trained(kind)
        reader = PromptReader(tokenizer, family_of(LlamaConfig()))
        builder = PromptBuilder(reader, [BOOK], NEEDLES, "{question} {context}")
        running = tokenizer("word " + NEEDLES[1].text, add_special_tokens=False)["input_ids"]
        ids, _ = builder._hidden[1]
        assert running[-len(ids) :] == ids


def test_sentence_ends_in_characters_and_tokens():
    text = "Mr. Fox ran. He (the fox!) fell.\n\nThen what?” Nobody, e.g. the cat, knew… he said. 終わり。次"
    ends = [match + 1 for match in range(len(text))]  # a token per character
    where = [text[: int(end)][-6:] for end in sentence_ends(text, np.asarray(ends))]
    assert where == ["x ran.", " fell.", "what?”", " said.", ". 終わり。"]
    # A token that reaches over the white space behind the stop is split off after it, others never.
    assert sentence_ends("It is. So", np.asarray([2, 7, 9])).tolist() == [2]
    assert sentence_ends("It is. So", np.asarray([2, 8, 9])).tolist() == []
    assert sentence_ends("It is. So", np.asarray([2, 6, 9])).tolist() == [2]


def test_depths_find_the_nearest_sentence_end(tokenizer):
    hay = Haystack("One two three . " * 10, tokenizer)
    assert len(hay.ids) == 40
    assert [hay.place(100, depth) for depth in (0, 1, 5, 50, 57, 100)] == [0, 4, 4, 48, 56, 100]
    with pytest.raises(InputError, match="no sentence of the haystack ends within its first 3 tokens"):
        hay.place(3, 50)


def test_reading_haystacks(tmp_path):
    import gzip

    book = "First line\r\nsecond line.\r\n\r\nNew paragraph\r\n  goes on.\r\n"
    (tmp_path / "a.txt").write_bytes(book.encode("utf-8-sig"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(book.encode()))
    for name in ("a.txt", "b.txt.gz"):
        assert read_haystack(tmp_path / name) == "First line second line.\n\nNew paragraph goes on."
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("empty", "is empty"),
        ("binary", "cannot be read as text"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            read_haystack(tmp_path / name)


def test_prompts_that_cannot_be(copier, tokenizer):
    def refused(message, lengths=(60,), depths=(50,), needles=(NEEDLE,), haystack=HAYSTACK, **options):
        with pytest.raises(RegazeError, match=message):
            find_retrieval_heads(
                copier, tokenizer, haystack, needles, lengths, depths, **{**OPTIONS, **options}
            )

    refused("length 20 is too short: needle and question alone take", lengths=(20,))
    refused(r"percentage in 0\.\.100, got 101", depths=(101,))
    refused("needle and one haystack", needles=())
    refused("needle and one haystack", haystack=[])
    refused("at least one length", lengths=())
    refused(r"\{context\} exactly once", template="{question}")
    refused("do not fit into the model's context of 512", lengths=(510,))
    refused("the haystack is empty", haystack="  ")
    with pytest.raises(BadParameterError, match="must occur exactly once in the needle"):
        Needle("a b", "what?", "c")
    with pytest.raises(BadParameterError, match="has no question"):
        Needle("a b", " ", "a")


# The search
# -----------------------------------------------------------------------------------------------------------


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
    tokenizer = trained("bytes")
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


# Files
# -----------------------------------------------------------------------------------------------------------


def test_both_formats_come_back(found, tmp_path):
    found.save(tmp_path / "ours.json")
    again = RetrievalHeads.load(tmp_path / "ours.json")
    assert torch.equal(again.paper, found.paper)
    assert torch.equal(again.released, found.released)
    assert again.trials == found.trials
    assert json.loads(json.dumps(again.about)) == json.loads(json.dumps(found.about))
    content = json.loads((tmp_path / "ours.json").read_text())
    assert content["mean"] == {"1-2": [1.0, 1.0, 1.0]}
    found.save_released(tmp_path / "released.json")
    text = (tmp_path / "released.json").read_text()
    assert "\n" not in text
    assert json.loads(text) == {
        f"{layer}-{head}": [1.0 if (layer, head) == RETRIEVAL else 0.0] * 6
        for layer in range(LAYERS)
        for head in range(HEADS)
    }
    released = RetrievalHeads.load(tmp_path / "released.json")
    assert torch.equal(released.released, found.released)
    assert released.top(1, "released") == [RETRIEVAL]
    with pytest.raises(BadParameterError, match="no paper scores"):
        released.top(1)
    with pytest.raises(BadParameterError, match="save_released"):
        released.save(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "is no head file"),
        ("{}", "no trial succeeded"),
        ('{"0-0": [], "0-1": []}', "no trial succeeded"),
        ('{"0-0": [0.5], "1-1": [0.5]}', "heads are missing"),
        ('{"0-0": [0.5], "0-1": [0.5, 0.1]}', "lists of different lengths"),
        ('{"zero": [0.5]}', "is no head file"),
        ('{"format": "other", "version": 1}', "this version reads"),
        ('{"format": "regaze retrieval heads", "version": 1, "layers": 1}', "KeyError: 'trials'"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "heads.json").write_text(content)
    with pytest.raises(InputError, match=message):
        RetrievalHeads.load(tmp_path / "heads.json")


def test_ties_go_to_the_lower_head():
    scores = torch.tensor([[[0.0, 0.5], [0.5, 0.2]], [[0.0, 0.5], [0.5, 0.4]]]).double()
    heads = RetrievalHeads(scores, scores)
    assert heads.top(4) == [(0, 1), (1, 0), (1, 1), (0, 0)]
    assert heads.below(0.4) == [(0, 0), (1, 1)]
    assert heads.frequency().tolist() == [[0, 1], [1, 1]]
    with pytest.raises(BadParameterError, match="no top 5"):
        heads.top(5)
    with pytest.raises(BadParameterError, match='"paper" or "released"'):
        heads.mean("mine")


# Masking
# -----------------------------------------------------------------------------------------------------------


def ablate(copier, tokenizer, heads, **options):
    merged = {"counts": (0, 1, 3), "draws": 4, **OPTIONS, **options}
    return ablate_heads(copier, tokenizer, heads, HAYSTACK, [NEEDLE], (60,), (20, 80), **merged)


@pytest.mark.parametrize("mode", ["zero", "uniform"])
def test_masking_the_head_loses_the_needle(copier, tokenizer, found, tmp_path, mode):
    result = ablate(copier, tokenizer, found, mode=mode, log=tmp_path / "log")
    done = [json.loads(line)["knockout"] for line in (tmp_path / "log").read_text().splitlines()]
    assert {knockout["mode"] for knockout in done} == {mode}
    assert {tuple(map(tuple, knockout["heads"])) for knockout in done} == {
        tuple(sorted(c.heads)) for c in result.recall
    }
    assert result.needle_score("top", 0)["value"] == result.needle_score("random", 0)["value"] == 100
    for count in (1, 3):
        assert result.needle_score("top", count)["value"] == result.success("top", count) == 0
        # The answer is read from keys and values that exist already: it needs no other head.
        assert result.draws(count) == [100.0] * 4
        assert result.difference(count) == {"value": -100, "low": -100, "high": -100}


def test_masking_while_reading_breaks_the_circuit(copier, tokenizer, found):
    """The other half of the circuit, which scores 0, is needed at prefill."""
    result = ablate(copier, tokenizer, found, while_reading=True)
    for condition, recall in result.recall.items():
        expected = 0.0 if {PREVIOUS, RETRIEVAL} & set(condition.heads) else 1.0
        assert recall.tolist() == [expected] * 2, condition
    draws = [c for c in result.recall if c.kind == "random"]
    assert any(PREVIOUS in c.heads for c in draws)
    assert any(PREVIOUS not in c.heads for c in draws)
    score = result.needle_score("random", 1)
    assert 0 <= score["low"] < score["value"] < score["high"] <= 100


def test_masking_spares_the_prompt_unless_asked_not_to(copier, tokenizer):
    scores = torch.zeros(1, LAYERS, HEADS, dtype=torch.float64)
    scores[0][PREVIOUS] = 1.0
    heads, options = RetrievalHeads(scores, scores), {"counts": (1,), "draws": 1}
    assert ablate(copier, tokenizer, heads, **options).needle_score("top", 1)["value"] == 100
    reading = ablate(copier, tokenizer, heads, while_reading=True, **options)
    assert reading.needle_score("top", 1)["value"] == 0


def test_masking_goes_on_after_an_interruption(copier, tokenizer, found, tmp_path):
    def stop(what, done, total):
        if done == 1:
            raise KeyboardInterrupt

    log = tmp_path / "masking.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ablate(copier, tokenizer, found, log=log, progress=stop)
    lines = log.read_text().splitlines()
    result = ablate(copier, tokenizer, found, log=log)
    assert log.read_text().splitlines()[: len(lines)] == lines
    fresh = ablate(copier, tokenizer, found)
    assert {c: r.tolist() for c, r in result.recall.items()} == {
        c: r.tolist() for c, r in fresh.recall.items()
    }
    assert len(log.read_text().splitlines()) < 2 * len(result.recall) + 1


def test_random_heads_are_seeded_and_no_retrieval_heads():
    mean = torch.zeros(1, 4, 6, dtype=torch.float64)
    mean[0, 1, :5] = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.05])
    heads = RetrievalHeads(mean, mean)
    conditions = choose_masks(heads, (2, 0, 10), draws=5)
    assert [(c.kind, c.count) for c in conditions] == (
        [("top", 0), ("top", 2), ("top", 10)] + [("random", 2)] * 5 + [("random", 10)] * 5
    )
    assert conditions[1].heads == ((1, 0), (1, 1))
    for c in conditions[3:]:
        assert len(set(c.heads)) == c.count
        assert not set(c.heads) & {(1, 0), (1, 1), (1, 2), (1, 3)}
        assert not set(c.heads) & set(heads.top(c.count))
    assert len({c.heads for c in conditions[3:]}) == 10
    assert choose_masks(heads, (2, 0, 10), draws=5) == conditions
    assert set(choose_masks(heads, (2,), draws=3)) <= set(conditions)
    assert choose_masks(heads, (2,), draws=1, seed=1)[-1].heads != conditions[3].heads
    with pytest.raises(
        BadParameterError, match=r"20 random heads are needed, but only \d+ heads score below 0\.1"
    ):
        choose_masks(heads, (20,), draws=1)
    for counts, draws in (((), 1), ((2,), 0)):
        with pytest.raises(BadParameterError, match="at least one count and one random draw"):
            choose_masks(heads, counts, draws)


def test_masking_as_json(copier, tokenizer, found):
    result = ablate(copier, tokenizer, found, counts=(0, 1), draws=2)
    content = json.loads(json.dumps(result.to_dict()))
    assert [(f["heads"], f["kind"], f["value"]) for f in content["figures"]] == [
        (0, "none", 100.0),
        (1, "top", 0.0),
        (1, "random", 100.0),
    ]
    assert content["cells"][0] == {"length": 60, "needle": 0, "depth": 20}
    assert [c["heads"] for c in content["conditions"]][:2] == [[], [list(RETRIEVAL)]]
    assert content["heads of"] == "copier"
    with pytest.raises(BadParameterError, match=r"7 top heads were not masked; there are \[0, 1\]"):
        result.needle_score("top", 7)


def test_nothing_stays_on_the_model(copier, tokenizer, found):
    ids = torch.tensor([tokenizer(HAYSTACK)["input_ids"]])
    before = copier(ids).logits
    ablate(copier, tokenizer, found, counts=(0, 1), draws=1)
    assert torch.equal(copier(ids).logits, before)
    assert "_regaze_hook" not in copier.__dict__


# Command line and picture
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(copier, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "copier"
    copier.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path.parent / "hay.txt").write_text(HAYSTACK)
    needle = {"text": NEEDLE.text, "question": NEEDLE.question, "answer": NEEDLE.answer, "cue": NEEDLE.cue}
    (path.parent / "needles.json").write_text(json.dumps([needle]))
    return path


def command(folder: Path, *more: str):
    files = ["--haystack", str(folder.parent / "hay.txt"), "--needles", str(folder.parent / "needles.json")]
    sizes = ["--lengths", "100,150", "--depths", "0,50", "--max-new-tokens", "8"]
    return CliRunner().invoke(app, ["heads", str(folder), *files, *sizes, *more])


def test_command(folder, tmp_path):
    result = command(folder, "--output", str(tmp_path / "out"), "--top", "3")
    assert result.exit_code == 0, result.output
    assert "copier: 4 of 4 trials succeeded; 8 heads" in result.output
    assert "score at least 0.5: 1 (12.5%)" in result.output
    assert re.search(r"1 +2 +1\.000 +1\.000 +100%", result.output)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "heads.json",
        "heads.png",
        "heads_released.json",
        "trials.jsonl",
    ]
    assert RetrievalHeads.load(tmp_path / "out/heads.json").top(1) == [RETRIEVAL]
    again = command(folder, "--output", str(tmp_path / "out"), "--json")
    assert json.loads(again.stdout)["released"][1][2] == 1.0
    assert len((tmp_path / "out/trials.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "many"), "--lengths many: expected numbers such as"),
        (("--score", "mine"), "--score mine: expected paper or released"),
        (("--haystack", "nowhere.txt"), "haystack 'nowhere.txt' cannot be read as text"),
        (("--needles", "nowhere.json"), "--needles nowhere.json: "),
        (("--lengths", "9"), "length 9 is too short"),
    ],
)
def test_command_refuses_in_one_line(folder, tmp_path, arguments, message):
    result = command(folder, "--output", str(tmp_path), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_picture_of_the_scores(found, tmp_path):
    figure = plot.head_scores(found.mean(), marked=[RETRIEVAL], label="score", path=tmp_path / "heads.png")
    axes, bar = figure.axes
    assert axes.images[0].get_array().tolist() == found.mean().tolist()
    assert axes.images[0].get_clim() == (0, 1)
    (frame,) = axes.patches
    assert (frame.get_y(), frame.get_x()) == (RETRIEVAL[0] - 0.5, RETRIEVAL[1] - 0.5)
    assert bar.get_ylabel() == "score"
    assert (tmp_path / "heads.png").stat().st_size > 1000
    with pytest.raises(BadParameterError, match=r"scores must be \[layers, Hq\]"):
        plot.head_scores(torch.zeros(3))
    with pytest.raises(BadParameterError, match="head 4"):
        plot.head_scores(found.mean(), marked=[(0, 4)])
