"""`AttentionDispatcher`: asks callbacks for their edits of a layer, and makes its plan once per generation.

A decode step whose callbacks all keep their edits
(`Callback.fixed_edits`) asks none of them: it looks its plans up. Where all know them when a step begins
(`Callback.plans_ahead`), they are asked before it, and plans that differ in numbers alone are written to, so
that no address changes. Other callbacks are asked in every layer, and a plan stays as long as they return the
same objects.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regaze.errors import CompositionError, InputError
from regaze.kernels import (
    AttentionEdit,
    BoundEdit,
    KeyValueShift,
    Numbering,
    Stats,
    StatsRequest,
    attention_stats,
)
from regaze.kernels.bound import StatsCall, in_one_launch
from regaze.kernels.key_value_shift import shifted
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.callback import Callback, keeps_edits, overrides, plans_ahead
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.layer_plan import LayerPlan, plan_layer, rewritten
from regaze.toolkit.model.own_thread import OwnThread
from regaze.toolkit.model.step_results import Place, StepResults

#: Of a forward whose layers are not planned.
_NO_PLANS: Mapping[Any, Any] = {}


class _LacksTokens:
    """In the place of an `AttentionCall`, where tokens of the prompt have left the layer."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> NoReturn:
        raise CompositionError(
            f"{self._name}: reads the attention of all tokens in this layer, so it cannot act together with "
            "a method that removes some; hide them instead (remove=False)"
        )


class LayerCall(NamedTuple):
    """What the statistics of a layer are made of, apart from those that an edit's own pass gives."""

    site: compat.AttentionSite
    plan: LayerPlan
    query: Tensor
    key: Tensor
    mask: Tensor | None
    is_causal: bool
    scaling: float | None
    softcap: float | None
    sinks: Tensor | None


#: Elements of a layer's queries or keys up to which it may be measured when the forward has ended. Otherwise
#: those of all layers would be in memory at once.
_KEPT_ELEMENTS = 1 << 20


class _Known(NamedTuple):
    """What a layer's callbacks returned last, and the plan made of it, for Lk keys on the layer's device."""

    edits: tuple[AttentionEdit | None, ...]
    plan: LayerPlan | None
    keys: int
    device: torch.device
    numbering: Numbering | None


@dataclass(eq=False)
class _Plans:
    """The plans of one generation.

    Attributes:
        results: what the layers of compiled steps measure.
        newest: by layer, what was returned last. fixed: by layer, the plans of all decode steps, where every
            callback keeps its edits. kept_tokens: of the context, for which these are made.
    """

    results: StepResults
    kept_tokens: Any = None
    newest: dict[compat.AttentionSite, _Known] = field(default_factory=dict)
    fixed: dict[compat.AttentionSite, LayerPlan | None] = field(default_factory=dict)


