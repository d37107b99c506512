"""A self-test of what regaze assumes of transformers, run once under a release that was not tested.

A release may rename an argument or an output without an error in regaze: decode steps would then look like
new prompts, and methods would answer wrongly. So before the first block opens under an unknown release, a
one-layer random language model generates on the CPU, plain and under a callback, and both are compared.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from regaze.errors import UnsupportedModelError
from regaze.kernels import AttentionEdit
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.hook import close_session, open_session
from regaze.toolkit.model.session import Session
from regaze.toolkit.prompts.token_map import Role, TokenMap

_PROMPT, _STEPS, _HEADS = 6, 3, 2


def check_release(model_type: str) -> None:
    """Try what regaze needs under a release of transformers that was not tested; once per process.

    Args:
        model_type: of the model about to be hooked.

    Raises:
        UnsupportedModelError: it does not work, or models of this type do not work under this release.
    """
    release = compat.installed_release()
    defect = compat.known_defect(release, model_type)
    if defect is not None:
        raise UnsupportedModelError(
            f"transformers {release} itself cannot run {model_type!r}: {defect}; install another release"
        )
    if not compat.is_tested(release):
        _try_release(release)


@lru_cache(maxsize=1)  # a failure is not kept: it raises each time
def _try_release(release: str) -> None:
    try:
        with torch.device("cpu"):
            finding = _first_difference()
    except Exception as error:
        finding = f"a small model fails: {type(error).__name__}: {error}"
    if finding is not None:
        tested = f"{compat.OLDEST} to {compat.NEWEST}"
        raise UnsupportedModelError(
            f"regaze does not work with transformers {release}: {finding}. It was tested with {tested}; "
            f"install one of these (pip install 'transformers=={compat.NEWEST}.*'), or a newer regaze"
        )


class _Probe(Callback):
    """Notes what it is shown of each step, and removes heads."""

    def __init__(self, head_gain: Tensor | None = None):
        self.steps: list[tuple[int, int, int]] = []
        self.layers: list[tuple[int, int]] = []
        self.reordered = False
        self._edit = None if head_gain is None else AttentionEdit(head_gain=head_gain)
        self._rows: Tensor | None = None

    def prepare(self, context: Context) -> None:
        self._rows = context.row_state(self)["rows"] = torch.arange(context.batch)

    def on_step(self, context: Context, input_ids: Tensor | None) -> None:
        fed = -1 if input_ids is None else input_ids.shape[1]
        self.steps.append((context.step, context.cache_length, fed))
        self.reordered |= context.step > 0 and context.row_state(self)["rows"] is not self._rows

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        self.layers.append((layer, step))
        return self._edit


class _Generated(NamedTuple):
    """Tokens [B, steps] and logits [steps, B, V] of one generation."""

    tokens: Tensor
    logits: Tensor


def _first_difference() -> str | None:
    """What is not as it should be, in words; None where all is."""
    missing = compat.missing_generation_methods()
    if missing:
        return f"generate has no {' and no '.join(missing)}"
    model = _small_model()
    plain, idle, silenced, beams = _generate(model), _Probe(), _Probe(torch.zeros(1, _HEADS)), _Probe()
    under_idle = _generate(model, idle)
    _generate(model, beams, num_beams=2)
    expected = [(0, 0, _PROMPT), *((step, _PROMPT + step - 1, 1) for step in range(1, _STEPS))]
    if idle.steps != expected:
        return f"steps are seen as (step, cache length, tokens) {idle.steps} instead of {expected}"
    if idle.layers != [(0, step) for step in range(_STEPS)]:
        return f"calls of attention are seen as (layer, step) {idle.layers}"
    if not torch.equal(under_idle.tokens, plain.tokens) or not torch.equal(under_idle.logits, plain.logits):
        return "a model under a callback that does nothing answers differently"
    if not beams.reordered:
        return "beam search re-orders its cache unseen"
    edited = _generate(model, silenced)
    model.model.layers[0].self_attn.o_proj.weight.zero_()
    if not torch.allclose(edited.logits, _generate(model).logits, atol=1e-5) or torch.allclose(
        edited.logits, plain.logits, atol=1e-3
    ):
        return "removing the heads of a layer does not act as it should"
    return None


def _small_model() -> Any:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8 * _HEADS,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=_HEADS,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).float().eval().requires_grad_(False)


@torch.no_grad()
def _generate(model: Any, callback: Callback | None = None, **options: Any) -> _Generated:
    """Answers to two prompts, of which one is padded; greedy unless `options` say otherwise."""
    ids = torch.arange(1, 2 * _PROMPT + 1).reshape(2, _PROMPT)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    roles = torch.where(mask.bool(), int(Role.QUERY), int(Role.PAD))
    session = Session((callback,) if callback is not None else (), TokenMap.from_roles(roles))
    if callback is not None:
        open_session(model, session)
    try:
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=_STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    finally:
        close_session(model, session)
    return _Generated(output.sequences[:, _PROMPT:], torch.stack(output.logits))
