"""Methods on families of models: each runs there, in a batch as alone, or raises the reason it does not."""

from __future__ import annotations

import pytest
import torch
from family_checks import QUESTIONS, Case, case_of, same_alone
from models import logits_of
from standins import painted, spotted
from zoo.every import VISION, runs, skip_if_older

from regaze.errors import InputError, UnsupportedModelError
from regaze.interventions import (
    CAI,
    EAH,
    FLB,
    HALC,
    MARINE,
    ONLY,
    PAI,
    RITUAL,
    SID,
    SPIN,
    VHR,
    AttnReal,
    CausalMM,
    DeCo,
    DeGF,
    FarSight,
    FastV,
    HeadKnockout,
    MemVR,
    PyramidDrop,
    SparseVLM,
)
from regaze.interventions.controls import (
    NearTie,
    PlausibilityCut,
    RandomHeads,
    RandomTokens,
    UniformColumns,
    UniformSink,
)

FAMILIES = (
    *("llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen3_vl", "gemma3", "idefics3"),
    *("mistral3", "blip-2", "granite4_vision", "janus", "mllama"),
)
#: Those that are given tiles of an image.
TILED = ("llava_next", "llava_onevision", "idefics3", "granite4_vision")
METHODS = {
    "deco": DeCo(alpha=1.0, layers=(1, 1)),
    "farsight": FarSight(sigma=0.1),
    "flb": FLB(gamma=2.0, decay=0.5),
    "only": ONLY(),
    "ritual": RITUAL(),
    "sid": SID(kept=2, first_layer=1, alpha=1.0),
    "spin": SPIN(kept=0.5),
    "eah": EAH(),
    "attnreal": AttnReal(above=1.0, rho=0.0, layers=(0, 1)),
    "vhr": VHR(alpha=3.0, layers=(0, 1)),
    "memvr": MemVR(ratio=0.9, threshold=0.0, layers=(0, 0)),
    "causalmm": CausalMM(),
    "causalmm-random": CausalMM(attention="random"),
    "cai": CAI(threshold=-1.0, gamma=1.0),
    "marine": MARINE(detector=spotted, threshold=0.5),
    "fastv": FastV(first_layer=1),
    "fastv-hiding": FastV(first_layer=1, remove=False),
    "pyramiddrop": PyramidDrop(),
    "sparsevlm": SparseVLM(),
    "random-tokens": RandomTokens(FastV(first_layer=1)),
    "near-tie": NearTie(mass=0.0, gap=2.0),
    "plausibility-cut": PlausibilityCut(0.9),
    "random-heads": RandomHeads(HeadKnockout(heads=((0, 0), (1, 1)))),
    "uniform-columns": UniformColumns(PAI(alpha=3.0, gamma=1.0)),
    "uniform-sink": UniformSink(FarSight(sigma=0.1)),
}
#: Those that generate several times.
SEVERAL = {
    "degf": DeGF(generator=painted, description_tokens=3),
    "halc": HALC(detector=spotted, beta=0.0, weight=0.5),
}
#: Those that run the prompt's own ids in a second context.
BRANCHES = ("sid", "causalmm", "causalmm-random")
#: Those that remove tokens.
REMOVING = ("fastv", "pyramiddrop", "sparsevlm", "random-tokens")
#: Where a method cannot run, and a part of the error that says why.
REFUSED: dict[tuple[str, str], str] = {
    **{
        (method, name): "one picture per image is needed|is given tiles of one"
        for method in ("ritual", "marine")
        for name in TILED
    },
    ("marine", "internvl"): "is given tiles of one",
    ("halc", "blip-2"): "returns no key-value cache",
    ("halc", "granite4_vision"): "returns no key-value cache",
    ("degf", "blip-2"): "the forward was given none",
    ("marine", "blip-2"): "not `inputs_embeds`",
    ("marine", "mllama"): "cross-attention",
    ("degf", "mllama"): "cross-attention",
    ("ritual", "blip-2"): "was given no pixels",
    ("ritual", "mllama"): "cross-attention",
    ("only", "blip-2"): "cannot run through a OPTDecoderLayer",
    ("only", "mllama"): "cross-attention",
    **{(name, family): "DynamicSlidingWindow" for name in REMOVING for family in ("llava_next", "gemma3")},
    **{(name, "granite4_vision"): "DeepStack" for name in REMOVING},
    **{(name, "mllama"): "cross-attention" for name in (*REMOVING, "fastv-hiding")},
    ("vhr", "blip-2"): "not `inputs_embeds`",
    ("vhr", "mllama"): "cross-attention",
    ("spin", "mllama"): "cross-attention",
    ("cai", "mllama"): "cross-attention",
    ("attnreal", "mllama"): "cross-attention",
    ("eah", "mllama"): "cross-attention",
    ("memvr", "blip-2"): "has no `mlp`",
    ("memvr", "mllama"): "sees images through cross-attention",
    **{(name, "blip-2"): "cannot run with `inputs_embeds`" for name in BRANCHES},
    **{(name, "mllama"): "cross-attention" for name in BRANCHES},
}


@pytest.fixture(params=FAMILIES)
def case(request) -> Case:
    entry = next(each for each in VISION if each.name == request.param)
    skip_if_older(entry)
    if not runs(entry):
        pytest.skip(f"{entry.name} does not run under this transformers")
    return case_of(entry)


@pytest.mark.parametrize("name", METHODS)
def test_it_runs_or_says_why_not(case, name):
    method, plain, reason = METHODS[name], case.plain, REFUSED.get((name, case.entry.name))
    if reason is not None:
        with case.gaze.using(method), pytest.raises((UnsupportedModelError, InputError), match=reason):
            logits_of(case.model, case.inputs(0, 1), tokens=2)
        return
    with case.gaze.using(method):
        edited = logits_of(case.model, case.inputs(0, 1))
        assert not edited.isnan().any()
        assert not torch.equal(edited, plain)
        same_alone(case, edited)
    assert torch.equal(logits_of(case.model, case.inputs(0, 1)), plain)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_generations_run_or_say_why_not(case, name):
    method, reason = SEVERAL[name], REFUSED.get((name, case.entry.name))
    images, options = [[picture] for picture in case.pictures], {"max_new_tokens": 3}

    def answers(rows):
        chosen = [images[row] for row in rows], [QUESTIONS[row] for row in rows]
        return [str(answer) for answer in method.answer(case.gaze, *chosen, **options)]

    if reason is not None:
        with pytest.raises((UnsupportedModelError, InputError), match=reason):
            answers((0,))
        return
    assert answers((0, 1)) == [answers((row,))[0] for row in (0, 1)]
    assert torch.equal(logits_of(case.model, case.inputs(0, 1)), case.plain)