class AttentionDispatcher:
    """Asks the callbacks of one model for their edits, layer by layer, and hands them what they requested.

    Attributes:
        check_thread: raises InputError in another thread than the one whose block this is.
        callbacks: of all open blocks, recordings last. listeners: those with `on_attention`. key_editors:
            those with `edit_keys`.
        context: of the forward that runs; None between forwards.
        previous: the model's own attention implementation. plain: its function.
        wants_weights: the forward that runs returns attention weights.
        layer_hooks: what hooks on layers do in the forward that runs; "" where there are none.
        causal_masks: of the forward that runs, see `AttentionCall`.
        masks: of the forward that runs, those of layers that tokens have left.
        watched: layers without an edit have more to do, too: weights to return, or listeners to call.
        in_graph: the layer that runs is an operator of a graph.
        settled: by layer, the plans of the forward that runs, where these are all that is done in it. Layers
            that are not among them are asked for in `plan`.
    """

    def __init__(self, model: PreTrainedModel, thread: OwnThread):
        self._model, self._thread = model, thread
        self.check_thread = thread.check
        self.previous = compat.current_attention(model)
        self.plain = compat.plain_function(self.previous)
        self.callbacks: tuple[Callback, ...] = ()
        self.listeners: tuple[Callback, ...] = ()
        self.key_editors: tuple[Callback, ...] = ()
        self.context: Context | None = None
        self.wants_weights = self.watched = False
        self.layer_hooks = ""
        self.causal_masks: dict[int, tuple[Tensor, bool]] = {}
        self.masks: dict[tuple[int, Numbering], tuple[Tensor | None, Tensor | None]] = {}
        self.in_graph = False
        self.settled: Mapping[Any, LayerPlan | None] = _NO_PLANS
        self._keeps_edits = self._plans_ahead = self._delivered = False
        #: By layer, of the forward that runs: shifts, and how many tokens the layer has been given.
        self._entered: dict[int, tuple[tuple[KeyValueShift, ...], int]] = {}
        self._generations: weakref.WeakKeyDictionary[Context, _Plans] = weakref.WeakKeyDictionary()
        self._plans: _Plans | None = None  # of the generation whose forward runs
        self._fixed: dict[compat.AttentionSite, LayerPlan | None] | None = None
        self._waiting: list[LayerCall] = []

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self._model)

    def use(self, callbacks: tuple[Callback, ...]) -> None:
        """From now on ask these callbacks."""
        self.callbacks = callbacks
        self.listeners = tuple(callback for callback in callbacks if overrides(callback, "on_attention"))
        self.key_editors = tuple(callback for callback in callbacks if overrides(callback, "edit_keys"))
        self.watched = bool(self.listeners) or self.wants_weights
        self._keeps_edits = all(keeps_edits(callback) for callback in callbacks)
        self._plans_ahead = all(plans_ahead(callback) for callback in callbacks)
        self._generations.clear()
        self._fixed, self.settled = None, _NO_PLANS

    def want_weights(self, wanted: bool) -> None:
        """Whether the forward that begins returns attention weights."""
        self.wants_weights = wanted
        self.watched = wanted or bool(self.listeners)

    def begin(self, context: Context | None) -> None:
        """A forward of this generation begins; None: it has ended."""
        self.context, self.layer_hooks, self.causal_masks, self.masks = context, "", {}, {}
        self._fixed, self._delivered, self._waiting, self._entered = None, False, [], {}
        self.settled = _NO_PLANS
        if context is None:
            self._plans = None
            return
        plans = self._generations.get(context)
        if plans is None:
            layers = len(context.self_layers) + len(context.cross_layers)
            plans = self._generations[context] = _Plans(StepResults(layers))
        self._plans = plans
        plans.results.clear()  # of a forward that failed
        if plans.kept_tokens is not context.kept_tokens:  # beam search goes on with other rows
            plans.kept_tokens = context.kept_tokens
            plans.fixed.clear()
        if self._keeps_edits and self._decodes(context):
            self._fixed = plans.fixed

    @staticmethod
    def _decodes(context: Context) -> bool:
        return context.step > 0 and not context.replaying

    def plan_ahead(self) -> None:
        """The forward's callbacks know its step: plan the layers now, where their edits are known now."""
        context, plans = self.context, self._plans
        if context is None or plans is None or not self._plans_ahead or not self._decodes(context):
            return
        if not self._fixed:  # not even those that stay: this is the first step
            known = list(plans.newest.items())
            asked = {site: self._asked(context, site, k.keys, k.device) for site, k in known}
            if self._fixed is None:
                self._fixed = asked
            else:
                self._fixed.update(asked)
        if (
            self._fixed is not None
            and context.kept_tokens is None
            and not self.watched
            and not self.key_editors
        ):
            self.settled = self._fixed

    def plan(self, site: compat.AttentionSite, keys: int, device: torch.device) -> LayerPlan | None:
        """What the callbacks want of this layer now; None leaves it to plain attention.

        Args:
            keys: Lk of the call. device: that of the layer.
        """
        context, fixed = self.context, self._fixed
        if threading.get_ident() != self._thread.ident:
            self._refuse_thread()
        if context is None:
            if self.callbacks:
                raise InputError(_recomputed(self._model) or _CALLED_ALONE)
            return None
        if fixed is None:
            return self._asked(context, site, keys, device)
        if site not in fixed:
            fixed[site] = self._asked(context, site, keys, device)
        return fixed[site]

    def _asked(
        self, context: Context, site: compat.AttentionSite, keys: int, device: torch.device
    ) -> LayerPlan | None:
        assert self._plans is not None
        context.device, step, layer = device, context.step, site.layer
        if site.cross:
            context.cross_keys = keys
        edits = tuple((p.edit_cross if site.cross else p.edit)(layer, step, context) for p in self.callbacks)
        if context.cache_length and not site.cross:
            edits = tuple(_entering(edit, context.cache_length) for edit in edits)
        known, numbering = self._plans.newest.get(site), self.numbering(site, device)
        same = known is not None and known.numbering is numbering
        if same and known is not None and all(a is b for a, b in zip(known.edits, edits, strict=True)):
            plan = known.plan
        else:
            plan = plan_layer(self.callbacks, edits, device, numbering)
            if self._plans_ahead and not self._keeps_edits and self._decodes(context):
                plan = rewritten(None if known is None else known.plan, plan)
            self._plans.newest[site] = _Known(edits, plan, keys, device, numbering)
        if plan is not None and plan.edit.edit.shifts and not site.cross:
            left = 0 if numbering is None else numbering.kept.length - numbering.kept.count
            self._entered[site.layer] = plan.edit.edit.shifts, context.cache_length + context.added - left
        return plan

    def _refuse_thread(self) -> None:
        """Raise InputError: a layer runs in another thread. The backward pass has threads of its own."""
        if (recomputed := _recomputed(self._model)) is not None:
            raise InputError(recomputed)
        self._thread.check()

    def edited_keys(self, site: compat.AttentionSite, key: Tensor, value: Tensor) -> Tensor:
        """The keys of a layer's self-attention after the callback that edits them.

        Raises:
            CompositionError: two callbacks edit keys.
        """
        if len(self.key_editors) > 1:
            names = " and ".join(type(callback).__name__ for callback in self.key_editors)
            raise CompositionError(
                f"{names}: each edits keys, and what comes out would depend on their order"
            )
        if self.context is None or site.cross:
            return key
        return self.key_editors[0].edit_keys(site.layer, key, value, self.context)

    def first_key(self, site: compat.AttentionSite, queries: int, keys: int) -> int:
        """Number of keys that the cache of a layer has dropped: those before its sliding window."""
        context = self.context
        if context is None or site.cross:
            return 0
        if context.kept_tokens is not None and context.kept_tokens[site.layer] is not None:
            return 0  # renumbered
        return max(0, context.cache_length + queries - keys)

    def numbering(self, site: compat.AttentionSite, device: torch.device) -> Numbering | None:
        """How a layer numbers the prompt's tokens, where some have left it."""
        context = self.context
        if context is None or context.kept_tokens is None or site.cross:
            return None
        return context.numbering(site.layer, device)

    def mask(
        self, site: compat.AttentionSite, mask: Tensor | None, query: Tensor, keys: int
    ) -> Tensor | None:
        """The mask of a layer for the tokens that it has, from that of the prompt and what follows it."""
        numbering = self.numbering(site, query.device)
        if numbering is None:
            return mask
        known = self.masks.get((id(mask), numbering))
        if known is None:
            assert self.context is not None
            given = mask if mask is None or len(mask) == 1 else self.context.all_rows(mask)
            cut = numbering.mask(given, query.shape[2], keys)
            # Fewer rows: of branches that begin later, see `SharedLayer`.
            known = self.masks[id(mask), numbering] = mask, None if cut is None else cut[: query.shape[0]]
        return known[1]

    def ahead(
        self,
        site: compat.AttentionSite,
        request: StatsRequest,
        query: Tensor,
        key: Tensor,
        scaling: float | None,
        call: dict[str, Any],
    ) -> Stats:
        """Statistics of a layer that is about to run, see `Context.look_ahead`."""
        numbering, mask = self.numbering(site, query.device), call["mask"]
        own = request.to(query.device) if numbering is None else numbering.request(request)
        if mask is not None and mask.shape[-1] > key.shape[2]:  # that of a static cache
            call = {**call, "mask": mask[..., : key.shape[2]]}
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        stats = attention_stats(query, key, own, scaling=scaling, **call)
        return stats if numbering is None else numbering.stats(stats, request)

    def measure_later(self, layer: LayerCall) -> bool:
        """Whether the requests that need passes of their own are answered when the forward has ended.

        On a CPU fetching code takes longest in a small model, so layers are measured one right after the
        other, in one launch if that can be. Their keys stay: a cache replaces them by longer ones, or writes
        behind them in the next step. Recordings can wait in every forward, other callbacks in planned steps.
        """
        key = layer.key
        if self.in_graph or not key.is_cpu or key.numel() > _KEPT_ELEMENTS:
            return False
        if self.settled is _NO_PLANS:
            asked = all(callback.records for callback, _ in layer.plan.requests)
            if not asked or layer.plan.numbering is not None or layer.query.numel() > _KEPT_ELEMENTS:
                return False
        self._waiting.append(layer)
        return True

    def measure(self, layer: LayerCall) -> None:
        """Answer the requests that need passes of their own now."""
        for number, edit in layer.plan.passes():
            self.deliver(layer.site, layer.plan, number, self._stats_call(layer, edit).run())

    def _stats_call(self, layer: LayerCall, edit: BoundEdit) -> StatsCall:
        site, _, query, key, mask, is_causal, scaling, softcap, sinks = layer
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        options = {"mask": mask, "is_causal": is_causal, "softcap": softcap, "sinks": sinks}
        return StatsCall(
            edit, query, key, scaling, options, self.first_key(site, query.shape[2], key.shape[2])
        )

    def _measure_waiting(self, context: Context) -> None:
        """Answer the requests that have waited for the end of the forward: one of several layers at once."""
        groups = defaultdict[Any, list[tuple[LayerCall, StatsCall]]](list)
        for layer in self._waiting:
            for number, edit in layer.plan.passes():
                owner = layer.plan.requests[number][0]
                call = self._stats_call(layer, edit).of_last_row()
                groups[number, id(owner), layer.site.cross].append((layer, call))
        for (number, _, cross), calls in groups.items():
            together = None if cross else in_one_launch([call for _, call in calls])
            if together is None:
                for layer, call in calls:
                    self.deliver(layer.site, layer.plan, number, call.run())
                continue
            self._delivered = True
            layers = tuple(layer.site.layer for layer, _ in calls)
            calls[0][0].plan.requests[number][0].on_stats_of_layers(layers, together, context)

    def deliver(self, site: compat.AttentionSite, plan: LayerPlan, request: int, stats: Stats) -> None:
        """Hand a callback the statistics that it requested: now, or those of a planned graph at its end.

        Args:
            request: its number in the plan.
        """
        if self.context is None or self._plans is None:
            return
        if plan.numbering is not None:
            stats = plan.numbering.stats(stats, plan.requests[request][1])
        if self.in_graph and self._fixed is not None:
            self._plans.results.write(Place(site, request), stats)
        else:
            self._delivered = True
            _hand_over(self.context, site, plan.requests[request][0], stats)

    def finish(self, cache: Any) -> None:
        """The forward has ended: shift what it has added to the cache; measure; hand out what graphs have."""
        if self.context is not None and cache is not None and self._entered:
            for layer, (shifts, length) in self._entered.items():
                compat.rewrite_layer(cache, layer, length, _change(shifts))
        if self.context is None or self._plans is None:
            return
        if self._waiting:
            self._measure_waiting(self.context)
        if self._fixed is None:
            return
        for (site, request), stats in self._plans.results.take(replayed=not self._delivered):
            plan = self._fixed.get(site)
            if plan is not None and request < len(plan.requests):
                _hand_over(self.context, site, plan.requests[request][0], stats)

    def show(self, site: compat.AttentionSite, call: AttentionCall) -> None:
        """Show the listeners a call of self-attention."""
        if self.context is None or site.cross:
            return
        for callback in self.listeners:
            numbering = self.numbering(site, call.query.device)
            shown: Any = call if numbering is None else _LacksTokens(type(callback).__name__)
            callback.on_attention(site.layer, shown, self.context)


def refuse_copy(model: PreTrainedModel) -> NoReturn:
    """A copy would share hooks and contexts with the original."""
    raise InputError(
        f"this {type(model).__name__} has an open gaze.using(...) or gaze.recording(...); copy or pickle it "
        "outside of the block (save_pretrained works inside, and saves the plain model)"
    )


def _entering(edit: AttentionEdit | None, cached: int) -> AttentionEdit | None:
    """The edit with the shifts that are left for keys after the `cached` ones, which are shifted already."""
    if edit is None or not edit.shifts:
        return edit
    left = tuple(shift for each in edit.shifts if (shift := each.entering(cached)) is not None)
    return edit.replace(shifts=left) if left else edit.with_own_keys


def _change(shifts: tuple[KeyValueShift, ...]) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    def change(keys: Tensor, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
        return shifted(tuple(shift.without_first(first) for shift in shifts), keys, values)

    return change


def _hand_over(context: Context, site: compat.AttentionSite, owner: Callback, stats: Stats) -> None:
    (owner.on_cross_stats if site.cross else owner.on_stats)(site.layer, stats, context)


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
