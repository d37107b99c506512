"""What a model does between its last decoder layer and its logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from regaze.toolkit.model.compat.layout import decoder_of, text_config

#: What language models call their last norm, and the factors between output matrix and logits.
FINAL_NORMS = (
    *("norm", "final_layernorm", "final_layer_norm", "final_norm"),
    *("ln_f", "norm_f", "layer_norm", "embedding_norm"),
)

_LOGIT_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")

_LOGIT_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")

_LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap")


class LogitScale(NamedTuple):
    """What a model does to the output of its output matrix: multiply, divide, cap with tanh, in order."""

    factor: float | None = None
    divisor: float | None = None
    cap: float | None = None


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm after the last decoder layer; None where there is none."""
    decoder = decoder_of(model)
    decoder = getattr(decoder, "decoder", decoder)  # OPT's holds another
    norms = (getattr(decoder, name, None) for name in FINAL_NORMS)
    return next((norm for norm in norms if isinstance(norm, nn.Module)), None)


def head_is_tied(model: PreTrainedModel) -> bool:
    """Whether input and output embeddings are one matrix.

    Where accelerate offloads them, each module holds a placeholder of its own, and only their names tell.
    """
    parts = model.get_input_embeddings(), model.get_output_embeddings()
    if parts[0].weight is parts[1].weight:
        return True
    if all(part.weight.device.type != "meta" for part in parts):
        return False
    names = [{f"{name}.weight" for name, module in model.named_modules() if module is part} for part in parts]
    tied = model.all_tied_weights_keys.items()
    return any({a, b} & names[0] and {a, b} & names[1] for a, b in tied)


def logit_scale(model: PreTrainedModel) -> LogitScale:
    """The factors of a model's logits (Cohere, Granite, Gemma 2).

    A configuration may hold a factor that its class never applies, such as Cohere's inside Cohere2Vision, so
    a factor counts only where a forward above the output matrix names it.
    """
    config, head = text_config(model), model.get_output_embeddings()
    classes = {
        type(m)
        for m in model.modules()
        if isinstance(m, PreTrainedModel) and m.get_output_embeddings() is head
    }
    named: set[Any] = set()
    for code in (inspect.unwrap(each.forward).__code__ for each in classes):
        named.update(code.co_names, code.co_consts)

    def applied(names: Sequence[str]) -> float | None:
        values = (getattr(config, name, None) for name in names if name in named)
        return next((value for value in values if value is not None), None)

    factor, divisor, cap = (applied(names) for names in (_LOGIT_FACTORS, _LOGIT_DIVISORS, _LOGIT_CAPS))
    if divisor is not None and "hyperclovax" in config.model_type:  # the one family that multiplies by it
        return LogitScale(divisor, None, cap)
    return LogitScale(factor, divisor, cap)
