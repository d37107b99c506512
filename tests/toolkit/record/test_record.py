"""Records hold what eager attention would have shown, say what they lack, and survive a file."""

from __future__ import annotations

import json

import pytest
import torch
from models import llava_processor, logits_of, picture, small_var, tiny_llama, tiny_llava
from safetensors import safe_open
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import regaze
from regaze import HeadKnockout, Record, Role
from regaze.errors import CompositionError, RecordingError
from regaze.interventions import method_from_dict
from regaze.toolkit.model import compat
from regaze.toolkit.record.options import RecordArguments, RecordOptions
from regaze.toolkit.record.trace import token_texts

QUESTIONS = ["Is there a dog in the image?", "What?"]
EVERYTHING = {"entropy": True, "top1": True, "lse": True, "slices": "all"}


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1), picture(2)], QUESTIONS)


def generate(model, inputs, tokens=4):
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=None)


@pytest.fixture(scope="module")
def eager(model, inputs):
    """Eager attention of the same generation: per step, per layer, [B, H, Lq, Lk]."""
    model.set_attn_implementation("eager")
    out = model.generate(
        **inputs,
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    model.set_attn_implementation("sdpa")
    return out.attentions


def test_layers_are_measured_together_when_a_step_has_ended(gaze, model, inputs, monkeypatch):
    """Each layer is the plain model's; one launch is about all of them where one can be."""
    launch = pytest.importorskip("regaze.kernels.numba.launch")
    order, kernel, plain = [], launch.kernel.attend_calls, sdpa_attention_forward
    counted = lambda calls, count: (order.append(count), kernel(calls, count))  # noqa: E731
    monkeypatch.setattr(launch.kernel, "attend_calls", counted)
    monkeypatch.setattr(
        compat.attention, "sdpa_attention_forward", lambda *a, **k: (order.append("plain"), plain(*a, **k))[1]
    )
    with gaze.recording() as record:
        generate(model, inputs)
    layers = ["plain"] * 6
    assert order == 4 * [*layers, 6]
    order.clear()
    with gaze.using(HeadKnockout([(2, 0)])), gaze.recording() as beside:
        generate(model, inputs)
    assert order[-7:] == ["plain", "plain", 1, "plain", "plain", "plain", 5]  # layer 2 measures itself
    together, apart = record[0].masses[:3, :, :, 0], beside[0].masses[:3, :, :, 0]
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", ["last", "text", "all"])
def test_equal_to_eager(gaze, model, inputs, eager, rows):
    with gaze.recording(rows=rows, **EVERYTHING) as record:
        generate(model, inputs)
    trace = record[0]
    tokens, length = gaze.tokens(inputs), inputs["input_ids"].shape[1]
    assert trace.layers == tuple(range(6))
    one_hot = torch.nn.functional.one_hot(tokens.roles.long(), len(Role)).float()
    for n, (step, position) in enumerate(
        zip(trace.row_step.tolist(), trace.row_position.tolist(), strict=True)
    ):
        active = trace.row_active[:, n]
        for layer in range(6):
            row = eager[step][layer][:, :, position if step == 0 else 0][active]
            keys = row.shape[-1]
            extra = torch.nn.functional.one_hot(torch.zeros(2, keys - length).long(), len(Role)).float()
            roles = torch.cat([one_hot, extra], 1)[active]
            close = {"rtol": 0, "atol": 1e-5}
            torch.testing.assert_close(trace.slices[layer][active][:, :, n, :keys], row, **close)
            torch.testing.assert_close(trace.masses[layer][active][:, :, n], row @ roles, **close)
            entropy = torch.special.entr(row).sum(-1)
            torch.testing.assert_close(trace.entropy[layer][active][:, :, n], entropy, **close)
            torch.testing.assert_close(trace.top_weight[layer][active][:, :, n], row.amax(-1), **close)
            found = row.gather(-1, trace.top_column[layer][active][:, :, n, None])[..., 0]
            torch.testing.assert_close(found, row.amax(-1), **close)
    assert (
        len(trace.row_step)
        == {"last": 1, "text": int(tokens.after_image().any(0).sum()), "all": length}[rows] + 3
    )


def test_recording_alone_changes_no_bit(gaze, model, inputs):
    plain = logits_of(model, inputs)
    with gaze.recording(rows="all", **EVERYTHING):
        assert torch.equal(plain, logits_of(model, inputs))


def test_unedited_by_default_edited_on_request(gaze, model, inputs):
    def record(**options):
        with gaze.using(small_var()), gaze.recording(rows="text", **options) as record:
            model(**inputs)
        return record[0]

    with gaze.recording(rows="text", layers=[0, 1, 2]) as plain:
        model(**inputs)
    unedited, edited = record(), record(edited=True)
    torch.testing.assert_close(unedited.masses[:3], plain[0].masses, rtol=0, atol=1e-6)
    gained = (edited.masses - unedited.masses)[2][..., Role.IMAGE]
    assert gained.max() > 0.01
    torch.testing.assert_close(edited.masses.sum(-1), unedited.masses.sum(-1), rtol=0, atol=1e-5)
    assert method_from_dict(edited.interventions[0]) == small_var()


def test_chosen_layers_and_steps(gaze, model, inputs):
    with gaze.recording(layers=[4, 1], steps=[0, 2]) as record:
        generate(model, inputs)
    trace, length = record[0], inputs["input_ids"].shape[1]
    assert trace.layers == (1, 4)
    assert trace.masses.shape == (2, 2, 6, 2, len(Role))
    assert trace.row_step.tolist() == [0, 2]
    assert trace.row_position.tolist() == [length - 1, length + 1]


def test_image_slices_become_maps(gaze, model, eager):
    batch = gaze.inputs([[picture(1), picture(2)], picture(3)], ["Which?", "What is it?"])
    with gaze.recording(masses=False, slices="all") as whole, gaze.using(HeadKnockout()):
        generate(model, batch, 2)
    with gaze.recording(masses=False, slices="image") as record:
        generate(model, batch, 2)
    trace, tokens = record[0], gaze.tokens(batch)
    assert (trace.slice_columns[1] >= 0).sum() == 64
    for sample, number in ((0, 0), (0, 1), (1, 0)):
        maps = trace.image_maps(sample, number)
        cells = tokens.image_cells(sample, number)
        assert maps.shape == (6, 6, 2, 8, 8)
        torch.testing.assert_close(
            maps.flatten(-2), whole[0].slices[:, sample][..., cells], rtol=0, atol=1e-6
        )


def test_a_trace_per_generation_and_the_answers_words(gaze):
    with gaze.recording() as record:
        answers = gaze.ask(
            [picture(1), picture(2), None], [*QUESTIONS, "Hello"], batch_size=2, max_new_tokens=3
        )
    assert [trace.masses.shape[1] for trace in record] == [2, 1]
    assert repr(record).startswith(
        "Record: 2 traces\n  Trace(layers [0..5], steps 0..2: masses [6, 2, 6, 3, 7])"
    )
    decoded = llava_processor().tokenizer.decode(record[1].output_ids[0], skip_special_tokens=True).strip()
    assert decoded == answers[2]
    assert len(record[0].answer_text(1)) == len(record[0].answer_rows()) == record[0].output_ids.shape[1]
    assert record[0].row_step[record[0].answer_rows()].tolist() == [0, 1, 2]


def test_file_round_trip(gaze, model, inputs, tmp_path):
    with gaze.using(small_var()), gaze.recording(slices="image", entropy=True) as record:
        generate(model, inputs)
        generate(model, inputs, 2)
    record.save(tmp_path / "record.safetensors")
    again = Record.load(tmp_path / "record.safetensors")
    assert again.header == record.header
    assert again.header["versions"]["regaze"] == regaze.__version__
    for old, new in zip(record, again, strict=True):
        for name in (
            "masses",
            "entropy",
            "slices",
            "slice_columns",
            "row_position",
            "row_step",
            "row_active",
            "input_ids",
        ):
            assert torch.equal(getattr(old, name), getattr(new, name))
        assert torch.equal(old.tokens.roles, new.tokens.roles)
        assert (old.text, old.layers, old.interventions) == (new.text, new.layers, tuple(new.interventions))
        assert torch.equal(old.image_maps(1), new.image_maps(1))
    assert method_from_dict(again[0].interventions[0]) == small_var()


def test_names_of_tensors_in_a_file_stay(gaze, model, inputs, tmp_path):
    """Files of earlier versions must stay readable."""
    with gaze.recording(slices="image") as record:
        generate(model, inputs, 2)
    record.save(tmp_path / "record.safetensors")
    with safe_open(str(tmp_path / "record.safetensors"), "pt") as file:
        assert set(file.keys()) == {
            f"0.{name}"
            for name in (
                *("masses", "slices", "slice_columns", "row_position", "row_step", "row_active"),
                *("input_ids", "tokens.roles", "tokens.image", "tokens.cell", "output_ids"),
            )
        }
        header = json.loads(file.metadata()["regaze"])
    assert set(header) == {"format", "versions", "model", "wanted", "traces"}
    assert set(header["traces"][0]) == {"layers", "views", "text", "interventions", "cross"}


def test_files_that_are_no_records(tmp_path):
    (tmp_path / "text").write_text("not a record")
    with pytest.raises(RecordingError, match="is not a"):
        Record.load(tmp_path / "text")
    with pytest.raises(RecordingError, match="is not a"):
        Record.load(tmp_path / "absent")


def test_statistics_live_on_the_cpu_in_fp32():
    model = tiny_llava().to(torch.bfloat16)
    gaze = regaze.wrap(model, llava_processor())
    batch = gaze.inputs([picture(1)], ["What?"])
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    with gaze.recording(slices="image", lse=True) as record:
        generate(model, batch, 2)
    trace = record[0]
    assert {t.dtype for t in (trace.masses, trace.slices, trace.lse)} == {torch.float32}
    torch.testing.assert_close(trace.masses.sum(-1), torch.ones_like(trace.masses[..., 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2, 6]}, r"layers \[6\] do not exist: LlavaForConditionalGeneration has layers 0..5"),
        ({"layers": 3}, "layers must be a list of numbers, got 3"),
        ({"slices": "text"}, 'slices must be "image", "all" or None'),
        ({"rows": "first"}, 'rows must be "last", "text" or "all"'),
        ({"masses": False}, "nothing to record"),
        ({"attentions": True}, "cannot record attentions; choose from masses"),
    ],
)
def test_what_cannot_be_recorded_is_refused_at_once(gaze, options, message):
    with pytest.raises(RecordingError, match=message), gaze.recording(**options):
        pass


