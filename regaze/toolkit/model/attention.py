"""The attention function that transformers calls in every layer of a model with an open block.

It asks the dispatcher of its module what to do, and is the model's own attention, to the bit, where that is
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from regaze.errors import CompositionError, InputError, UnsupportedModelError
from regaze.kernels import AttentionEdit, Stats, StatsRequest, attend, attention_stats, compose
from regaze.kernels.sliding_cache import shift_edit
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.callback import Callback, overrides
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.own_thread import OwnThread

#: Where an attention module keeps its `Attachment` while a block is open.
SLOT = "_regaze_attention"
#: torch.compile would take the counters and edits of a step for constants, and compile each step anew.
outside_graphs = partial(torch.compiler.disable, reason="regaze edits attention outside of compiled graphs")


class LayerPlan(NamedTuple):
    """The edit of one layer, and the callbacks that requested statistics of it.

    The first request is answered by the edit's own pass, each other one by a pass over the unedited layer.
    """

    edit: AttentionEdit
    requests: tuple[tuple[Callback, StatsRequest], ...]


def plan_layer(
    callbacks: Sequence[Callback], edits: Sequence[AttentionEdit | None], device: torch.device
) -> LayerPlan | None:
    """One edit on `device` that does what those of all callbacks do; None where there is none.

    Raises:
        CompositionError: two callbacks request statistics of the edited rows.
    """
    active = [(p, edit.to(device)) for p, edit in zip(callbacks, edits, strict=True) if edit is not None]
    if not active:
        return None
    requests = [(p, edit.stats) for p, edit in active if edit.stats is not None]
    requests.sort(key=lambda pair: not pair[1].edited)  # only the edit's own pass knows the edited rows
    if len(requests) > 1 and requests[1][1].edited:
        raise CompositionError("two interventions ask for statistics of the edited rows of one layer")
    if len(active) == 1:
        return LayerPlan(active[0][1], tuple(requests))
    composed = compose([edit.replace(stats=None) for _, edit in active])
    assert composed is not None
    return LayerPlan(composed.replace(stats=requests[0][1]) if requests else composed, tuple(requests))


class AttentionDispatcher:
    """Asks the callbacks of one model for their edits, layer by layer, and hands them what they requested.

    Attributes:
        callbacks: of all open blocks, recordings last. listeners: those with `on_attention`.
        context: of the forward that runs; None between forwards.
        previous: the model's own attention implementation.
        wants_weights: the forward that runs returns attention weights.
    """

    def __init__(self, model: PreTrainedModel, thread: OwnThread):
        self._model, self._thread = model, thread
        self.previous = compat.current_attention(model)
        self.callbacks: tuple[Callback, ...] = ()
        self.listeners: tuple[Callback, ...] = ()
        self.context: Context | None = None
        self.wants_weights = False
        self._plans: dict[
            compat.AttentionSite, tuple[tuple[AttentionEdit | None, ...], LayerPlan | None]
        ] = {}

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self._model)

    def use(self, callbacks: tuple[Callback, ...]) -> None:
        """From now on ask these callbacks."""
        self.callbacks = callbacks
        self.listeners = tuple(callback for callback in callbacks if overrides(callback, "on_attention"))
        self.forget_plans()

    def forget_plans(self) -> None:
        """A new prompt begins: its edits are other objects."""
        self._plans.clear()

    def plan(self, site: compat.AttentionSite, keys: int, device: torch.device) -> LayerPlan | None:
        """What the callbacks want of this layer now; None leaves it to plain attention.

        Args:
            keys: Lk of the call. device: that of the layer.
        """
        context = self.context
        if not self._thread.is_current:
            if (recomputed := _recomputed(self._model)) is not None:
                raise InputError(recomputed)
            self._thread.check()
        if context is None:
            if self.callbacks:
                raise InputError(_recomputed(self._model) or _CALLED_ALONE)
            return None
        context.device, step = device, context.step
        known, layer = self._plans.get(site), site.layer
        if site.cross:
            context.cross_keys = keys
        if len(self.callbacks) == 1:
            only = self.callbacks[0]
            edit = (only.edit_cross if site.cross else only.edit)(layer, step, context)
            if known is not None and known[0][0] is edit:
                return known[1]
            edits: tuple[AttentionEdit | None, ...] = (edit,)
        else:
            edits = tuple(
                (p.edit_cross if site.cross else p.edit)(layer, step, context) for p in self.callbacks
            )
            if known is not None and all(a is b for a, b in zip(known[0], edits, strict=True)):
                return known[1]
        plan = plan_layer(self.callbacks, edits, device)
        self._plans[site] = edits, plan
        return plan

    def first_key(self, site: compat.AttentionSite, queries: int, keys: int) -> int:
        """Number of keys that the cache of a layer has dropped: those before its sliding window."""
        context = self.context
        return 0 if context is None or site.cross else max(0, context.cache_length + queries - keys)

    def deliver(self, site: compat.AttentionSite, owner: Callback, stats: Stats) -> None:
        """Hand a callback the statistics that its edit of a layer requested."""
        if self.context is not None:
            deliver = owner.on_cross_stats if site.cross else owner.on_stats
            deliver(site.layer, stats, self.context)

    def show(self, site: compat.AttentionSite, call: AttentionCall) -> None:
        """Show the listeners a call of self-attention."""
        if self.context is not None and not site.cross:
            for callback in self.listeners:
                callback.on_attention(site.layer, call, self.context)

    def check_thread(self) -> None:
        """Raise InputError in another thread than the one whose block this is."""
        self._thread.check()


class Attachment(NamedTuple):
    """What an attention module carries while a block is open. Encoders have no `site` and no edits."""

    dispatcher: AttentionDispatcher
    site: compat.AttentionSite | None


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
    """The attention function registered with transformers: q [B, Hq, Lq, D] -> [B, Lq, Hq, Dv].

    With it come the weights [B, Hq, Lq, Lk] that were used where the forward is to return them, else None.
    """
    attached: Attachment | None = module.__dict__.get(SLOT)
    dispatcher, site = (None, None) if attached is None else attached
    previous = None if dispatcher is None else dispatcher.previous
    options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
    attention_mask = compat.sparse_mask(module, query, key, attention_mask, kwargs)
    if dispatcher is None or site is None:
        return compat.plain_attention(previous, module, query, key, value, attention_mask, **options)
    plan = dispatcher.plan(site, key.shape[2], query.device)
    edit = None if plan is None else plan.edit
    out, weights = None, None
    if edit is None or edit.neutral:  # the very bits of the unwrapped model
        out, weights = compat.plain_attention(previous, module, query, key, value, attention_mask, **options)
        idle = (edit is None or edit.stats is None) and not dispatcher.listeners
        if idle and not (dispatcher.wants_weights and weights is None):
            return out, weights
        edit = _NOTHING if edit is None else edit
    _refuse_unsupported(module, dispatcher.previous, dropout, kwargs)
    first = dispatcher.first_key(site, query.shape[2], key.shape[2])
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and not site.cross
    keys = key.shape[2]
    if attention_mask is None and causal and query.shape[2] > 1:
        # transformers omits the mask only where row i sits at key i; a static cache has empty keys after it.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    call: dict[str, Any] = {"mask": attention_mask, "scaling": scaling, "is_causal": causal}
    call |= {"softcap": kwargs.get("softcap"), "sinks": kwargs.get("s_aux")}
    stats: Stats | None = None
    if out is None:
        edited, stats = attend(query, key, value, edit, first_key=first, **call)
        out = edited.transpose(1, 2).contiguous()
    elif edit.stats is not None:
        stats = attention_stats(query, key, edit.stats, first_key=first, **call)
    if plan is not None and stats is not None:
        dispatcher.deliver(site, plan.requests[0][0], stats)
        for owner, request in plan.requests[1:]:
            dispatcher.deliver(site, owner, attention_stats(query, key, request, first_key=first, **call))
    if dispatcher.listeners or (dispatcher.wants_weights and weights is None):
        shown = AttentionCall(query, key, value, out, shift_edit(edit, first), call)
        dispatcher.show(site, shown)
        if dispatcher.wants_weights and weights is None:
            weights = F.pad(rows := shown.weights(slice(0, query.shape[2])), (0, keys - rows.shape[-1]))
            weights = weights.to(query.dtype)
    return out, weights


_NOTHING = AttentionEdit()


def _refuse_unsupported(module: nn.Module, previous: str, dropout: float, kwargs: dict[str, Any]) -> None:
    """Refuse what an edited layer would silently lose, or add to what the model did so far."""
    name = type(module).__name__
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModelError(f"{name} uses `position_bias`, which edited attention lacks so far")
    for part in ("softcap", "s_aux"):
        if previous == "sdpa" and kwargs.get(part) is not None:
            raise UnsupportedModelError(
                f"{name} has a `{part}`, which SDPA leaves out: load the model with "
                "attn_implementation='eager', so that plain and edited attention are the same function"
            )
    if dropout:
        raise UnsupportedModelError("attention dropout is not supported under an edit; call model.eval()")


def refuse_copy(model: PreTrainedModel) -> NoReturn:
    """A copy would share hooks and contexts with the original."""
    raise InputError(
        f"this {type(model).__name__} has an open gaze.using(...) or gaze.recording(...); copy or pickle it "
        "outside of the block (save_pretrained works inside, and saves the plain model)"
    )


_CALLED_ALONE = "a part of the wrapped model was called by itself; call the model given to regaze.wrap"


def _recomputed(model: PreTrainedModel) -> str | None:
    """Why a layer runs although its model does not, if that is gradient checkpointing."""
    saving = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if not (saving and torch.is_grad_enabled()):
        return None
    return (
        "gradient checkpointing runs layers again in the backward pass, where their edits are not known any "
        "more; call model.gradient_checkpointing_disable() before the block"
    )


compat.register(regaze_attention)
