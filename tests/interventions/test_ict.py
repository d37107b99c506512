"""ICT: the equations and goldens, the shift inside a model, what the fit measures."""

from __future__ import annotations

import json

import pytest
import torch
from decoding_checks import (
    check_batch,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    golden,
    inputs_of,
    plain_logits,
)
from directions import LLAVA, about, ict_directions, normal
from models import llava_processor, logits_of, picture
from zoo.every import RUNNING, label, skip_if_older

import regaze
from regaze.errors import BadParameterError, InputError
from regaze.interventions import ICT
from regaze.interventions.fitting.yes_no_questions import demo_questions, read_questions
from regaze.interventions.ict import ICTFit
from regaze.interventions.ict.method import chosen_heads
from regaze.interventions.ict.probe import shifts_and_scores

# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    trusted = torch.tensor([[2.0, 0], [4, 0], [3, 3]])[:, None]
    untrusted = torch.tensor([[0.0, 0], [1, 0], [-1, 0]])[:, None]
    shift, _ = shifts_and_scores(trusted, untrusted, torch.arange(6))
    assert (8 * shift[0]).tolist() == pytest.approx([13.576449, 4.525483], abs=1e-5)


def test_goldens(shared):
    described, tensors = golden(shared / "goldens", "ict", "fit_and_shift")
    for case, entry in described["cases"].items():
        params = entry["params"]
        get = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{case}/")}
        total = torch.zeros_like(get["in/trusted"][0])
        used = {}
        for level, suffix in (("image", ""), ("object", "_object")):
            if params["type"] not in (level, "both"):
                continue
            found = [
                shifts_and_scores(
                    get["in/trusted"][:, n], get[f"in/untrusted{suffix}"][:, n], get["in/order"]
                )
                for n in range(params["layers"])
            ]
            shift, score = (torch.stack(part).float() for part in zip(*found, strict=True))
            torch.testing.assert_close(score, get[f"out/accuracy{suffix}"], rtol=0, atol=1e-6)
            used[level] = chosen_heads(score, params["num_heads"])
            assert torch.equal(used[level], get[f"out/used{suffix}"].bool()), case
            got = shift * used[level][..., None]
            want = get[f"out/sigma{suffix}"][..., None] * get[f"out/direction{suffix}"]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
            total += params["alpha"] * got
        if entry["kind"] == "as_released":
            total *= torch.where(used["image"] & used["object"], 0.5, 1.0)[..., None]
        want = get["in/hidden"].clone()
        want[:, :, -1] += total.flatten(1)[:, None]
        torch.testing.assert_close(want, get["out/hidden"], rtol=1e-4, atol=1e-5)


def test_the_probe_is_that_of_another_solver():
    """Scores of heads against gradient descent with very many small steps, on data that overlap."""
    x, y = normal(20, 1, 3), normal(20, 1, 3, seed=1) + 0.6
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    _, score = shifts_and_scores(x, y, order)
    data = torch.cat([x, y])[:, 0].double()[order]
    labels = torch.cat([torch.ones(20), -torch.ones(20)]).double()[order]
    right = 0
    for train, test in ((slice(0, 20), slice(20, 40)), (slice(20, 40), slice(0, 20))):
        w, b = torch.zeros(3).double(), torch.zeros(1).double()
        for _ in range(20_000):
            miss = torch.sigmoid(-labels[train] * (data[train] @ w + b))
            w -= 0.01 * (w - (labels[train] * miss) @ data[train])
            b -= 0.01 * -(labels[train] * miss).sum()
        right += int(((data[test] @ w + b) * labels[test] > 0).sum())
    assert float(score[0]) == pytest.approx(right / 40)


def test_invariants_of_the_fit():
    a, b = normal(9, 2, 4), normal(9, 2, 4, seed=1)
    order = torch.arange(18)
    shift, score = shifts_and_scores(a, b, order)
    torch.testing.assert_close(shifts_and_scores(3 * a, 3 * b, order)[0], 3 * shift, rtol=1e-5, atol=1e-6)
    back, _ = shifts_and_scores(b, a, order)
    torch.testing.assert_close(back, -shift)
    same, none = shifts_and_scores(a, a, order)
    assert not same.any()
    assert not none.any()
    assert ((score >= 0) & (score <= 1)).all()


