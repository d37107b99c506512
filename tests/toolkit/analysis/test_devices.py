"""Analyses on one and on two devices: the numbers of the CPU, no wait of the host in layers."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device_checks import IMAGES, QUESTIONS
from models import small_var

from regaze.interventions import HeadKnockout
from regaze.toolkit import analysis
from regaze.toolkit.analysis.sink_profile import SinkProfile


def inputs_of(gaze):
    return gaze.inputs(IMAGES, QUESTIONS)


def answered(gaze):
    return analysis.with_answers(gaze, inputs_of(gaze), ["a red dog", "no"])


def recorded(gaze):
    with gaze.recording(slices="all", rows="all", entropy=True) as record:
        gaze.ask(IMAGES, QUESTIONS, max_new_tokens=3)
    return record


def cells(gaze):
    return analysis.ImageCells(gaze, IMAGES[0][0], QUESTIONS[0], torch.tensor([40, 41]), grid=(2, 2))


ANALYSES = {
    "answer log-probabilities": lambda gaze: analysis.answer_log_probs(
        gaze.model, inputs_of(gaze), torch.tensor([[40, 41], [42, 43]])
    ),
    "attention distance": lambda gaze: analysis.attention_distance(recorded(gaze)),
    "causal heads": lambda gaze: analysis.without_heads(
        gaze, [(inputs_of(gaze), torch.tensor([[40], [41]]))], lambda heads: HeadKnockout(heads=heads)
    )([(1, 2), (4, 0)]),
    "flow": lambda gaze: analysis.attention_flow(gaze, inputs_of(gaze)),
    "greedy answer": lambda gaze: analysis.greedy_answer(gaze, IMAGES[0], QUESTIONS[0], 3),
    "key importance": lambda gaze: analysis.key_importance(gaze, inputs_of(gaze)),
    "lens": lambda gaze: analysis.logit_lens(gaze, inputs_of(gaze), targets=[40]).target_probs,
    "massive activations": lambda gaze: analysis.massive_activations(gaze, inputs_of(gaze)),
    "occlusion": lambda gaze: analysis.occlusion_saliency(cells(gaze), 4),
    "phrase maps": lambda gaze: analysis.PhraseMaps(gaze, gaze.inputs([IMAGES[0]], [QUESTIONS[0]])).of(
        ["a red cat", "sky"], over="none"
    ),
    "plain and edited": lambda gaze: (
        analysis.plain_and_edited(
            gaze, inputs_of(gaze), small_var(), analysis.key_importance, max_new_tokens=2
        ).difference
    ),
    "rhythm": lambda gaze: tuple(each.heads.distance for each in analysis.rhythm(gaze, answered(gaze))),
    "role flow": lambda gaze: analysis.role_flow(recorded(gaze)).masses,
    "rollout": lambda gaze: analysis.rollout(gaze, inputs_of(gaze)),
    "sinks": lambda gaze: analysis.sink_tokens(gaze, inputs_of(gaze), SinkProfile((3, 7), 1.6)),
}


def values(result):
    """All numbers of a result."""
    if dataclasses.is_dataclass(result):
        result = tuple(getattr(result, field.name) for field in dataclasses.fields(result))
    if isinstance(result, tuple):
        return tuple(map(values, result))
    return result if isinstance(result, torch.Tensor) else repr(result)


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis(placed, name):
    """accelerate gives every layer on another device a copy of the mask, which is read."""
    placed.check(lambda gaze: values(ANALYSES[name](gaze)), "attention_call.py")


GRADIENTS = """
import torch
from device_checks import Placed, IMAGES, QUESTIONS
from pretended_device import Accelerator
from regaze.toolkit.analysis import relevance

with Accelerator():
    torch.ones((), requires_grad=True).backward()
Placed.llava(one=None).check(lambda gaze: relevance(gaze, gaze.inputs(IMAGES, QUESTIONS)).values, waits=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without an accelerator")
def test_relevance():
    """In a process of its own: torch has a thread for the devices that it knew at the first backward pass."""
    support = Path(__file__).parents[2] / "support"
    paths = os.pathsep.join([str(support), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", GRADIENTS], env={**os.environ, "PYTHONPATH": paths}, check=True)
