"""The attention function that transformers calls in every layer of a model with an open block.

It asks the hook of its module for an edit, and is the model's own attention, to the bit, where there is none.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from regaze.errors import CompositionError, UnsupportedModelError
from regaze.kernels import AttentionEdit, Stats, StatsRequest, attend, attention_stats, compose
from regaze.kernels.sliding_cache import edit_from
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.callback import Callback

if TYPE_CHECKING:
    from regaze.toolkit.model.hook import ModelHook

#: Where an attention module keeps its hook, and its place in the model.
SLOT, PLACE = "_regaze_hook", "_regaze_place"
#: torch.compile would take the counters and edits of a step for constants, and compile each step anew.
outside_graphs = partial(torch.compiler.disable, reason="regaze edits attention outside of compiled graphs")


class Planned(NamedTuple):
    """One layer's edit and who asked for statistics: the first for those of the edit, others beside it."""

    edit: AttentionEdit
    asking: tuple[tuple[Callback, StatsRequest], ...]


def plan(callbacks: tuple[Callback, ...], edits: tuple[AttentionEdit | None, ...]) -> Planned | None:
    """One edit that does what all do. One request for statistics goes with it, the others beside it."""
    active = [(p, edit) for p, edit in zip(callbacks, edits, strict=True) if edit is not None]
    if not active:
        return None
    asking = [(p, edit.stats) for p, edit in active if edit.stats is not None]
    asking.sort(key=lambda pair: not pair[1].edited)  # only the edit's own pass knows the edited rows
    if len(asking) > 1 and asking[1][1].edited:
        raise CompositionError("two interventions ask for statistics of the edited rows of one layer")
    if len(active) == 1:
        return Planned(active[0][1], tuple(asking))
    composed = compose([edit.replace(stats=None) for _, edit in active])
    assert composed is not None
    return Planned(composed.replace(stats=asking[0][1]) if asking else composed, tuple(asking))


@outside_graphs
def regaze_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function registered with transformers: q [B, Hq, Lq, D] -> ([B, Lq, Hq, Dv], None)."""
    hook: ModelHook | None = module.__dict__.get(SLOT)
    place: compat.AttentionSite | None = module.__dict__.get(PLACE)
    planned = None if hook is None or place is None else hook.edit(place, key.shape[2], query.device)
    edit = None if planned is None else planned.edit
    out: Tensor | None = None
    if hook is None or place is None or edit is None or edit.neutral:  # the very bits of the unwrapped model
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        previous = None if hook is None else hook.previous
        out = compat.plain_attention(previous, module, query, key, value, attention_mask, **options)
        if hook is None or place is None or ((edit is None or edit.stats is None) and not hook.seeing):
            return out, None
        edit = _NOTHING if edit is None else edit
    _refuse_unsupported(module, hook, dropout, kwargs)
    first = hook.first_key(place, query.shape[2], key.shape[2])
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and not place.cross
    if attention_mask is None and causal and query.shape[2] > 1:
        # transformers omits the mask only where row i sits at key i; a static cache has empty keys behind.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    call: dict[str, Any] = {"mask": attention_mask, "scaling": scaling, "is_causal": causal}
    call |= {"softcap": kwargs.get("softcap"), "sinks": kwargs.get("s_aux")}
    stats: Stats | None = None
    if out is None:
        edited, stats = attend(query, key, value, edit, first_key=first, **call)
        out = edited.transpose(1, 2).contiguous()
    elif edit.stats is not None:
        stats = attention_stats(query, key, edit.stats, first_key=first, **call)
    if planned is not None and stats is not None:
        hook.deliver(place, planned.asking[0][0], stats)
        for owner, request in planned.asking[1:]:
            hook.deliver(place, owner, attention_stats(query, key, request, first_key=first, **call))
    if hook.seeing:
        hook.show(place, AttentionCall(query, key, value, out, edit_from(edit, first), call))
    return out, None


_NOTHING = AttentionEdit()


def _refuse_unsupported(module: nn.Module, hook: ModelHook, dropout: float, kwargs: dict[str, Any]) -> None:
    """What an edited layer would silently lose, or add to what the model did so far."""
    name = type(module).__name__
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModelError(f"{name} uses `position_bias`, which edited attention lacks so far")
    for part in ("softcap", "s_aux"):
        if hook.previous == "sdpa" and kwargs.get(part) is not None:
            raise UnsupportedModelError(
                f"{name} has a `{part}`, which SDPA leaves out: load the model with "
                "attn_implementation='eager', so that plain and edited attention are the same function"
            )
    if dropout:
        raise UnsupportedModelError("attention dropout is not supported under an edit; call model.eval()")


compat.register(regaze_attention)