def test_of_equal_heads_the_first_are_chosen():
    scores = torch.tensor([[0.5, 0.9], [0.9, 0.0]])
    assert chosen_heads(scores, 1).tolist() == [[False, True], [False, False]]
    assert chosen_heads(scores, 9).tolist() == [[True, True], [True, False]], (
        "not one that is the same on both"
    )
    assert chosen_heads(torch.rand(32, 32) + 0.1, None).sum() == 256


# In a model -------------------------------------------------------------------------------------------

METHOD = ICT(directions=ict_directions(), alpha=1.5, heads=9)


def by_hand(model, inputs, answer, total, blocks):
    """[T, B, V]: the heads' outputs, or the projection's, shifted in the rows that predict the answer."""
    start = inputs["input_ids"].shape[1] - 1

    def before(layer):
        def hook(module, args):
            heads = args[0].clone()
            heads[:, start:] += total[layer].flatten()
            return (heads,)

        return hook

    def after(layer):
        def hook(module, args, out):
            out = out.clone()
            out[:, start:] += total[layer].flatten()
            return out

        return hook

    projections = [layer.self_attn.o_proj for layer in model.get_decoder().layers]
    handles = [
        p.register_forward_hook(after(n)) if blocks else p.register_forward_pre_hook(before(n))
        for n, p in enumerate(projections)
    ]
    logits = plain_logits(model, inputs, answer)
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("blocks", [None, 12])
@pytest.mark.parametrize(
    "parameters", [{}, {"beta": 0.0}, {"alpha": 0.0, "beta": 2.0}, {"beta": 0.5, "as_released": True}]
)
def test_every_step_equals_a_forward_with_hooks(model, gaze, blocks, parameters):
    found = ict_directions(heads=(12, 16), blocks=12) if blocks else ict_directions()
    method = ICT(directions=found, **{"alpha": 1.5, "heads": 9, **parameters})
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    plain = logits_of(model, inputs, tokens=4)
    with gaze.using(method):
        got = logits_of(model, inputs, tokens=4)
    alpha, beta = method.alpha, method.alpha if method.beta is None else method.beta
    image, thing = (chosen_heads(found[f"{level}_score"], 9) for level in ("image", "object"))
    total = alpha * image[..., None] * found["image"] + beta * thing[..., None] * found["object"]
    if method.as_released:
        total = total * torch.where(image & thing, 0.5, 1.0)[..., None]
    want = by_hand(model, inputs, got.argmax(-1).T, total, blocks)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-4)
    assert not torch.allclose(got, plain, atol=1e-2)


def test_batch_padding_cache_neutral_and_json(gaze, tmp_path):
    check_batch(gaze, METHOD)
    check_padding(gaze, METHOD)
    check_full_forward(gaze, METHOD)
    found = ict_directions()
    check_neutral(
        gaze, ICT(alpha=0.0), ICT(directions=found, heads=0), ICT(directions=found, alpha=0.0, beta=0.0)
    )
    found.save(tmp_path / "ict.safetensors")
    check_json(ICT(directions=str(tmp_path / "ict.safetensors"), beta=2.0, heads=3))


def test_beams_and_samples_are_shifted(model, gaze):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    options = {"max_new_tokens": 4, "eos_token_id": None, "return_dict_in_generate": True}
    total = METHOD.shifts(METHOD.given())
    with gaze.using(METHOD):
        beams = model.generate(
            **inputs, num_beams=3, do_sample=False, length_penalty=0.0, output_scores=True, **options
        )
        torch.manual_seed(0)
        drawn = model.generate(**inputs, do_sample=True, output_logits=True, **options)
    answer = beams.sequences[:, inputs["input_ids"].shape[1] :]
    scores = by_hand(model, inputs, answer, total, None).log_softmax(-1)[:, 0]
    assert float(beams.sequences_scores[0]) == pytest.approx(
        float(scores[torch.arange(4), answer[0]].sum()), abs=1e-3
    )
    answer = drawn.sequences[:, inputs["input_ids"].shape[1] :]
    want = by_hand(model, inputs, answer, total, None)
    torch.testing.assert_close(torch.stack(drawn.logits), want, rtol=1e-4, atol=2e-4)


