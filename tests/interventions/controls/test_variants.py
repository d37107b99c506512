"""Controls that are a method with one thing of it replaced: its columns, its heads, its directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decoding_checks import (
    check_batch,
    check_full_forward,
    check_layers,
    check_neutral,
    check_padding,
    check_shared_keys,
    inputs_of,
)
from directions import vti_directions
from models import logits_of, small_var

from regaze.errors import BadParameterError, CompositionError
from regaze.interventions import (
    ADHH,
    EAH,
    GIFT,
    HGAI,
    OPERA,
    PAI,
    PAINT,
    SPARC,
    SPIN,
    VAF,
    VCD,
    VHR,
    VISTA,
    VTI,
    AttnReal,
    FarSight,
    FastV,
    HeadKnockout,
    MemVR,
    PyramidDrop,
    SparseVLM,
)
from regaze.interventions.controls import (
    RandomDirection,
    RandomHeads,
    RandomSource,
    RandomTokens,
    UniformColumns,
    UniformSink,
)
from regaze.interventions.controls.random_direction import random_like
from regaze.interventions.controls.random_heads import draw
from regaze.interventions.registry import create_method, method_from_dict
from regaze.toolkit.model.callback import keeps_edits
from regaze.toolkit.prompts.token_map import Role

BOOSTS = (
    PAI(alpha=0.8, gamma=1.0),
    PAI(alpha=0.8),
    VAF(),
    HGAI(),
    SPARC(tau=0.0),
    PAINT(),
    GIFT(),
    small_var(),
    AttnReal(above=1.0, rho=0.1),
)
HEADED = (ADHH(heads=((0, 1), (1, 3), (1, 4)), threshold=0.1), HeadKnockout(heads=((0, 1), (1, 3), (1, 4))))
VARIANTS = (
    *(UniformColumns(method) for method in BOOSTS),
    *(RandomHeads(method) for method in HEADED),
    RandomHeads(SPIN(kept=0.5)),
    RandomHeads(VHR(alpha=3.0)),
    RandomDirection(VISTA()),
    RandomSource(EAH()),
    RandomDirection(MemVR(ratio=0.6, threshold=0.3, layers=(1, 4))),
    UniformSink(FarSight(sigma=0.1)),
    RandomTokens(FastV(dropped=0.8)),
    RandomTokens(PyramidDrop()),
    RandomTokens(SparseVLM(remove=False)),
)


def name(control) -> str:
    return f"{control.name}-{control.of.name}-{getattr(control.of, 'gamma', '')}"


# What every method must satisfy -------------------------------------------------------------------------


@pytest.mark.parametrize("control", VARIANTS, ids=name)
def test_a_method_names_the_control(control):
    assert control in control.of.controls()
    assert control.shares_prefix == control.of.shares_prefix


@pytest.mark.parametrize("control", VARIANTS, ids=name)
def test_it_is_another_thing_than_the_method_and_the_plain_model(gaze, control):
    inputs = inputs_of(gaze, slice(0, 2))
    logits = [logits_of(gaze.model, inputs)]
    for method in (control, control.of):
        with gaze.using(method):
            logits.append(logits_of(gaze.model, inputs))
    for first, second in ((0, 1), (1, 2)):
        assert (logits[first] - logits[second]).nan_to_num(0, 0, 0).abs().max() > 1e-2


@pytest.mark.parametrize("control", VARIANTS, ids=name)
def test_batches_padding_and_steps(gaze, control):
    check_batch(gaze, control)
    check_padding(gaze, control)
    # Those count steps, refuse a part of the answer, or measure the whole of what they are given as a prompt.
    if control.of.name not in ("sparc", "gift", "vista", "eah", "memvr"):
        check_full_forward(gaze, control)


@pytest.mark.parametrize("control", VARIANTS, ids=name)
def test_json(control):
    data = control.to_dict()
    assert data["of"]["method"] == control.of.name
    assert method_from_dict(data) == control


def test_neutral_methods_have_neutral_controls(gaze):
    neutral = (
        PAI(alpha=0.0, gamma=1.0),
        VAF(enhance=1.0, suppress=1.0),
        SPARC(alpha=1.0),
        GIFT(alpha=0.0, beta=1.0),
    )
    check_neutral(gaze, *map(UniformColumns, neutral), RandomHeads(HeadKnockout()))
    check_neutral(gaze, RandomHeads(ADHH(heads=())), RandomDirection(VISTA(strength=0.0, share=0.0)))
    for method in (*neutral, HeadKnockout(), ADHH(heads=()), VISTA(strength=0.0, share=0.0)):
        assert method.controls() == ()


@pytest.mark.parametrize("control", VARIANTS, ids=name)
def test_beams_run(gaze, control):
    with gaze.using(control):
        out = gaze.model.generate(**inputs_of(gaze), max_new_tokens=3, num_beams=2, eos_token_id=None)
    assert out.shape[1] == inputs_of(gaze)["input_ids"].shape[1] + 3


@pytest.mark.parametrize(
    "method", [PAI(alpha=0.8, gamma=1.0), HGAI(alpha=2.0), VAF(enhance=2.0)], ids=lambda m: m.name
)
def test_heads_that_share_keys(method):
    check_shared_keys(UniformColumns(method))


def test_random_tokens_are_as_many_by_the_seed_alone(gaze):
    """Those of a later stage are among those of the one before."""
    kept = {}
    for seed in (0, 0, 1):
        method = RandomTokens(PyramidDrop(remove=False), seed=seed)
        with gaze.using(method), gaze.recording(slices="image", edited=True) as record:
            gaze.model(**inputs_of(gaze, slice(0, 1)))
        seen = record[0].slices[:, 0, :, 0].amax(1) > 0  # [layers, N]
        assert seen.sum(1).tolist() == [64, 64, 32, 16, 16, 8]
        assert not (seen[1:] & ~seen[:-1]).any()
        assert torch.equal(kept.setdefault(seed, seen), seen)
    assert not torch.equal(kept[0], kept[1])
    with pytest.raises(BadParameterError, match="'pai' does not"):
        RandomTokens(PAI())
    assert FastV(dropped=0.0).controls() == ()


def test_what_it_is_of_is_a_method_or_its_name():
    assert create_method("uniform-columns", of="vaf") == UniformColumns(VAF())
    assert create_method("random-heads", of={"method": "knockout", "heads": [[1, 2]]}, seed=3) == RandomHeads(
        HeadKnockout(heads=((1, 2),)), seed=3
    )
    for make in (lambda: UniformColumns(OPERA()), lambda: UniformColumns(3), lambda: RandomHeads(VCD())):
        with pytest.raises(BadParameterError):
            make()
    with pytest.raises(BadParameterError, match="vista"):
        RandomDirection(VAF())


# Uniform columns ----------------------------------------------------------------------------------------


def edited_rows(gaze, method, layer):
    """[B, H, L] the last row of a layer as the model acts on it, and the mask of the image's columns."""
    inputs = inputs_of(gaze, slice(0, 1))
    with gaze.using(*method), gaze.recording(slices="all", rows="last", edited=True) as record:
        gaze.model(**inputs)
    return record[0].slices[layer, :, :, 0], gaze.tokens(inputs).mask(Role.IMAGE)[0]


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        (PAI(alpha=0.8, gamma=1.0, layers=(2, 5)), 2),
        (VAF(enhance=2.0, layers=(1, 3)), 1),
        (HGAI(layers=(3, 4)), 3),
    ],
    ids=["pai", "vaf", "hgai"],
)
def test_the_image_keeps_the_mass_and_loses_the_choice(gaze, method, layer):
    """In the first edited layer, where everything before is the plain model's."""
    plain, image = edited_rows(gaze, (), layer)
    edited, _ = edited_rows(gaze, (method,), layer)
    control, _ = edited_rows(gaze, (UniformColumns(method),), layer)
    for part in (image, ~image):
        mass = edited[..., part].sum(-1)
        torch.testing.assert_close(control[..., part].sum(-1), mass)
        want = plain[..., part] * (mass / plain[..., part].sum(-1))[..., None]
        torch.testing.assert_close(control[..., part], want)
    assert (control - edited).abs().max() > 1e-4
    assert (control - plain).abs().max() > 1e-4


