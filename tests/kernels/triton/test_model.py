"""The demo model answers the same through the fused kernels: prefill, decoding, padding and records."""

from __future__ import annotations

import pytest
import torch

import regaze
from regaze import VAR, HeadKnockout
from regaze.demo import scenes

pytest.importorskip("triton")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken
QUESTIONS = ["Is there a dog in the image?", "What is in the picture?"]


@pytest.fixture(scope="module")
def demo():
    model, processor = regaze.load("demo")
    return regaze.wrap(model.to("cuda") if torch.cuda.is_available() else model, processor)


@pytest.mark.slow
@pytest.mark.parametrize("method", [VAR(), HeadKnockout(heads=[(1, 2), (3, 0)])], ids=["var", "knockout"])
def test_answers_and_records_are_those_of_the_torch_path(demo, method, monkeypatch):
    images = [scene.path for scene in scenes()[:2]]
    answers, traces = [], []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("REGAZE_BACKEND", backend)
        with demo.using(method), demo.recording(entropy=True) as record:
            answers.append(demo.ask(images, QUESTIONS, max_new_tokens=4))
        traces.append(record[0])
    assert answers[0] == answers[1]
    assert any(answers[0])
    torch.testing.assert_close(traces[0].masses, traces[1].masses, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(traces[0].entropy, traces[1].entropy, rtol=1e-3, atol=1e-4)