def test_its_control_shifts_the_same_heads_as_far(gaze):
    (control,) = METHOD.controls()
    acting = control.for_model(None)
    fitted, random = (m.shifts(m.given()) for m in (ICT(directions=METHOD.given(), beta=0.0), acting))
    assert random.shape == fitted.shape
    torch.testing.assert_close(acting.given()["image"].norm(dim=-1), METHOD.given()["image"].norm(dim=-1))
    assert torch.equal(acting.given()["image_score"], METHOD.given()["image_score"])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ICT(), "regaze fit ict"),
        (ICT(directions=ict_directions(levels=1), beta=1.0), "no object level"),
        (ICT(directions=ict_directions({**LLAVA, "layers": 5})), "with 5 layers of width 192, but this"),
        (ICT(directions=ict_directions(heads=(6, 16))), "of 96 channels of heads, this model has 192"),
    ],
)
def test_what_does_not_fit_the_model(gaze, method, message):
    with pytest.raises(BadParameterError, match=message), gaze.using(method):
        gaze.model(**inputs_of(gaze))


# The fit ----------------------------------------------------------------------------------------------


def test_the_demo_has_questions_about_both_captions():
    questions = demo_questions().items
    assert len(questions) == 64
    assert [q.label for q in questions[:2]] == ["yes", "no"]
    assert questions[2].text == "Is there a broccoli in the image?"


@pytest.mark.parametrize("blocks", [None, 6])
def test_activations_are_those_of_plain_forwards(model, blocks):
    """The last token of question and right answer; at the image level the untrusted image is blurred."""
    gaze, question = regaze.wrap(model, llava_processor()), demo_questions().items[0]
    got = ICTFit(blocks=blocks)._activations(gaze, question, False)
    from PIL import Image, ImageFilter

    with Image.open(question.image) as opened:
        clean = opened.convert("RGB")
    for number, image in enumerate((clean, clean.filter(ImageFilter.GaussianBlur(5)))):
        text = f"USER: <image>\n{question.text} ASSISTANT: {question.label}"
        inputs, kept = llava_processor()(text=text, images=[image], return_tensors="pt"), []
        hooks = [
            layer.self_attn.o_proj.register_forward_hook(
                lambda m, a, out, kept=kept: kept.append((out if blocks else a[0])[0, -1].view(6, 32))
            )
            for layer in model.get_decoder().layers
        ]
        with torch.no_grad():
            model(**inputs)
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(got[number], torch.stack(kept), rtol=1e-4, atol=1e-5)
    released = ICTFit(as_released=True)
    no = demo_questions().items[1]
    assert not torch.equal(*released._activations(gaze, no, False)), "the same image, another answer"


def test_a_fit_is_used(model, tmp_path):
    gaze, data = regaze.wrap(model, llava_processor()), demo_questions().first(6)
    found = ICTFit().run(gaze, data, parts=tmp_path / "parts")
    assert ICTFit().run(gaze, data, parts=tmp_path / "parts") == found
    assert found.names == ("image", "image_score"), "no object images, no object level"
    with gaze.using(ICT(directions=found)):
        edited = logits_of(model, inputs_of(gaze))
    assert not torch.equal(edited, logits_of(model, inputs_of(gaze)))


def test_files_of_questions(model, tmp_path):
    for number in range(2):
        picture(number, 56, 56).save(tmp_path / f"{number}.png")
    line = {"question_id": 1, "image": "0.png", "text": "Is there a dog in the image?", "label": "yes"}
    lines = [{**line, "object_image": "1.png"}, {**line, "label": "no"}] * 3
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    data = read_questions(path)
    assert [item.object_image is None for item in data.items[:2]] == [False, True]
    found = ICTFit().run(regaze.wrap(model, llava_processor()), data)
    assert found.names == ("image", "image_score", "object", "object_score")
    path.write_text(json.dumps({**line, "label": "maybe"}) + "\n")
    with pytest.raises(InputError, match=r"q.jsonl:1: label: Input should be 'yes' or 'no'"):
        read_questions(path)


# Families ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("entry", RUNNING, ids=label)
def test_families_run_in_blocks_or_say_why_not(entry):
    skip_if_older(entry)
    gaze = regaze.wrap(*entry.build())
    shape = about(gaze.host)
    found = ict_directions(shape, heads=(2, shape["width"] // 2), levels=1, blocks=2)
    inputs = gaze.inputs([picture(1, *entry.sizes[0])], ["What is this?"])
    plain = logits_of(gaze.model, inputs, tokens=2)
    with gaze.using(ICT(directions=found, heads=99)):
        edited = logits_of(gaze.model, inputs, tokens=2)
    assert not torch.equal(edited, plain)
    assert not edited.isnan().any()
