"""Controls that are rules over the logits: near ties, the cut alone, sharpening."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    close_as_goldens_ask,
    golden,
    inputs_of,
)
from models import logits_of

from regaze.errors import BadParameterError, InputError
from regaze.interventions import AGLA, DAMRO, ICD, PAI, VCD, AvisC, DoLa
from regaze.interventions.controls import NearTie, PlausibilityCut, Sharpen, YesOffset
from regaze.toolkit.model.logits import LogitsCombination, combine

ID = torch.arange(3)[:, None]  # of a word that is one token
#: Decides in every random answer.
ALWAYS = {"mass": 0.0, "gap": 2.0}


def decides(rule: NearTie, p_yes: float, p_no: float) -> bool:
    """Ids: 0 yes, 1 no, 2 the likeliest of the rest."""
    logits = torch.tensor([p_yes, p_no, 1 - p_yes - p_no], dtype=torch.float64).log()
    return bool(rule.decides(logits[None, None].float(), ID[0], ID[1]))


@pytest.mark.parametrize(
    ("p_yes", "p_no", "fires"),
    [(0.45, 0.50, True), (0.15, 0.60, True), (0.15, 0.70, False), (0.12, 0.06, False), (0.70, 0.15, False)],
)
def test_near_ties_by_hand(p_yes, p_no, fires):
    assert decides(NearTie(), p_yes, p_no) is fires


def test_the_bounds_of_a_near_tie_are_exclusive():
    halves = torch.tensor([[[0.0, 0.0, -torch.inf, -torch.inf]]])  # exact: p = 1/2, 1/2
    quarters = torch.zeros(1, 1, 4)
    assert not NearTie(mass=0.5).decides(quarters, ID[0], ID[1])
    assert NearTie(mass=0.49).decides(quarters, ID[0], ID[1])
    assert not NearTie(gap=0.25).decides(quarters, torch.tensor([0, 1]), ID[2])
    assert NearTie(gap=0.26).decides(quarters, torch.tensor([0, 1]), ID[2])
    assert not NearTie(mass=1.0).decides(halves, ID[0], ID[1])


def test_golden_near_ties(shared):
    spec, tensors = golden(shared / "goldens", "controls", "olm")
    for name, case in spec["cases"].items():
        p = case["params"]
        logits = tensors[f"{name}/in/logits_main"].transpose(0, 1)  # [B, steps, V]
        fires = NearTie(mass=p["least_mass"], gap=p["most_gap"]).decides(
            logits, torch.tensor([p["yes"]]), torch.tensor([p["no"]])
        )
        assert torch.equal(fires.T, tensors[f"{name}/out/fires"].bool())
        tokens = torch.where(fires, p["yes"], logits.argmax(-1)).T
        assert torch.equal(tokens, tensors[f"{name}/out/tokens"])
    assert len(spec["cases"]) >= 2


def test_golden_cuts(shared):
    spec, tensors = golden(shared / "goldens", "controls", "apc")
    for name, case in spec["cases"].items():
        cut = LogitsCombination(plausibility=case["params"]["beta"])
        for logits, want in zip(
            tensors[f"{name}/in/logits_main"], tensors[f"{name}/out/scores"], strict=True
        ):
            close_as_goldens_ask(combine(logits[:, None], [cut])[:, 0], want)
    assert len(spec["cases"]) >= 2


def test_the_cut_by_hand(gaze):
    logits = torch.tensor([[[2.0, 1.0, 0.5, -1.0]]])
    for beta, kept in ((0.2, [0, 1, 2]), (0.6, [0])):
        cut = combine(logits, [LogitsCombination(plausibility=beta)])
        assert cut.isfinite().nonzero()[:, 2].tolist() == kept


CONTROLS = (NearTie(**ALWAYS), NearTie(**ALWAYS, steps="all"), PlausibilityCut(0.5), Sharpen(2.0, 0.3))
CONTROLS += (YesOffset(90.0),)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda each: f"{each.name}-{getattr(each, 'steps', '')}")
def test_what_every_method_must_satisfy(gaze, control):
    check_batch(gaze, control)
    check_padding(gaze, control)
    check_full_forward(gaze, control)
    check_json(control)
    assert control.shares_prefix == "plain"


def test_neutral_strength_changes_no_bit(gaze):
    check_neutral(
        gaze, NearTie(gap=0.0), NearTie(mass=1.0), PlausibilityCut(0.0), Sharpen(0.0), YesOffset(0.0)
    )


def test_a_near_tie_answers_yes_in_one_token_or_in_all(gaze):
    """Any spelling that is one token, which the plain model never says."""
    inputs = inputs_of(gaze)

    def says_yes(logits):
        words = gaze.reader.tokenizer.batch_decode(logits.argmax(-1).flatten()[:, None])
        return torch.tensor([word.strip().lower() == "yes" for word in words]).view(logits.shape[:2])

    assert not says_yes(logits_of(gaze.model, inputs)).any()
    for steps, deciding in (("first", 1), ("all", 5)):
        with gaze.using(NearTie(**ALWAYS, steps=steps)):
            yes = says_yes(logits_of(gaze.model, inputs))  # [steps, B]
        assert yes[:deciding].all()
        assert not yes[deciding:].any()


@pytest.mark.parametrize("offset", [-3.0, 2.0])
def test_an_offset_moves_the_logits_of_yes_in_the_first_token_alone(gaze, offset):
    inputs = inputs_of(gaze)
    plain = logits_of(gaze.model, inputs)  # [steps, B, V]
    with gaze.using(YesOffset(offset)):
        edited = logits_of(gaze.model, inputs)
    moved = (edited[0] - plain[0]).float()
    words = moved.ne(0).any(0).nonzero()
    assert {word.strip().lower() for word in gaze.reader.tokenizer.batch_decode(words)} == {"yes"}
    torch.testing.assert_close(moved[:, words[:, 0]], torch.full((len(moved), len(words)), offset))
    assert torch.equal(edited[0].argmax(-1), plain[0].argmax(-1))  # so that what follows is the same
    assert torch.equal(edited[1:], plain[1:])


@pytest.mark.parametrize(
    "options", [{"do_sample": True, "temperature": 5.0}, {"num_beams": 3}], ids=["draw", "beams"]
)
def test_where_it_decides_nothing_is_left_to_draw_or_search(gaze, options):
    torch.manual_seed(0)
    with gaze.using(NearTie(**ALWAYS, steps="all")):
        answers = gaze.model.generate(**inputs_of(gaze), max_new_tokens=3, eos_token_id=None, **options)[
            :, -3:
        ]
    texts = gaze.reader.tokenizer.batch_decode(answers)
    assert {text.lower().replace(" ", "") for text in texts} == {"yesyesyes"}


def test_tokens_that_are_taken_back_are_refused(gaze):
    with gaze.using(NearTie()), pytest.raises(InputError, match="NearTie"):
        gaze.model.generate(**inputs_of(gaze, slice(2, 3)), max_new_tokens=9, prompt_lookup_num_tokens=3)


def test_it_acts_together_with_a_contrast(gaze):
    """The contrast may exclude yes; the rule then leaves its choice alone, and nothing is undefined."""
    with gaze.using(VCD(noise_step=999, beta=1.0), NearTie(**ALWAYS)):
        logits = logits_of(gaze.model, inputs_of(gaze))
    assert not logits.isnan().any()
    assert logits.isfinite().any(-1).all()


@pytest.mark.parametrize("method", [VCD, ICD, AvisC, DAMRO], ids=lambda each: each.name)
def test_a_contrast_without_strength_is_the_cut_alone(gaze, method):
    inputs = inputs_of(gaze, slice(0, 2))
    for beta in (0.2, 0.6):
        logits = []
        for control in (method(alpha=0.0, beta=beta), PlausibilityCut(beta)):
            with gaze.using(control):
                logits.append(logits_of(gaze.model, inputs))
        assert torch.equal(*logits)
        assert logits[0].isinf().any()
        assert method(beta=beta).controls() == (PlausibilityCut(beta),)


def test_methods_name_their_cut_unless_they_are_it():
    assert VCD(alpha=0.0).controls() == VCD(beta=0.0).controls() == ()
    assert PAI(alpha=0.0).controls() == (PlausibilityCut(0.1),)
    assert DoLa().controls() == (PlausibilityCut(0.1),)
    assert AGLA().controls() == (Sharpen(2.0, 0.5),)


def test_adding_the_same_logits_sharpens(gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    plain = logits_of(gaze.model, inputs)
    with gaze.using(Sharpen(2.0)):
        assert_same_scores(logits_of(gaze.model, inputs), 3 * plain)
    agla = AGLA(alpha=2.0, beta=0.3, relevance=lambda image, text: (torch.zeros(4, 4), 0.0))  # masks nothing
    logits = []
    for control in (agla, *agla.controls()):
        with gaze.using(control):
            logits.append(logits_of(gaze.model, inputs))
    assert_same_scores(*logits, tolerance=1e-3)


@pytest.mark.parametrize("options", [{}, {"do_sample": False, "num_beams": 1}])
def test_greedy_answers_need_no_cut(options):
    for control in (PlausibilityCut(), Sharpen()):
        assert not control.acts_under(options)
        assert control.acts_under({"do_sample": True})
        assert control.acts_under({"num_beams": 4})
    assert NearTie().acts_under(options)


def test_values_that_are_not_allowed():
    for make in (lambda: NearTie(mass=1.5), lambda: NearTie(gap=-1.0), lambda: PlausibilityCut(2.0)):
        with pytest.raises(BadParameterError):
            make()