def test_only_the_method_s_layers_change(gaze):
    check_layers(gaze, UniformColumns(HGAI(alpha=2.0, layers=(3, 4))), {3, 4}, "last")


def test_edits_stay_fixed_where_the_method_s_do(gaze):
    for method, fixed in ((VAF(), True), (SPARC(), False)):
        assert keeps_edits(UniformColumns(method).for_model(None)) is fixed


def test_two_uses_leave_each_other_alone(gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    with gaze.using(UniformColumns(VAF(enhance=2.0))):
        first = logits_of(gaze.model, inputs)
    with gaze.using(VAF(enhance=2.0)):
        own = logits_of(gaze.model, inputs)
    with gaze.using(UniformColumns(VAF(enhance=2.0))):
        assert torch.equal(logits_of(gaze.model, inputs), first)
    assert not torch.equal(own, first)


def test_it_does_not_act_beside_what_it_would_undo(gaze):
    with gaze.using(UniformColumns(PAI(gamma=1.0)), GIFT()), pytest.raises(CompositionError, match="spread"):
        gaze.model(**inputs_of(gaze))


# Random heads -------------------------------------------------------------------------------------------


def test_as_many_heads_are_drawn_in_each_layer_and_others():
    listed = ((0, 1), (1, 3), (1, 4), (7, 0))
    for seed in range(20):
        drawn = draw(listed, 6, seed)
        assert [layer for layer, _ in drawn] == [0, 1, 1, 7]
        assert not set(drawn) & set(listed)
        assert len(set(drawn)) == 4
        assert all(head < 6 for _, head in drawn)
        assert draw(listed, 6, seed) == drawn == draw(tuple(reversed(listed)), 6, seed)
    assert len({draw(listed, 6, seed) for seed in range(20)}) > 10


def test_a_layer_with_too_few_other_heads_keeps_some():
    drawn = draw(((2, 0), (2, 1), (2, 2)), 4, 0)
    assert len(set(drawn)) == 3
    assert (2, 3) in drawn


def test_heads_of_the_configuration_are_counted(gaze):
    config = gaze.model.config.get_text_config()
    own = ((0, 0), (3, 2))
    config.hallucination_heads = own
    try:
        acting = RandomHeads(ADHH()).for_model(config)
    finally:
        del config.hallucination_heads
    assert [layer for layer, _ in acting.heads] == [0, 3]
    assert not set(acting.heads) & set(own)


def test_heads_that_are_not_there_are_named(gaze):
    with (
        gaze.using(RandomHeads(HeadKnockout(heads=((0, 99),)))),
        pytest.raises(BadParameterError, match="99"),
    ):
        gaze.model(**inputs_of(gaze))


# Random directions --------------------------------------------------------------------------------------


def test_random_directions_have_the_norms_and_one_draw_for_all_samples():
    found = {3: torch.randn(4, 50), 1: 5 * torch.randn(2, 7, 50), "k": torch.zeros(50)}
    drawn = random_like(found, 0)
    assert list(drawn) == list(found)
    for key, direction in found.items():
        torch.testing.assert_close(drawn[key].norm(dim=-1), direction.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(drawn[3][0], drawn[3][1:]), torch.ones(3))
    assert cosine(drawn[3][0], drawn[1][0, 0], dim=0).abs() < 0.6
    assert cosine(drawn[3], found[3]).abs().max() < 0.6
    assert torch.equal(random_like(found, 0)[3], drawn[3])
    assert not torch.equal(random_like(found, 1)[3], drawn[3])


def test_fitted_directions_are_replaced_likewise(gaze):
    method, inputs, logits = VTI(directions=vti_directions(), text=2.0), inputs_of(gaze), []
    [control] = method.controls()
    assert control == RandomDirection(method)
    for each in (control, method.with_random_directions(0), method):
        with gaze.using(each):
            logits.append(logits_of(gaze.model, inputs))
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-2)
    for without in (VTI(), replace(method, text=0.0, vision=0.0)):
        assert without.controls() == ()


def test_another_seed_is_another_draw(gaze):
    inputs, logits = inputs_of(gaze, slice(0, 2)), []
    for control in (RandomDirection(VISTA()), replace(RandomDirection(VISTA()), seed=1)):
        with gaze.using(control):
            logits.append(logits_of(gaze.model, inputs))
    assert (logits[0] - logits[1]).abs().max() > 1e-2
