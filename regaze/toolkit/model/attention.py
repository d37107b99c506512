"""The attention function that transformers calls in every layer of a model with an open block.

It looks up the plan of its layer and is the model's own attention, to the bit, where there is none. Compiled
graphs hold it as one operator.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regaze.errors import InputError, UnsupportedModelError
from regaze.kernels import AttentionEdit
from regaze.kernels.sliding_cache import shift_edit
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context, LookedAhead
from regaze.toolkit.model.layer_plan import LayerPlan
from regaze.toolkit.model.plans import AttentionDispatcher, LayerCall

#: Where an attention module keeps its `Attachment` while a block is open.
SLOT = "_regaze_attention"


class Attachment(NamedTuple):
    """What an attention module carries while a block is open. Encoders have no `site` and no edits.

    Attributes:
        number: by which a graph names the module; the same in every block.
    """

    dispatcher: AttentionDispatcher
    site: compat.AttentionSite | None
    number: int


#: The modules with an open block by their number, for graphs, which hold no objects.
_ATTACHED: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()


def attach(module: nn.Module, dispatcher: AttentionDispatcher, site: compat.AttentionSite | None) -> None:
    """From now on a module's attention is that of `dispatcher`."""
    number = id(module)
    module.__dict__[SLOT] = Attachment(dispatcher, site, number)
    _ATTACHED[number] = module


def detach(module: nn.Module) -> None:
    """The end of `attach`; it can be repeated."""
    module.__dict__.pop(SLOT, None)
    _ATTACHED.pop(id(module), None)


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
    options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
    if torch.compiler.is_compiling():
        return _in_graph(module, query, key, value, attention_mask, options)
    attached: Attachment | None = module.__dict__.get(SLOT)
    usual = _SPECIAL.isdisjoint(kwargs)
    if not usual and not compat.RARE_ARGUMENTS.isdisjoint(kwargs):
        attention_mask = compat.sparse_mask(module, query, key, attention_mask, kwargs)
    if attached is None:
        return compat.plain_attention(None, module, query, key, value, attention_mask, **options)
    dispatcher, site, _ = attached
    plan = None
    if site is not None and site in dispatcher.settled:
        dispatcher.check_thread()
        plan = dispatcher.settled[site]
        if plan is not None and plan.neutral and usual and not dropout and query.shape[2] == 1:
            layer = LayerCall(site, plan, query, key, attention_mask, False, scaling, None, None)
            if dispatcher.measure_later(layer):
                return dispatcher.plain(module, query, key, value, attention_mask, **options)
    elif site is not None:
        if (context := dispatcher.context) is not None:
            if context.kept_tokens is not None:
                attention_mask = dispatcher.mask(site, attention_mask, query, key.shape[2])
            if context.asked_ahead is not None:
                call = _call(module, site, attention_mask, options)
                raise LookedAhead(dispatcher.ahead(site, context.asked_ahead, query, key, scaling, call))
        plan = dispatcher.plan(site, key.shape[2], query.device)
        if dispatcher.key_editors:
            key = dispatcher.edited_keys(site, key, value)
    if site is None or (plan is None and not dispatcher.watched):
        return dispatcher.plain(module, query, key, value, attention_mask, **options)
    return _planned(module, attached, plan, query, key, value, attention_mask, options)