def test_what_turns_out_missing_is_refused(gaze, model, inputs):
    with pytest.raises(RecordingError, match="no prompt was run"), gaze.recording():
        pass
    with pytest.raises(RecordingError, match="steps"), gaze.recording(steps=[7]):
        generate(model, inputs, 2)
    with pytest.raises(RecordingError, match="has no image"), gaze.recording(slices="image"):
        generate(model, gaze.inputs([None], ["Hello"]), 2)
    with pytest.raises(RecordingError, match="no text follows an image"), gaze.recording(rows="text"):
        generate(model, gaze.inputs([None], ["Hello"]), 2)
    with gaze.recording(entropy=True, masses=False) as record:
        generate(model, inputs, 2)
    with pytest.raises(RecordingError, match="masses=True"):
        record[0].require("masses")
    embeds = tiny_llama().get_input_embeddings()(torch.randint(5, 40, (1, 8)))
    text = tiny_llama()
    with pytest.raises(RecordingError, match="roles"), regaze.wrap(text).recording():
        text(inputs_embeds=embeds)
    with regaze.wrap(text).recording(masses=False, entropy=True) as record:
        text(inputs_embeds=embeds)
    assert record[0].entropy.shape == (5, 1, 6, 1)


def test_one_recording_at_a_time(gaze, model):
    with gaze.recording(masses=True) as record:
        with pytest.raises(CompositionError, match="already open"), gaze.recording(entropy=True):
            pass
        with pytest.raises(RecordingError, match="nothing is recorded yet"):
            record[0]
        generate(model, gaze.inputs([None], ["Hello"]), 2)
    assert len(record) == 1
    assert model.config.text_config._attn_implementation == "sdpa"


