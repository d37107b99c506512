"""Wrapping leaves a model as it was; inside `using`, everything that transformers can do works."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from family_checks import case_of
from models import context_for, llava_processor, logits_of, picture, small_var, tiny_llama, tiny_llava
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, TextStreamer, pipeline
from zoo.every import VISION

import regaze
from regaze import HeadKnockout, Role, TokenMap
from regaze.errors import BadParameterError, CompositionError, InputError, UnsupportedModelError
from regaze.interventions import Intervention
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.prompts.families import UnknownFamily

QUESTIONS = ["Is there a dog in the image?", "Please describe this image in detail.", "What?"]


@pytest.fixture(scope="module")
def inputs(model):
    images = [picture(1), picture(2), picture(3)]
    return regaze.wrap(model, llava_processor()).inputs(images, QUESTIONS)


def is_untouched(model) -> bool:
    """No hook and no attribute of ours on any module (transformers has hooks of its own), and SDPA again."""
    hooks = [
        hook for m in model.modules() for hook in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())
    ]
    ours = [hook for hook in hooks if hook.__module__.startswith("regaze")]
    marked = [m for m in model.modules() if any(name.startswith("_regaze") for name in m.__dict__)]
    return not ours and not marked and model.config.text_config._attn_implementation == "sdpa"


def test_idle_is_bit_identical_and_leaves_nothing_behind(model, gaze, inputs):
    before = logits_of(model, inputs)
    with gaze.using():
        assert model.config.text_config._attn_implementation == "regaze"
        assert model.config.vision_config._attn_implementation == "sdpa"
        idle = logits_of(model, inputs)
    assert torch.equal(before, idle)
    assert is_untouched(model)
    assert torch.equal(before, logits_of(model, inputs))


def test_restored_after_an_exception(model, gaze, inputs):
    before = logits_of(model, inputs)

    def fail():
        with gaze.using(small_var()):
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert is_untouched(model)
    assert torch.equal(before, logits_of(model, inputs))


def test_restored_after_an_exception_inside_the_forward(model, gaze, inputs):
    class Broken(Intervention):
        def edit(self, layer, step, context):
            raise RuntimeError("in a layer")

    before = logits_of(model, inputs)
    with pytest.raises(RuntimeError, match="in a layer"), gaze.using(Broken()):
        model.generate(**inputs, max_new_tokens=2)
    assert is_untouched(model)
    with gaze.using():
        assert torch.equal(before, logits_of(model, inputs))


def test_previous_implementation_comes_back():
    model = tiny_llama()
    model.set_attn_implementation("eager")
    with regaze.wrap(model).using():
        assert model.config._attn_implementation == "regaze"
    assert model.config._attn_implementation == "eager"


def test_nested_blocks_act_together_and_leave_one_by_one(model, gaze, inputs):
    knock = HeadKnockout(heads=((0, 1), (3, 2)))
    with gaze.using(small_var(), knock):
        together = logits_of(model, inputs)
    with gaze.using(small_var()):
        alone = logits_of(model, inputs)
        with regaze.wrap(model, llava_processor()).using(knock):
            nested = logits_of(model, inputs)
        after = logits_of(model, inputs)
    assert torch.equal(together, nested)
    assert torch.equal(alone, after)
    assert not torch.equal(alone, nested)
    assert is_untouched(model)


def test_two_models_do_not_see_each_other(gaze, model, inputs):
    other = tiny_llava(seed=5)
    before = logits_of(other, inputs)
    with gaze.using(HeadKnockout(heads=((2, 0),))):
        assert torch.equal(before, logits_of(other, inputs))
        with regaze.wrap(other, llava_processor()).using(HeadKnockout(heads=((1, 0),))):
            edited = logits_of(other, inputs)
    with regaze.wrap(other, llava_processor()).using(HeadKnockout(heads=((1, 0),))):
        assert torch.equal(edited, logits_of(other, inputs))
    assert is_untouched(model)
    assert is_untouched(other)


def test_two_threads_with_a_model_each(inputs):
    models = [tiny_llava(seed) for seed in (0, 1)]
    methods = [small_var(), HeadKnockout(heads=((4, 5),))]
    expected, found = [], [None, None]
    for model, method in zip(models, methods, strict=True):
        with regaze.wrap(model, llava_processor()).using(method):
            expected.append(logits_of(model, inputs))

    def run(index):
        with regaze.wrap(models[index], llava_processor()).using(methods[index]):
            found[index] = logits_of(models[index], inputs)

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_hand_written_loop_equals_generate(model, gaze, inputs):
    with gaze.using(small_var()):
        expected = logits_of(model, inputs)
        mask = inputs["attention_mask"]
        out = model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=True)
        steps, position = [out.logits[:, -1]], mask.sum(1, keepdim=True)
        for _ in range(4):
            token = steps[-1].argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            out = model(
                input_ids=token,
                attention_mask=mask,
                position_ids=position,
                past_key_values=out.past_key_values,
            )
            position = position + 1
            steps.append(out.logits[:, -1])
    torch.testing.assert_close(torch.stack(steps), expected, rtol=0, atol=1e-5)


def test_streamer_and_pipeline(model, gaze, capsys):
    processor, image = llava_processor(), picture(1)
    one = gaze.inputs([image], QUESTIONS[:1])
    with gaze.using(small_var()):
        plain = model.generate(**one, max_new_tokens=5, do_sample=False)
        streamed = model.generate(
            **one,
            max_new_tokens=5,
            do_sample=False,
            streamer=TextStreamer(processor.tokenizer, skip_prompt=True),
        )
        assert torch.equal(plain, streamed)
        pipe = pipeline("image-text-to-text", model=model, processor=processor)
        content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTIONS[0]}]
        answer = pipe(
            [{"role": "user", "content": content}], max_new_tokens=5, do_sample=False, return_full_text=False
        )
    expected = processor.tokenizer.decode(plain[0, one["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer[0]["generated_text"].strip() == expected.strip()
    assert capsys.readouterr().out


def test_beams_and_sampling_run_and_expand_the_batch(model, gaze, inputs):
    with gaze.using(small_var()):
        beams = model.generate(
            **inputs, max_new_tokens=3, num_beams=3, num_return_sequences=2, do_sample=False
        )
        torch.manual_seed(0)
        draws = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2)
    assert len(beams) == len(draws) == 6


def test_ask_does_not_depend_on_the_batch_size(gaze):
    images = [picture(1), None, [picture(2), picture(3)], picture(4), picture(5)]
    questions = [*QUESTIONS, "Is there a cat in the image?", "How many dogs are there?"]
    answers = [gaze.ask(images, questions, batch_size=size, max_new_tokens=4) for size in (1, 2, 5)]
    assert answers[0] == answers[1] == answers[2]
    assert gaze.ask(picture(1), QUESTIONS[0], max_new_tokens=4) == answers[0][:1]


def test_a_model_part_called_by_itself_is_refused(model, gaze, inputs):
    with (
        gaze.using(HeadKnockout(heads=((0, 0),))),
        pytest.raises(InputError, match="a part of the wrapped model"),
    ):
        model.model.language_model(inputs["input_ids"][:, -3:])


def test_a_cache_from_outside_is_refused(model, gaze, inputs):
    out = model(**inputs, use_cache=True)
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    with gaze.using(HeadKnockout(heads=((0, 0),))), pytest.raises(InputError, match="filled outside"):
        model(input_ids=token, past_key_values=out.past_key_values)


def test_a_cache_from_an_outer_block_is_refused_in_an_inner_one(model, gaze, inputs):
    """The inner block did not see the prompt; the outer one goes on from it."""
    mask = inputs["attention_mask"]
    length = mask.shape[1] + 1
    step = {
        "input_ids": torch.full_like(mask[:, :1], 20),
        "attention_mask": torch.cat([mask, torch.ones_like(mask[:, :1])], 1),
    }
    with gaze.using(HeadKnockout(heads=((0, 1),))), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        for block in (gaze.using(small_var()), gaze.recording()):
            with pytest.raises(InputError, match="filled outside the open"), block:
                model(**step, past_key_values=cache)
        assert model(**step, past_key_values=cache).past_key_values.get_seq_length() == length


def test_two_generations_interleaved_by_hand(model, gaze):
    """Each cache finds its own context."""
    batches = [gaze.inputs([picture(i)], [question]) for i, question in enumerate(QUESTIONS[:2])]
    with gaze.using(small_var()):
        expected = [logits_of(model, batch, 2) for batch in batches]
        outs = [model(**batch, use_cache=True) for batch in batches]
        for out, batch, want in zip(outs, batches, expected, strict=True):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            mask = torch.cat([batch["attention_mask"], torch.ones_like(token)], 1)
            next_logits = model(
                input_ids=token, attention_mask=mask, past_key_values=out.past_key_values
            ).logits[:, -1]
            torch.testing.assert_close(next_logits, want[1], rtol=0, atol=1e-5)


def test_text_model_and_explicit_tokens():
    model = tiny_llama()
    ids = torch.randint(5, 40, (2, 11))
    roles = torch.full((2, 11), int(Role.QUERY))
    roles[:, 2:7] = Role.IMAGE
    gaze, plain = regaze.wrap(model), logits_of(model, {"input_ids": ids})
    var = small_var(tau=1.2, min_image_mass=0.0, rho=0.0)
    with gaze.using(var, tokens=TokenMap.from_roles(roles)):
        edited = logits_of(model, {"input_ids": ids})
        with pytest.raises(InputError, match=r"\[B=2, L=11\]"):
            logits_of(model, {"input_ids": ids[:, :9]})
    assert not torch.allclose(plain, edited)
    with gaze.using(var):  # no image: nothing to do
        assert torch.equal(plain, logits_of(model, {"input_ids": ids}))


def test_embeddings_without_ids_need_explicit_tokens():
    model = tiny_llama()
    embeds = model.get_input_embeddings()(torch.randint(5, 40, (1, 8)))
    gaze = regaze.wrap(model)
    with gaze.using(small_var()), pytest.raises(InputError, match="inputs_embeds"):
        model(inputs_embeds=embeds)
    with gaze.using(HeadKnockout(heads=((0, 0),))):  # needs no roles
        model(inputs_embeds=embeds)
    assert model.config._attn_implementation == "sdpa"


def test_edits_without_a_common_meaning_raise(model, gaze, inputs):
    with gaze.using(small_var(), small_var(rho=0.1)), pytest.raises(CompositionError, match="policy"):
        model.generate(**inputs, max_new_tokens=1)
    assert is_untouched(model)


def test_wrong_arguments(model, gaze):
    with pytest.raises(UnsupportedModelError, match="Linear"):
        regaze.wrap(torch.nn.Linear(2, 2))
    with pytest.raises(BadParameterError, match="with parentheses"), gaze.using(regaze.VAR):
        pass
    with pytest.raises(InputError, match="2 images for 1 questions"):
        gaze.inputs([None, None], ["a?"])
    with pytest.raises(InputError, match=r"no image 'nowhere\.png'"):
        gaze.inputs(["nowhere.png"], ["a?"])
    with pytest.raises(InputError, match="not empty"):
        gaze.inputs([None], ["  "])
    with pytest.raises(InputError, match="no processor"):
        regaze.wrap(model).inputs([None], ["a?"])
    assert is_untouched(model)


def test_a_model_outside_the_interface_is_refused():
    model = tiny_llama()
    model._can_set_attn_implementation = lambda: False
    with pytest.raises(UnsupportedModelError, match="does not go through"), regaze.wrap(model).using():
        pass
    assert model.config._attn_implementation == "sdpa"


def test_copies_of_a_wrapped_model_are_plain(model, gaze, inputs):
    with gaze.using():
        pass
    copied = copy.deepcopy(model)
    assert is_untouched(copied)
    assert torch.equal(logits_of(model, inputs), logits_of(copied, inputs))


def test_any_callback_can_take_part(model, gaze, inputs):
    class Half(Callback):
        def prepare(self, context):
            context.state(self)["edit"] = AttentionEdit(head_gain=torch.full((1, context.num_heads), 0.5))

        def edit(self, layer, step, context):
            return context.state(self)["edit"]

    plain = logits_of(model, inputs)
    with gaze.using(Half()):
        assert not torch.allclose(plain, logits_of(model, inputs), atol=1e-3)
    assert torch.equal(plain, logits_of(model, inputs))


def test_an_unknown_vision_family_works_where_roles_are_not_needed():
    text = {
        "vocab_size": 60,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2, "patch_size": 14}
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).eval()
    gaze, prompt = regaze.wrap(model), {"input_ids": torch.randint(5, 50, (2, 9))}
    gaze.family = gaze.reader.family = UnknownFamily(model.config)
    plain = logits_of(model, prompt)
    with gaze.using():
        assert torch.equal(plain, logits_of(model, prompt))
    with gaze.using(HeadKnockout(heads=((1, 2),))), gaze.recording(masses=False, entropy=True) as record:
        assert not torch.allclose(plain, logits_of(model, prompt))
    assert record[0].entropy.shape == (3, 2, 6, 5)
    with gaze.using(small_var()), pytest.raises(UnsupportedModelError, match="'qwen2_vl' puts its image"):
        model(**prompt)


def test_seen_is_what_the_model_sees(gaze):
    wide = picture(3, width=300, height=112)
    seen = gaze.seen(wide)
    assert seen.size == (112, 112)
    middle = wide.crop((94, 0, 206, 112))
    difference = (
        torch.tensor(list(seen.tobytes())).float() - torch.tensor(list(middle.tobytes())).float()
    ).abs()
    assert difference.max() <= 1  # one grey level of rounding


@pytest.mark.parametrize("method", [small_var(), HeadKnockout(heads=((3, 1),), mode="uniform"), None])
def test_static_cache_equals_dynamic_cache(model, gaze, method):
    """A static cache has keys after the prompt that no row may see, and no mask at an unpadded prefill."""
    inputs = gaze.inputs([picture(1)], QUESTIONS[:1])
    static = {"cache_implementation": "static", "disable_compile": True}
    common = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    results = []
    for options in ({}, static):
        with gaze.using(*([method] if method else [])), gaze.recording(edited=True, rows="text") as record:
            out = model.generate(
                **inputs, **common, **options, output_logits=True, return_dict_in_generate=True
            )
        results.append((torch.stack(out.logits), record[0].masses))
    for dynamic, fixed in zip(*results, strict=True):
        torch.testing.assert_close(dynamic, fixed, rtol=0, atol=1e-5)


def test_tuple_outputs_continue(model, gaze, inputs):
    with gaze.using(small_var()):
        out = model(**inputs, use_cache=True, return_dict=False)
        cache = next(item for item in out if hasattr(item, "get_seq_length"))
        token, mask = out[0][:, -1].argmax(-1, keepdim=True), inputs["attention_mask"]
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        model(input_ids=token, attention_mask=mask, past_key_values=cache)


def test_hidden_states_are_gone_after_the_prefill(model, gaze, inputs):
    class Peek(Intervention):
        needs_hidden_states = True

        def edit(self, layer, step, context):
            if step:
                with pytest.raises(InputError, match="only at prefill"):
                    context.hidden_states(layer)
            else:
                assert context.hidden_states(layer).shape[:2] == inputs["input_ids"].shape

    with gaze.using(Peek()):
        model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=None)


def test_hidden_states_come_to_the_device_of_the_layer():
    """accelerate moves a layer's input after regaze's hook has seen it."""
    context = context_for([[2, 5]])
    context.set_layer_input(1, torch.zeros(1, 2, 8))
    context.device = torch.device("meta")
    assert context.hidden_states(1).device.type == "meta"


def test_an_image_that_the_processor_refuses_is_named(tmp_path):
    """Qwen-VL's refuses pictures of over 200 times their height, which a limit of regaze may let through."""
    case, path = case_of(next(entry for entry in VISION if entry.name == "qwen2_vl")), tmp_path / "thin.png"
    Image.new("RGB", (1010, 5)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGAZE_MAX_ASPECT", "1000")
        with pytest.raises(InputError, match=r"refuses .*thin.png' \(1010 x 5 pixels\): absolute aspect"):
            case.gaze.inputs([path, picture(0)], ["What?", "What?"])
    with pytest.raises(InputError, match="at most 200 times"):
        case.gaze.inputs([path], ["What?"])


def test_an_image_that_the_processor_would_misread_is_named(gaze):
    """transformers takes [3, W, 3] for three colours first, with a note in the log."""
    for size in ((20, 3), (20, 1), (1, 20)):
        with pytest.raises(InputError, match="has a side of 1 or 3 pixels, which image processors take for"):
            gaze.inputs([Image.new("RGB", size)], ["What?"])
    assert gaze.inputs([Image.new("RGB", (20, 2))], ["What?"])["pixel_values"].shape[0] == 1


def test_a_question_that_is_no_text_is_refused(gaze):
    with pytest.raises(InputError, match=r"the question 'a\\udcff' holds half a surrogate pair"):
        gaze.inputs([picture(0)], ["a\udcff"])
    with pytest.raises(InputError, match="a question is a text, got int"):
        gaze.ask([None], [3])


def test_a_damaged_chat_template_is_named(gaze, monkeypatch):
    for template in ("{{ messages[0]['x'] | nothing }}", "{% if %}", "{{ raise_exception('no roles') }}"):
        monkeypatch.setattr(gaze.processor, "chat_template", template)
        with pytest.raises(InputError, match="the model's chat template makes no prompt of this: "):
            gaze.inputs([picture(0)], ["What?"])


def test_what_ask_cannot_do_is_refused(model, gaze):
    text, image = regaze.wrap(tiny_llama(), llava_processor().tokenizer), picture(1)
    with pytest.raises(InputError, match="text-only model"):
        text.ask([image], ["Is there a cat?"])
    with pytest.raises(InputError, match="sees no images"):
        text.seen(image)
    with pytest.raises(InputError, match="3 images for 2 questions"):
        gaze.ask([image] * 3, QUESTIONS[:2], batch_size=2)
    with pytest.raises(InputError, match="no questions"):
        gaze.ask([], [])
    with pytest.raises(InputError, match="'<image>', which stands for an image"):
        gaze.ask([image], ["What is in <image>?"])
    with pytest.raises(InputError, match="got None"):
        gaze.ask([image], [None])
    with pytest.raises(InputError, match=r"got one of shape \[1, 3, 4, 4\]"):
        gaze.ask([torch.zeros(1, 3, 4, 4)], ["What?"])
    with pytest.raises(InputError, match=r"http://host/a\.png is a URL: allow_urls=True"):
        gaze.ask(["http://me:secret@host/a.png?key=secret"], ["What?"])
    with pytest.raises(InputError, match="no processor"):
        regaze.wrap(model).ask([image], ["What?"])
    for options in ({"return_dict_in_generate": True}, {"num_beams": 2, "num_return_sequences": 2}):
        with pytest.raises(BadParameterError, match="one text per question"):
            gaze.ask([image], ["What?"], **options)
