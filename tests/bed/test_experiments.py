"""benchmarks/bed.py on a tiny bed with nothing learned: every part runs, and says what it measured."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT
from tiny_bed import pretend

import regaze
from regaze.bed.scenes import scenes
from regaze.bed.training.targets import PatchTargets
from regaze.errors import InputError
from regaze.eval.benchmarks.chair.benchmark import Chair


@pytest.fixture(scope="module")
def bed():
    """The module benchmarks/bed.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import bed

        yield bed


@pytest.fixture(scope="module")
def tiny(bed, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tiny")
        patch.setenv("REGAZE_BACKEND", "torch")  # nothing is compiled
        base, _ = pretend(patch, folder)
        yield bed.Bed(
            bed.open_bed(None, None), scenes()[:2], [str(base)], None, folder / "work", 1, [ROOT / "LICENSE"]
        )


def rendered(part: str, content: dict, *names: str) -> list[str]:
    """What the page shows of a part's figures."""
    from figures import bed as shown

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown, "_part", lambda name: content if name == part else None)
        return [getattr(shown, name)() for name in names]


def test_answers_with_and_without_sinks(bed, tiny):
    found = bed.sinks(tiny)
    assert set(found) == {"sinks", "background"}
    for each in found.values():
        assert each["figures"]["scenes"] == 2
        assert set(each["answers"]) == {"plain", "VAR", "VAR, all"}
        split = each["answers"]["VAR"]["splits"]["adversarial"]
        assert {"questions", "accuracy", "present", "absent", "difference"} <= set(split)
        assert each["answers"]["plain"]["changed"] is None
    layers, answers, none = rendered("sinks", found, "bed_sinks", "bed_var", "bed_heads")
    assert layers.count("\n| ") == 1 + 6
    assert answers.count("| VAR, all |") == 2
    assert none == "Not measured yet."


def test_a_sinks_token_becomes_the_backgrounds(bed, tiny):
    model = tiny.gaze.model
    targets = PatchTargets.of(model.get_input_embeddings().weight, tiny.gaze.reader.tokenizer)
    given = torch.stack([targets.sink * 1.01, targets.background, targets.categories[3], targets.sink])[None]
    projector = model.model.multi_modal_projector
    projector.register_forward_hook(lambda *_: given)  # as if it had put patches there
    try:
        with bed.sinks_as_background(tiny.gaze):
            changed = projector(torch.zeros(1, 4, projector.linear_1.in_features))
        expected = torch.stack([targets.background, targets.background, given[0, 2], targets.background])
        assert torch.allclose(changed[0], expected)
        assert projector(torch.zeros(1, 4, projector.linear_1.in_features)) is given
    finally:
        projector._forward_hooks.clear()


def test_heads_that_look_are_found_on_one_half_and_removed_on_the_other(bed, tiny, monkeypatch):
    monkeypatch.setattr(bed, "DRAWS", 1)
    found = bed.heads(tiny)
    assert found["words"] == len(scenes()[0].objects)
    assert len(found["heads"]) == bed.HEADS
    scores = [score for *_, score in found["heads"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] >= found["mean"] > 0
    assert set(found["answers"]["plain"]["splits"]) == {"random", "adversarial", "all"}
    assert len(found["answers"]) == 1 + 3
    (text,) = rendered("heads", found, "bed_heads")
    assert "| the 10 that look |" in text
    assert text.count(" %), ") == bed.HEADS - 1


def test_attention_on_a_thing_is_that_of_its_words_row(bed, tiny):
    scene = scenes()[0]
    thing = scene.objects[0]
    whole = replace(thing, box=(0, 0, 112, 112))
    part, all_of_it = (bed.looking(tiny.gaze, scene, each) for each in (thing, whole))
    assert part.shape == (6, 6)
    assert (part <= all_of_it + 1e-6).all()
    assert (all_of_it < 1).all()


def test_heads_that_hallucinate_are_searched_in_marked_captions(bed, tiny, monkeypatch):
    present, tested = scenes()[0].objects[0].category, []
    monkeypatch.setattr(bed.Asker, "ask", lambda *_, **__: [f"A {present} beside a zebra."])
    monkeypatch.setattr(bed, "asked", lambda *given, **_: tested.append(given) or {})
    found = bed.hallucination(tiny)
    assert found["captions"] == 1
    best = tuple((layer, head) for layer, head, _ in found["heads"])
    ((_, _, _, methods, among),) = tested
    assert len(best) == bed.HEADS
    assert methods["AD-HH"].heads == best
    assert methods["removed"].heads == tuple(sorted(best))
    assert among == tiny.tested_on
    monkeypatch.setattr(bed.Asker, "ask", lambda *_, **__: ["A zebra."])
    with pytest.raises(InputError, match="no caption names both a present and an absent thing"):
        bed.hallucination(tiny)


def test_captions_are_counted(bed, tiny, monkeypatch):
    answers = bed.asked(tiny, "few", Chair.of_bed(max_new_tokens=4), {}, tiny.tested_on, tokens=4)
    (split,) = answers["plain"]["splits"].values()
    assert {"chair_s", "chair_i", "recall"} <= set(split)
    content = {"answers": answers, "captions": 1, "heads": [[0, 1, 0.5]]}
    (text,) = rendered("hallucination", content, "bed_hallucination")
    assert text.startswith("| | CHAIR_s | CHAIR_i | recall | changed |")
    assert "0.1 (0.50)" in text


def test_a_model_that_finds_no_needle_is_a_result(bed, tiny, monkeypatch):
    scores = torch.zeros(1, 6, 6)
    scores[0, 2, 1] = 0.5
    about = {"trials_run": 9, "trials_succeeded": 2}

    def search(model, *_, name, **__):
        if name == "base":
            raise InputError("none of 9 trials succeeded, so there is nothing to score")
        return SimpleNamespace(mean=lambda: scores[0], top=lambda count: [(2, 1), (0, 0)], about=about)

    monkeypatch.setattr(bed, "find_retrieval_heads", search)
    found = bed.retrieval(tiny)
    assert found["failed"].keys() == {"base"}
    assert found["models"]["bed"]["heads"][0] == [2, 1, 0.5]
    (text,) = rendered("retrieval", found, "bed_retrieval")
    assert "| bed | 2 of 9 | 1 | 2.1 (0.50), 0.0 (0.00) |" in text
    assert "| base | none |" in text


def test_one_base_twice_gives_the_same_answers(bed, tiny):
    with pytest.raises(InputError, match="give --base twice"):
        bed.base(tiny)
    found = bed.base(replace(tiny, bases=[*tiny.bases, *tiny.bases], scenes=scenes()[:1]))
    assert found["same"] == found["questions"] > found["yes_no"] > 0
    assert found["bases"][0] == found["bases"][1]
    assert f"{found['same']} of {found['questions']} answers" in rendered("base", found, "bed_base")[0]


def test_parts_are_put_into_one_file(bed, tiny, tmp_path, monkeypatch):
    output = tmp_path / "bed.json"
    for name in ("sinks", "base"):
        monkeypatch.setitem(bed.PARTS, name, lambda given, name=name: {"is": name})
        bed.measure(name, tiny, output)
    found = json.loads(output.read_text())
    assert list(found) == ["sinks", "base"]
    assert (found["base"]["is"], found["base"]["scenes"]) == ("base", 2)
    assert found["sinks"]["machine"]["regaze"] == regaze.__version__