def test_words_are_whole_words(gaze):
    question = "Is there a car next to the carrot on the cell  phone?"
    with gaze.recording(slices="image", rows="text") as record:
        gaze.ask([picture(1)], [question], max_new_tokens=2, eos_token_id=None)
    trace, decode = record[0], llava_processor().tokenizer.decode
    for word, last in (
        ("car", "car"),
        ("carrot", "carrot"),
        ("Cell phone", "phone"),
        ("is there", "there"),
        ("?", "?"),
    ):
        position = int(trace.row_position[trace.row_of(word)])
        assert decode(trace.input_ids[0, position]).strip() == last
    with pytest.raises(ValueError, match="'ea' occurs neither"):
        trace.row_of("ea")


def test_beams_are_recorded_without_words_of_another_beam(gaze):
    with gaze.recording() as record:
        answers = gaze.ask([picture(1)] * 2, QUESTIONS, num_beams=3, max_new_tokens=3)
    assert len(answers) == 2
    assert record[0].masses.shape[1] == 6


def test_equal_tokens_are_decoded_once():
    """A picture is some hundred of them, and prompts of a batch have many in common."""
    tokenizer, decoded = llava_processor().tokenizer, []

    class Counting:
        def batch_decode(self, parts):
            decoded.extend(parts)
            return tokenizer.batch_decode(parts)

    ids = torch.tensor([[1, 1105, *[4] * 64, 280, 335], [1, 1105, *[4] * 64, 280, 280]])
    texts = token_texts(Counting(), ids, None)
    assert len(decoded) == 5 + 6  # tokens alone, and two that follow each other
    for row, sample in zip(ids.tolist(), texts, strict=True):
        assert len(sample) == len(row)
        assert "".join(sample) == tokenizer.decode(row)
    assert token_texts(Counting(), ids[:, 1:2], None) == (tuple(texts[0][1:2]), tuple(texts[0][1:2]))


def test_type_checkers_know_every_option():
    assert set(RecordArguments.__annotations__) == set(RecordOptions.__dataclass_fields__)