def _planned(
    module: nn.Module,
    attached: Attachment,
    plan: LayerPlan | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """`regaze_attention` of a layer with a plan, or one that is watched."""
    dispatcher, site, _ = attached
    assert site is not None
    plain = None
    if plan is None or plan.neutral:  # the very bits of the unwrapped model
        plain = dispatcher.plain(module, query, key, value, mask, **options)
    ran, context = query.shape[0], dispatcher.context
    query, key, value, mask, plain = _all_rows(context, query, key, value, mask, plain)
    call = _call(module, site, mask, options)
    _refuse_unsupported(module, dispatcher.previous, options)
    queries, keys = query.shape[2], key.shape[2]
    first = dispatcher.first_key(site, queries, keys)
    if mask is None and call["is_causal"] and queries > 1:
        # transformers omits the mask only where row i sits at key i; a static cache has empty keys after it.
        key, value = key[:, :, :queries], value[:, :, :queries]
    scaling: float | None = options["scaling"]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if plain is None:
        assert plan is not None
        edited, stats = plan.edit.attend(query, key, value, scaling, first, **call)
        plain = edited.transpose(1, 2).contiguous(), None
        if stats is not None:
            dispatcher.deliver(site, plan, 0, stats)
    if plan is not None and (plan.neutral or plan.others):
        rest = mask, call["is_causal"], scaling, call["softcap"], call["sinks"]
        layer = LayerCall(site, plan, query, key, *rest)
        if not dispatcher.measure_later(layer):
            dispatcher.measure(layer)
    out, weights = plain
    if dispatcher.watched:
        edit = _NOTHING if plan is None else plan.edit.edit
        shown_options, masks = {"scaling": scaling, **call}, dispatcher.causal_masks
        shown = AttentionCall(query, key, value, out, shift_edit(edit, first), shown_options, masks, first)
        dispatcher.show(site, shown)
        if dispatcher.wants_weights and weights is None:
            weights = F.pad(rows := shown.weights(slice(0, queries)), (0, keys - rows.shape[-1]))
            weights = weights.to(query.dtype)
        if weights is not None and (numbering := dispatcher.numbering(site, query.device)) is not None:
            weights = numbering.weights(weights)
    return out if ran == len(out) else out[:ran], weights


_NOTHING = AttentionEdit()


def _all_rows(
    context: Context | None, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, plain: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Any]:
    """The call with the rows of all contexts, where a `SharedLayer` runs fewer, and what it gave."""
    if context is None or query.shape[0] >= context.batch:
        return query, key, value, mask, plain
    if mask is not None and len(mask) > 1:
        mask = context.all_rows(mask)
    if plain is not None:
        plain = context.all_rows(plain[0]), None if plain[1] is None else context.all_rows(plain[1])
    query, key, value = (context.all_rows(part) for part in (query, key, value))
    return query, key, value, mask, plain


def _call(
    module: nn.Module, site: compat.AttentionSite, mask: Tensor | None, options: dict[str, Any]
) -> dict[str, Any]:
    """What `attend` and `attention_stats` take beside tensors."""
    causal = options["is_causal"]
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return {
        "mask": mask,
        "is_causal": causal and not site.cross,
        "softcap": options.get("softcap"),
        "sinks": options.get("s_aux"),
    }


#: Arguments of some models' attention that not every edit or implementation knows.
_SPECIAL = frozenset({"softcap", "s_aux", *compat.RARE_ARGUMENTS})


def _refuse_unsupported(module: nn.Module, previous: str, options: dict[str, Any]) -> None:
    """Refuse what an edited layer would silently lose, or add to what the model did so far."""
    if not options["dropout"] and _SPECIAL.isdisjoint(options):
        return
    name = type(module).__name__
    for part in ("position_bias", "sinks"):
        if options.get(part) is not None:
            raise UnsupportedModelError(f"{name} uses `{part}`, which edited attention lacks so far")
    for part in ("softcap", "s_aux"):
        if previous == "sdpa" and options.get(part) is not None:
            raise UnsupportedModelError(
                f"{name} has a `{part}`, which SDPA leaves out: load the model with "
                "attn_implementation='eager', so that plain and edited attention are the same function"
            )
    if options["dropout"]:
        raise UnsupportedModelError("attention dropout is not supported under an edit; call model.eval()")


_outside_graphs = torch.compiler.disable(
    regaze_attention,
    reason="gradients, attention weights and `on_attention` need regaze outside of compiled graphs",
)


def _in_graph(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """What torch.compile traces: one opaque operator, so that a graph is the same under every edit.

    Its guards are the model's attention implementation and the few attributes that are read here.
    """
    attached: Attachment | None = module.__dict__.get(SLOT)
    if attached is None:
        return compat.plain_attention(None, module, query, key, value, mask, **options)
    dispatcher = attached.dispatcher
    rare = any(options.get(name) is not None for name in compat.RARE_ARGUMENTS)
    if dispatcher.watched or rare or (torch.is_grad_enabled() and query.requires_grad):
        return _outside_graphs(module, query, key, value, mask, **options)
    numbers = options["scaling"], options["dropout"], options["is_causal"], options.get("softcap")
    tensors = query, key, value, mask, options.get("s_aux")
    return attention_operator(*tensors, *numbers, dispatcher.layer_hooks, attached.number), None


@torch.library.custom_op("regaze::attention", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def attention_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scaling: float | None,
    dropout: float,
    is_causal: bool | None,
    softcap: float | None,
    layer_hooks: str,
    number: int,
) -> Tensor:
    """`regaze_attention` as a graph calls it, [B, Lq, Hq, Dv].

    It is no part of CUDA graphs: its plan is looked up, and statistics are delivered, by the host.

    Args:
        layer_hooks: what hooks of layers do; a graph that was traced without them must not serve here.
        number: of the module, see `Attachment`.
    """
    module = _ATTACHED.get(number)
    if module is None:
        raise InputError("a graph that was captured inside a gaze.using(...) block runs after its end")
    options: dict[str, Any] = {"softcap": softcap, "s_aux": sinks}
    options = {name: value for name, value in options.items() if value is not None}
    dispatcher: AttentionDispatcher = module.__dict__[SLOT].dispatcher
    dispatcher.in_graph = True
    try:
        return regaze_attention(module, query, key, value, mask, scaling, dropout, is_causal, **options)[0]
    finally:
        dispatcher.in_graph = False


@attention_operator.register_fake
def _output(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[3])


compat.register(regaze_attention)
