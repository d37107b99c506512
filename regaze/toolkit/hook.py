"""`ModelHook`: regaze inside one transformers model, from the first open `using` block to the last.

While at least one block is open, the language model's attention implementation is "regaze": a function that
asks the hook of its module for an edit and runs plain SDPA when there is none. When the last block closes,
everything is put back. The hook lives on the model and on its attention modules; nothing is kept at module or
class level, so models and threads do not see each other.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regaze.errors import CompositionError, InputError, RegazeError, UnsupportedModelError
from regaze.kernels import AttentionEdit, Stats, attend, compose, observe
from regaze.toolkit import compat
from regaze.toolkit.context import Context, Participant, Recorder
from regaze.toolkit.tokens import TokenMap

_SLOT = "_regaze_hook"

TokenReader = Callable[[Tensor, Tensor | None], TokenMap]


@dataclass(eq=False)
class Session:
    """One open `using` or `recording` block. `tokens` overrides the roles read from the prompt."""

    participants: tuple[Participant, ...]
    tokens: TokenMap | None = None
    read_tokens: TokenReader | None = None
    recorder: Recorder | None = None


def open_session(model: PreTrainedModel, session: Session) -> None:
    """Make a session take part in every forward of `model` until it is closed."""
    hook = model.__dict__.get(_SLOT)
    if hook is None:
        hook = ModelHook(model)
        hook.install()
    try:
        hook.add(session)
    except BaseException:
        hook.remove(session)
        raise


def close_session(model: PreTrainedModel, session: Session) -> None:
    """End a session; the last one leaves the model exactly as it was."""
    hook = model.__dict__.get(_SLOT)
    if hook is not None:
        hook.remove(session)


class ModelHook:
    """The open sessions of one model and the generations that run under them."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.sessions: list[Session] = []
        self.participants: tuple[Participant, ...] = ()
        self.current: Context | None = None
        self._contexts: weakref.WeakKeyDictionary[Any, tuple[Context, tuple[Session, ...]]] = (
            weakref.WeakKeyDictionary()
        )
        self._composed: dict[int, tuple[tuple[AttentionEdit, ...], AttentionEdit | None]] = {}
        self._handles: list[Any] = []
        self._layer_handles: list[Any] = []
        self._open: tuple[Session, ...] = ()  # the sessions that saw the prefill of the current generation
        self._argument_names = tuple(inspect.signature(model.forward).parameters)
        self._previous = compat.current_attention(model)

    # Coming and going ---------------------------------------------------------------------------------

    def install(self) -> None:
        modules = compat.attention_modules(self.model)
        if not modules:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no attention modules that regaze can reach"
            )
        try:
            compat.set_attention(self.model, compat.IMPLEMENTATION)
        except BaseException:  # also half-way through a composite model
            compat.set_attention(self.model, self._previous)
            raise
        for module in modules:
            module.__dict__[_SLOT] = self
        self.model.__dict__[_SLOT] = self
        self._handles = [
            self.model.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.model.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]

    def uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        for module in (self.model, *compat.attention_modules(self.model)):
            module.__dict__.pop(_SLOT, None)
        compat.set_attention(self.model, self._previous)

    def add(self, session: Session) -> None:
        if session.recorder is not None and any(other.recorder is not None for other in self.sessions):
            raise CompositionError(
                "a recording is already open on this model; ask for everything in one gaze.recording"
            )
        self.sessions.append(session)
        self._refresh()

    def remove(self, session: Session) -> None:
        if session in self.sessions:
            self.sessions.remove(session)
        self._refresh()
        if not self.sessions:
            self.uninstall()

    def _refresh(self) -> None:
        # Recorders come last: what they ask for is attached to what the others do.
        ordered = sorted(self.sessions, key=lambda session: session.recorder is not None)
        self.participants = tuple(p for session in ordered for p in session.participants)
        self._composed.clear()

    # One forward --------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.participants:
            return
        kwargs = {**dict(zip(self._argument_names, args, strict=False)), **kwargs}
        input_ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
        if compat.seen_tokens(cache) == 0:
            self._begin(input_ids, kwargs)
        else:
            self._continue(cache)
        for session in self.sessions:
            if session.recorder is not None and self.current is not None:
                session.recorder.begin_step(self.current, input_ids)

    def _begin(self, input_ids: Tensor | None, kwargs: dict[str, Any]) -> None:
        given = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if given is None:
            raise InputError("the model was called without input_ids and inputs_embeds")
        batch, length = given.shape[:2]
        tokens = self._tokens(input_ids, kwargs.get("attention_mask"), batch, length)
        context = Context(
            compat.text_config(self.model), input_ids, (batch, length), tokens, self.participants
        )
        context.device = given.device
        self._composed.clear()
        for participant in self.participants:
            participant.prepare(context)
        self.current, self._open = context, tuple(self.sessions)
        if any(participant.uses_hidden_states for participant in self.participants):
            # For this forward only: hooks on every layer would cost a decode step as much as an edit does.
            layers = compat.decoder_layers(self.model)
            hooks = (self._layer_input(number) for number in range(len(layers)))
            self._layer_handles = [
                layer.register_forward_pre_hook(hook, with_kwargs=True)
                for layer, hook in zip(layers, hooks, strict=True)
            ]

    def _tokens(
        self, input_ids: Tensor | None, mask: Tensor | None, batch: int, length: int
    ) -> TokenMap | Exception:
        for session in reversed(self.sessions):
            if session.tokens is not None:
                return _fitted(session.tokens, batch, length)
        if input_ids is None:
            return InputError("inputs_embeds have no roles; pass gaze.using(..., tokens=TokenMap(...))")
        try:
            return next(s.read_tokens for s in self.sessions if s.read_tokens is not None)(input_ids, mask)
        except RegazeError as error:  # raised where roles are needed: many participants need none
            return error

    def _continue(self, cache: Any) -> None:
        context, sessions = self._contexts.get(cache, (None, ()))
        if context is None or any(session not in sessions for session in self.sessions):
            raise InputError(
                "this key-value cache was filled outside the open gaze.using(...) or gaze.recording(...); "
                "run the prompt and its continuation inside one block"
            )
        context.step += 1
        self.current = context

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        context, self.current = self.current, None
        while self._layer_handles:
            self._layer_handles.pop().remove()
        if context is None:
            return
        context._hidden = None
        cache = compat.cache_of(output) or kwargs.get("past_key_values")
        if context.step == 0 and cache is not None:
            self._contexts[cache] = (context, self._open)

    def _layer_input(self, number: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.current is not None:
                self.current._hidden = (number, args[0] if args else kwargs["hidden_states"])

        return keep

    # One layer ----------------------------------------------------------------------------------------

    def edit(self, layer: int, device: torch.device) -> AttentionEdit | None:
        """What the open sessions want of this layer now; None for plain attention."""
        context = self.current
        if context is None:
            if self.participants:
                raise InputError(
                    "a part of the wrapped model was called by itself; call the model given to regaze.wrap"
                )
            return None
        context.device, step = device, context.step
        if len(self.participants) == 1:
            return self.participants[0].edit(layer, step, context)
        edits = tuple(edit for p in self.participants if (edit := p.edit(layer, step, context)) is not None)
        if len(edits) < 2:
            return edits[0] if edits else None
        known = self._composed.get(layer)
        if (
            known is None
            or len(known[0]) != len(edits)
            or any(a is not b for a, b in zip(known[0], edits, strict=True))
        ):
            known = self._composed[layer] = (edits, compose(edits))
        return known[1]

    def deliver(self, layer: int, stats: Stats) -> None:
        for session in self.sessions:
            if session.recorder is not None:
                session.recorder.deliver(layer, stats)


def _fitted(tokens: TokenMap, batch: int, length: int) -> TokenMap | Exception:
    """An explicit map for a batch that generation may have expanded (beams, several returned sequences)."""
    if tokens.length == length and batch % tokens.batch == 0:
        return tokens if tokens.batch == batch else tokens.repeat(batch // tokens.batch)
    return InputError(
        f"the TokenMap is [B={tokens.batch}, L={tokens.length}], but the prompt is [{batch}, {length}]"
    )


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
    hook: ModelHook | None = module.__dict__.get(_SLOT)
    layer: int = module.layer_idx  # type: ignore[assignment]
    edit = None if hook is None else hook.edit(layer, query.device)
    out: Tensor | None = None
    if hook is None or edit is None or edit.neutral:  # the very bits of the unwrapped model
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        out, _ = compat.plain_attention(module, query, key, value, attention_mask, **options)
        if hook is None or edit is None or edit.stats is None:
            return out, None
    _refuse_unsupported(module, dropout, kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and query.shape[2] > 1:
        # transformers omits the mask only where row i sits at key i; a static cache has empty keys behind.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    call: dict[str, Any] = {"mask": attention_mask, "scaling": scaling, "is_causal": causal}
    if out is not None and edit.stats is not None:
        stats: Stats | None = observe(query, key, edit.stats, **call)
    else:
        edited, stats = attend(query, key, value, edit, **call)
        out = edited.transpose(1, 2).contiguous()
    if stats is not None:
        hook.deliver(layer, stats)
    return out, None


def _refuse_unsupported(module: nn.Module, dropout: float, kwargs: dict[str, Any]) -> None:
    """Parts of attention that an edited layer would silently lose."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} uses `{name}`, which edited attention lacks so far"
            )
    if dropout:
        raise UnsupportedModelError("attention dropout is not supported under an edit; call model.eval()")


compat.register(regaze_attention)
