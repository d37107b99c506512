"""A small text model and a knock-out in it, for tests of how people run models."""

from __future__ import annotations

from typing import Any

import torch
from models import logits_of, tiny_llama

import regaze
from regaze import HeadKnockout

KNOCK = HeadKnockout(heads=((1, 1), (0, 2)))


def text_model(**changes: Any) -> Any:
    return tiny_llama(num_hidden_layers=3, **changes)


def text_prompt() -> dict[str, torch.Tensor]:
    """Two rows."""
    return {"input_ids": torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0))}


def expected_logits(prompt: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the text model without and with the knock-out, by hand."""
    model = text_model()
    plain = logits_of(model, prompt)
    with torch.no_grad():
        for layer, head in KNOCK.heads:
            model.model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0.0
    return plain, logits_of(model, prompt)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def check(model: Any, expected: Any, prompt: Any, tolerance: float = 1e-4, run: Any = None) -> None:
    """Plain, idle, edited and plain again; `run` is what the user calls."""
    run = model if run is None else run
    plain, edited = expected
    with regaze.wrap(model).using():
        close(logits_of(run, prompt), plain, tolerance)
    with regaze.wrap(model).using(KNOCK):
        close(logits_of(run, prompt), edited, tolerance)
    close(logits_of(run, prompt), plain, tolerance)
