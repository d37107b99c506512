"""`ModelHook`: regaze inside one transformers model, from the first open block to the last.

While at least one `using` or `recording` block is open, the attention implementation of the language model is
"regaze": the function of attention.py. When the last block closes, everything is put back. The hook lives on
the model and on its attention modules; nothing is kept at module or class level, so models and threads do not
see each other.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regaze.errors import CompositionError, InputError, UnsupportedModelError
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention import SLOT, attach, detach
from regaze.toolkit.model.callback import Callback, overrides
from regaze.toolkit.model.combined_output import BY_NAME, combined_output
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.layer_hooks import LayerHooks
from regaze.toolkit.model.own_thread import OwnThread
from regaze.toolkit.model.plans import AttentionDispatcher, refuse_copy
from regaze.toolkit.model.prompt_source import PromptSource
from regaze.toolkit.model.session import Session
from regaze.toolkit.model.stack import Branch, Stack
from regaze.toolkit.model.token_removal import with_all_tokens

#: Where a model keeps its hook.
_HOOK = "_regaze_hook"
#: torch.compile would take the counters of a step for constants, and compile each step anew.
_outside_graphs = partial(torch.compiler.disable, reason="regaze begins and ends forwards outside of graphs")


def hook_of(model: PreTrainedModel) -> ModelHook | None:
    """The hook of a model with an open block."""
    return model.__dict__.get(_HOOK)


def open_session(model: PreTrainedModel, session: Session, outer: PreTrainedModel | None = None) -> None:
    """Make a session take part in every forward of `model` until it is closed.

    After an exception, `close_session` takes away what was done so far.

    Args:
        outer: the model that `model` is a part of, where it embeds the token ids itself.

    Raises:
        InputError: another thread has a session open. CompositionError: a second recording.
    """
    hook = hook_of(model)
    if hook is None:  # found from here on by `close_session`
        # Of two threads the dict takes the hook of one, which then refuses the other. No lock is held, as an
        # exception that is raised in this thread from outside could leave it locked for all others.
        hook = model.__dict__.setdefault(_HOOK, ModelHook(model, outer))
    hook.add(session)


def close_session(model: PreTrainedModel, session: Session) -> None:
    """End a session; the last one leaves the model exactly as it was. It can be repeated."""
    hook = hook_of(model)
    if hook is not None:
        hook.remove(session)


def open_callbacks(model: PreTrainedModel) -> tuple[Callback, ...]:
    """The callbacks of all open sessions of a model."""
    hook = hook_of(model)
    return () if hook is None else hook.callbacks


@contextmanager
def suspended(model: PreTrainedModel) -> Iterator[None]:
    """Forwards in the block are those of the model without its open sessions."""
    hook = hook_of(model)
    if hook is None:
        yield
        return
    with hook.only():
        yield


def adopt_cache(model: PreTrainedModel, cache: Any, inputs: Mapping[str, Any]) -> None:
    """Let the open sessions go on from a cache that was filled without them, all but the last token.

    They now get the whole prompt `inputs`. The next forward is its last row, a step over the cache of the
    rows before it, as after `Context.replay_last_row`. The result is the same for callbacks that leave the
    earlier rows alone, measure nothing in them and have no branches.

    Raises:
        UnsupportedModelError: a callback has branches.
    """
    hook = hook_of(model)
    if hook is not None:
        hook.adopt(cache, inputs)


class ModelHook:
    """The open sessions of one model and the generations that run under them."""

    def __init__(self, model: PreTrainedModel, outer: PreTrainedModel | None = None):
        self._model, self._outer = model, model if outer is None else outer
        self._thread = OwnThread(type(model).__name__)
        self._open: list[Session] = []
        self._closing: list[Session] = []  # no longer open, but what they did may not be undone yet
        self._instead: list[Session] | None = None  # that take part for a while, see `only`
        self._installed = False
        self._attached: dict[nn.Module, compat.AttentionSite | None] = {}
        self._prompts = PromptSource(model, self._thread)
        self._attention = AttentionDispatcher(model, self._thread)
        self._layer_hooks = LayerHooks(model, self._thread)
        self._contexts: weakref.WeakKeyDictionary[Any, tuple[Context, tuple[Session, ...]]] = (
            weakref.WeakKeyDictionary()
        )
        self._users_parts: weakref.WeakKeyDictionary[Any, list[tuple[Any, str, Any]]] = (
            weakref.WeakKeyDictionary()
        )
        self._running: Any = None  # the cache of the forward that runs
        self._handles: list[Any] = []
        self._on_step: tuple[Callback, ...] = ()
        self._combining: tuple[Callback, ...] = ()
        self._self_layers, self._cross_layers = frozenset[int](), frozenset[int]()
        self._guided: weakref.ref[compat.Generation] | None = None  # one that runs, or ran, with guidance
        self._turn_begins = False
        self._configs = compat.attention_configs(model)
        self._encodes = bool(model.config.is_encoder_decoder)
        self._argument_names = tuple(inspect.signature(model.forward).parameters)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self._model)

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        return self._attention.callbacks

    # Opening and closing ------------------------------------------------------------------------------

    def add(self, session: Session) -> None:
        """Open a session, and with the first one put regaze into the model.

        Raises:
            InputError: another thread has a session open. CompositionError: a second recording.
            UnsupportedModelError: the model's attention cannot be reached.
        """
        self._thread.check()
        if session.records and any(other.records for other in self._open):
            raise CompositionError(
                "a recording is already open on this model; ask for everything in one gaze.recording"
            )
        self._open.append(session)
        if not self._installed:
            self._install()
        self._refresh()

    def _install(self) -> None:
        model, attention = self._model, self._attention
        sites = compat.attention_modules(model)
        if not sites:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no attention modules that regaze can reach"
            )
        for module in sites:
            other = module.__dict__.get(SLOT)
            if other is not None:  # of a model that this one is a part of, or that is a part of it
                other.dispatcher.check_thread()
        compat.set_attention(model, compat.IMPLEMENTATION)
        self._attached = {**sites, **dict.fromkeys(compat.sharing_modules(model))}
        for module, site in self._attached.items():
            attach(module, attention, site)
        self._self_layers = frozenset(site.layer for site in sites.values() if not site.cross)
        self._cross_layers = frozenset(site.layer for site in sites.values() if site.cross)
        self._handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]
        if self._outer is not model:  # embeds the ids itself and mixes the image in
            embeddings = self._outer.get_input_embeddings()
            self._handles.append(embeddings.register_forward_pre_hook(self._note_embedded))
        self._installed = True

    def _uninstall(self) -> None:
        """Take regaze out of the model; every step can be repeated, and the last one ends the hook."""
        for handle in self._handles:
            handle.remove()
        compat.remove_hooks(self._outer, self, self._layer_hooks)
        for module in self._attached:
            attached = module.__dict__.get(SLOT)
            if attached is not None and attached.dispatcher is self._attention:  # parts may be wrapped, too
                detach(module)
        for cache, (context, _) in list(self._contexts.items()):
            compat.unfollow_cache(cache)
            if context.kept_tokens is not None:
                compat.spend_cache(cache)
        compat.set_attention(self._model, self._attention.previous)
        self._installed = False
        self._model.__dict__.pop(_HOOK, None)

    def remove(self, session: Session) -> None:
        """Close a session, and with the last one take regaze out of the model. It can be repeated."""
        if session in self._open:
            self._closing.append(session)
            self._open.remove(session)
        unknown = session not in self._closing  # it was refused, or is closed
        if unknown and (self._open or not self._thread.is_current):
            return
        # An interrupt runs no hook at the end of the forward.
        self._instead = None
        self._attention.begin(None)
        self._set_running(None)
        self._layer_hooks.stop()
        try:
            self._release_caches(session)
        finally:
            self._refresh()
            if self._open:
                compat.remove_hooks(self._outer, self._layer_hooks)
            else:
                self._uninstall()
        self._closing = [other for other in self._closing if other is not session]

    def _release_caches(self, session: Session) -> None:
        """What is left of caches with several contexts is what the plain model would have filled."""
        for cache, (context, sessions) in list(self._contexts.items()):
            if session in sessions and context.has_branches:
                if context.kept_tokens is not None:
                    compat.unfollow_cache(cache)
                    compat.spend_cache(cache)
                    self._contexts.pop(cache, None)
                    continue
                if cache not in self._users_parts:  # made once: an interrupt may come between the changes
                    self._users_parts[cache] = compat.users_part(
                        cache, context.user_batch, context.hidden_columns
                    )
                for owner, name, value in self._users_parts[cache]:
                    setattr(owner, name, value)
                compat.unfollow_cache(cache)
                self._contexts.pop(cache, None)
                self._users_parts.pop(cache, None)

    @contextmanager
    def only(self, *sessions: Session) -> Iterator[None]:
        """Forwards in the block take part in these sessions instead of the open ones."""
        self._thread.check()
        outer = self._instead, self._attention.context
        try:
            self._instead = list(sessions)
            self._refresh()
            yield
        finally:
            self._instead, context = outer
            self._refresh()
            self._attention.begin(context)

    def _set_running(self, cache: Any) -> None:
        """A forward over this cache begins; None: it has ended."""
        compat.set_running(self._running, False)
        compat.set_running(cache, True)
        self._running = cache

    @property
    def _sessions(self) -> list[Session]:
        """Those that take part in forwards now."""
        return self._open if self._instead is None else self._instead

    def _refresh(self) -> None:
        """The sessions have changed."""
        # Recordings come last: what they request is attached to what the others do.
        ordered = sorted(self._sessions, key=lambda session: session.records)
        callbacks = tuple(callback for session in ordered for callback in session.callbacks)
        self._attention.use(callbacks)
        # Worked out once: a decode step of a small model takes a millisecond.
        self._on_step, self._combining = (
            tuple(callback for callback in callbacks if overrides(callback, method))
            for method in ("on_step", "combine_logits")
        )
        noting = any(overrides(callback, "on_chosen", "combine_logits") for callback in callbacks)
        compat.on_chosen(self._model, self._note_generate, self._note_chosen if noting else None)
        self._prompts.use(self._sessions)
        reader = self._prompts.reader
        pixels = any(callback.needs_pixels or overrides(callback, "branches") for callback in callbacks)
        compat.pass_pixels(self._model, pixels, () if reader is None else reader.family.image_token_ids)

    def _note_embedded(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._thread.check()
        if self._attention.context is None and args:
            self._prompts.note_embedded(args[0])

    def _note_generate(self, generation: compat.Generation) -> None:
        self._thread.check()
        self._turn_begins = True
        self._guided = weakref.ref(generation) if generation.guidance_scale not in (None, 1) else None
        for callback in self._attention.callbacks:
            callback.on_generate()

    def _note_chosen(self, sequences: Tensor | None, ended: Tensor) -> None:
        self._thread.check()
        for callback in self._attention.callbacks:
            callback.on_chosen(sequences, ended)

    # The beginning of a forward -----------------------------------------------------------------------

    @_outside_graphs
    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return self._begin_forward(args, kwargs)

    def _begin_forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The arguments that the forward takes instead; None: those that it was given."""
        self._thread.check()
        given = {**dict(zip(self._argument_names, args, strict=False)), **kwargs} if args else kwargs
        self._attention.want_weights(compat.wants_attentions(self._configs, given))
        if not self._attention.callbacks:
            return None
        cache = compat.cache_argument(given)
        length = compat.cache_length(cache)
        turn_begins, self._turn_begins = self._turn_begins, False
        context = self._continue(cache) if length else self._begin(given)
        context.cache_length, context.turn_begins = length, turn_begins
        self._attention.begin(context)
        fed = compat.decoder_inputs(self._model, given) if self._encodes else given
        for callback in self._on_step:
            callback.on_step(context, fed.get("input_ids"))
        self._attention.plan_ahead()
        compat.note_length(cache, None)  # until the forward has succeeded
        prompt = compat.prompt_of(fed)
        context.fed = 0 if prompt is None else prompt.shape[1]
        self._attention.layer_hooks = self._layer_hooks.start(context)
        if not context.has_branches:
            return None
        self._set_running(cache)
        return (), context.stacked_inputs(given, length, "position_ids" in self._argument_names)

    def _begin(self, given: Mapping[str, Any]) -> Context:
        """The context of a new prompt: its roles are read, its branches made, its callbacks prepared."""
        model, callbacks = self._model, self._attention.callbacks
        if (current := compat.current_attention(model)) != compat.IMPLEMENTATION:
            raise InputError(
                f"attention was set to {current!r} inside gaze.using(...) or gaze.recording(...), which "
                "would then do nothing: set it before the block"
            )
        encoder = self._prompts.encoder_tokens(given) if model.config.is_encoder_decoder else None
        inputs = self._prompts.arguments(given)
        if self._cross_layers:
            self._refuse_image_token_methods()
        if compat.prompt_of(inputs) is None and not compat.is_vision_model(model):
            raise InputError("the model was called without input_ids and inputs_embeds")
        tokens = self._prompts.tokens(inputs)
        kept = compat.beside_cache(inputs)  # a context lives as long as its cache
        context = Context(model, compat.text_config(model), kept, tokens, callbacks, self._prompts.reader)
        context.extra_forward = self._extra_forward
        context.self_layers, context.cross_layers = self._self_layers, self._cross_layers
        context.encoder_tokens = encoder
        self._stack_branches(context, compat.cache_argument(inputs))
        for callback in callbacks:
            before = context.captured_layers
            callback.prepare(context)
            if context.captured_layers is not before:
                context.capturing += (type(callback).__name__,)
        return context

    def _stack_branches(self, context: Context, cache: Any) -> None:
        branches: dict[str, Branch] = {}
        for callback in self._attention.callbacks:
            for name, branch in callback.branches(context).items():
                branches.setdefault(name, branch)
        if not branches:
            return
        if self._cross_layers:
            raise UnsupportedModelError(
                f"second contexts ({', '.join(branches)}) cannot be run so far on a "
                f"{type(self._model).__name__}, which sees images through cross-attention layers"
            )
        context.use_stack(Stack(context.inputs, branches, context.visible, context.pad_token_id))
        window = getattr(context.config, "sliding_window", None)
        compat.make_room(cache, context.hidden_columns, window)

    def _refuse_image_token_methods(self) -> None:
        """A method that only edits the keys of the text would silently miss the images."""
        for callback in self._attention.callbacks:
            if overrides(callback, "edit", "edit_keys", "branches") and not overrides(callback, "edit_cross"):
                raise UnsupportedModelError(
                    f"{type(callback).__name__} knows images as tokens of the prompt, but "
                    f"{type(self._model).__name__} sees them (or sound) through cross-attention layers, "
                    "where it has no meaning yet; recordings and methods that edit cross-attention work there"
                )

    def _continue(self, cache: Any) -> Context:
        """The context of a decode step."""
        context, sessions = self._contexts.get(cache, (None, ()))
        if context is None or any(session not in sessions for session in self._sessions):
            raise InputError(
                "this key-value cache was filled outside the open gaze.using(...) or gaze.recording(...); "
                "run the prompt and its continuation inside one block"
            )
        context.step += 1  # after `adopt`: from 0, for the prompt's last row
        return context

    def adopt(self, cache: Any, inputs: Mapping[str, Any]) -> None:
        """See `adopt_cache`."""
        self._thread.check()
        context = self._begin(inputs)
        if context.has_branches:
            raise UnsupportedModelError("a cache that one context has filled cannot go on as several")
        context.replaying = True
        self._contexts[cache] = (context, tuple(self._sessions))

    # The end of a forward -----------------------------------------------------------------------------

    @_outside_graphs
    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return self._end_forward(args, kwargs, output)

    def _end_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """What the forward returns instead; None: its own output. `output` is None where it failed."""
        if not self._thread.is_current:  # refused by `_begin_forward`
            return None
        context = self._attention.context
        if context is None:  # nobody takes part
            return None
        cache = None if output is None else compat.cache_of(output)
        try:
            if output is not None:
                self._attention.finish(cache)
        finally:
            self._attention.begin(None)
            if self._running is not None:
                self._set_running(None)
            self._layer_hooks.stop()
        context.clear_layer_input()
        if output is None:
            return None
        with_all_tokens(output, context)
        if context.step:
            compat.note_length(cache, context.cache_length + context.fed)
        if context.replaying:  # an adopted prompt is complete now
            context.step, context.replaying = 0, False
        elif context.step == 0:
            if cache is not None:
                self._contexts[cache] = (context, tuple(self._sessions))
                compat.follow_cache(cache, context, context.hidden_columns)
            if context.has_branches:
                context.take_rope_deltas()
            if context.replay_requested:
                given = {**dict(zip(self._argument_names, args, strict=False)), **kwargs}
                self._replay(context, cache, given, output)
            compat.note_length(cache, compat.cache_length(cache))
        if not self._combining and not context.has_branches:
            return None
        guided = self._guided is not None and self._guided() is not None
        return combined_output(output, context, self._combining, guided)

    def _replay(self, context: Context, cache: Any, given: Mapping[str, Any], output: Any) -> None:
        """Run the last row of the prompt once more, as a decode step over the cache of the rows before it."""
        if isinstance(output, tuple):
            raise InputError(BY_NAME)
        if cache is None:
            raise InputError(
                "an intervention that reads later layers before it edits needs the cache: use_cache=True"
            )
        if not bool(context.visible[:, -1].all()):
            raise InputError("prompts must be padded on the left, so that all end in the last column")
        context.replay_requested = False
        inputs = compat.with_cache(compat.last_row(given), cache)
        compat.crop_last(cache)
        context.step, context.replaying, context.cache_length = 1, True, compat.cache_length(cache)
        self._attention.begin(context)
        self._attention.layer_hooks = self._layer_hooks.start(context)
        try:
            again = self._model.forward(**{**inputs, "return_dict": True})
            self._attention.finish(cache)
        finally:
            self._layer_hooks.stop()
            self._attention.begin(None)
            context.step, context.replaying = 0, False
        output["logits"] = torch.cat([output.logits[:, :-1], again.logits[:, -1:]], 1)

    def _extra_forward(self, inputs: Mapping[str, Any], callback: Callback) -> Any:
        """See `Context.extra_forward`."""
        inputs = {**compat.without_cache(inputs), **compat.last_logits_only(self._model), "return_dict": True}
        inputs.pop("labels", None)
        if inputs.get("inputs_embeds") is not None:  # the ids beside them were found by `PromptSource`
            inputs.pop("input_ids", None)
        with self.only(self._prompts.measuring(callback)), torch.no_grad():
            return self._model(**inputs)
