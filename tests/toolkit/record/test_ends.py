"""A sample's record is that of its answer alone, however long its neighbours in the batch go on."""

from __future__ import annotations

import pytest
import torch
from models import llava_processor, picture, tiny_llava
from transformers import AutoModelForCausalLM, Gemma3TextConfig, StoppingCriteria

import regaze
from regaze import Record
from regaze.toolkit.analysis import attention_entropy, head_table, role_flow, sink_share
from regaze.toolkit.viewer import record_page
from regaze.toolkit.viewer.trace_view import TraceView


class StopAt(StoppingCriteria):
    """Ends a sequence as a stop string does: what follows is no padding."""

    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


QUESTIONS = ["Is there a dog in the image?", "What?"]
WANTED = {"entropy": True, "top1": True, "slices": "image"}


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.fixture(scope="module")
def gaze(model):
    return regaze.wrap(model, llava_processor())


def prompts(gaze, samples=(0, 1)):
    return gaze.inputs([picture(i + 1) for i in samples], [QUESTIONS[i] for i in samples])


@pytest.fixture(scope="module")
def stop(gaze, model):
    """A token that ends the first answer at once, and the second answer later."""
    inputs = prompts(gaze)
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
    answers = out[:, inputs["input_ids"].shape[1] :].tolist()
    assert answers[1].index(answers[0][0]) > 1
    return answers[0][0]


def compare(batch: Record, alone: Record, sample: int, row: int = 0) -> None:
    """Everything about a sample of a batch equals everything about it alone."""
    assert batch[0].answer_text(sample) == alone[0].answer_text(row)
    pairs = [(batch, sample), (alone, row)]
    flows = [role_flow(record, sample=number) for record, number in pairs]
    torch.testing.assert_close(flows[0].masses, flows[1].masses, rtol=0, atol=1e-5)
    assert flows[0].text == flows[1].text
    for measure in (attention_entropy, sink_share):
        torch.testing.assert_close(
            *(measure(record, sample=number) for record, number in pairs), rtol=0, atol=1e-4
        )
    views = [TraceView(record[0], number) for record, number in pairs]
    assert views[0].pieces == views[1].pieces
    assert views[0].rows == views[1].rows
    assert not batch[0].masses[:, sample][:, :, ~batch[0].row_active[sample]].any()


@pytest.mark.parametrize("how", ["ask", "generate", "own criterion", "sampled"])
def test_a_short_answer_beside_a_long_one(gaze, model, stop, how):
    options = {"max_new_tokens": 6, "eos_token_id": stop}
    if how == "own criterion":
        options = {"max_new_tokens": 6, "eos_token_id": None, "stopping_criteria": [StopAt(stop)]}

    def record(*samples: int) -> Record:
        with gaze.recording(**WANTED) as found:
            if how == "ask":
                gaze.ask([picture(i + 1) for i in samples], [QUESTIONS[i] for i in samples], **options)
            elif how == "sampled":
                model.generate(**prompts(gaze, samples), **options, do_sample=True, top_k=1)
            else:
                model.generate(**prompts(gaze, samples), **options, do_sample=False)
        return found

    both, first, second = record(0, 1), record(0), record(1)
    assert len(first[0].row_step) < len(both[0].row_step), "the long answer goes on"
    assert both[0].row_active.sum(1).tolist() == [len(first[0].row_step), len(second[0].row_step)]
    compare(both, first, 0)
    compare(both, second, 1)
    tables = head_table(both), [head_table(each) for each in (first, second)]
    counts = [len(first[0].row_step), len(second[0].row_step)]
    for row in tables[0]:
        own = [next(r for r in t if (r.layer, r.head) == (row.layer, row.head)) for t in tables[1]]
        mean = sum(n * r.mass for n, r in zip(counts, own, strict=True)) / sum(counts)
        assert row.mass == pytest.approx(mean, abs=1e-5)


def test_the_file_and_the_page_of_a_short_answer(gaze, model, stop, tmp_path):
    with gaze.recording(**WANTED) as both:
        model.generate(**prompts(gaze), max_new_tokens=6, eos_token_id=stop, do_sample=False)
    with gaze.recording(**WANTED) as alone:
        model.generate(**prompts(gaze, (0,)), max_new_tokens=6, eos_token_id=stop, do_sample=False)
    both.save(tmp_path / "both.safetensors")
    compare(Record.load(tmp_path / "both.safetensors"), alone, 0)
    pages = [tmp_path / "both.html", tmp_path / "alone.html"]
    for record, page in zip((both, alone), pages, strict=True):
        record_page(record).save(page)
    assert pages[0].stat().st_size == pytest.approx(pages[1].stat().st_size, rel=0.01)


@pytest.mark.parametrize("early", [True, False, "never"])
def test_beams_of_a_prompt_that_is_answered(gaze, model, stop, early):
    """One prompt's beams are done before another's; its rows end there, as they do alone."""
    options = {"num_beams": 3, "max_new_tokens": 7, "do_sample": False, "early_stopping": early}
    ends = [stop, *range(20, 400)] if early is not True else [stop, *range(20, 60)]

    def record(*samples: int) -> Record:
        with gaze.recording(**WANTED) as found:
            model.generate(**prompts(gaze, samples), **options, eos_token_id=ends)
        return found

    both, alone = record(0, 1), [record(0), record(1)]
    counts = [len(each[0].row_step) for each in alone]
    assert both[0].row_active.sum(1).tolist() == [counts[0]] * 3 + [counts[1]] * 3
    for prompt in (0, 1):
        for beam in range(3):
            compare(both, alone[prompt], 3 * prompt + beam, beam)


def test_a_further_turn_is_recorded_whole(gaze, model, stop):
    inputs = prompts(gaze, (0,))
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    with gaze.recording(**WANTED) as record:
        first = model.generate(**inputs, **options, eos_token_id=stop)
        ids = torch.cat([first.sequences, torch.tensor([[20, 21, 22]])], 1)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=first.past_key_values,
            **options,
            eos_token_id=None,
        )
    trace = record[0]
    assert bool(trace.row_active.all())
    assert trace.output_ids.shape[1] == ids.shape[1] + 3 - inputs["input_ids"].shape[1]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_all_columns_of_windowed_and_full_layers(cache):
    """A static cache has another size in each kind of layer; columns are those of the sequence in all."""
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    prompt = {"input_ids": torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with regaze.wrap(model).recording(masses=False, slices="all") as record:
        ids = model.generate(**prompt, **options, cache_implementation=cache)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = model(ids[:, :-1], output_attentions=True).attentions
    for layer in range(4):
        want = eager[layer][:, :, 8:]
        torch.testing.assert_close(record[0].slices[layer][..., :13], want, rtol=0, atol=1e-5)
        assert not record[0].slices[layer][..., 13:].any()
