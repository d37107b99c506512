"""`ModelHook`: regaze inside one transformers model, from the first open `using` block to the last.

While at least one block is open, the language model's attention implementation is "regaze": the function of
attention.py, which asks the hook of its module for an edit. When the last block closes, everything is put
back. The hook lives on the model and on its attention modules; nothing is kept at module or class level, so
models and threads do not see each other.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regaze.errors import CompositionError, InputError, RegazeError, UnsupportedModelError
from regaze.kernels import AttentionEdit, Stats
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention import PLACE, SLOT, Planned, outside_graphs, plan
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.callback import Callback, overrides
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.layer_hooks import LayerHooks
from regaze.toolkit.model.logits import combine
from regaze.toolkit.model.stack import Branch, Stack, main_rows
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.prompts.token_map import TokenMap

_BY_NAME = "an intervention that changes the logits of a forward needs outputs by name: return_dict=True"


@dataclass(eq=False)
class Session:
    """One open `using` or `recording` block. `tokens` overrides the roles read from the prompt."""

    callbacks: tuple[Callback, ...]
    tokens: TokenMap | None = None
    read_tokens: Callable[[Mapping[str, Any], Tensor | None], TokenMap] | None = None
    reader: PromptReader | None = None

    @property
    def records(self) -> bool:
        return any(callback.records for callback in self.callbacks)


def open_session(model: PreTrainedModel, session: Session, outer: PreTrainedModel | None = None) -> None:
    """Make a session take part in every forward of `model` until it is closed.

    Args:
        outer: the model that `model` is a part of, if its embeddings are where token ids are seen last.
    """
    hook = model.__dict__.get(SLOT)
    if hook is None:
        hook = ModelHook(model, outer)
        hook.install()
    try:
        hook.add(session)
    except BaseException:
        hook.remove(session)
        raise


def close_session(model: PreTrainedModel, session: Session) -> None:
    """End a session; the last one leaves the model exactly as it was."""
    hook = model.__dict__.get(SLOT)
    if hook is not None:
        hook.remove(session)


@contextmanager
def silent(model: PreTrainedModel) -> Iterator[None]:
    """Forwards in the block are those of the model without its open sessions."""
    hook = model.__dict__.get(SLOT)
    if hook is None:
        yield
        return
    outer, hook.sessions = hook.sessions, []
    hook._refresh()
    try:
        yield
    finally:
        hook.sessions = outer
        hook._refresh()


def take_over(model: PreTrainedModel, cache: Any, inputs: Mapping[str, Any]) -> None:
    """Let the open sessions go on from a cache that was filled outside of them, but for a last token.

    They see the whole prompt `inputs` now, and then its last row, in the next forward, as a step over the
    cache of those before it, like one that is replayed (`Context.replay_last_row`). That is the same for
    callbacks that leave the rows before the last alone, measure nothing in them and have no branches.

    Raises:
        UnsupportedModelError: a callback has branches.
    """
    hook = model.__dict__.get(SLOT)
    if hook is None:  # no session: there is nobody to see anything
        return
    context = hook._begin(inputs)
    if context.has_branches:
        raise UnsupportedModelError("a cache that one context has filled cannot go on as several")
    context.replaying = True
    hook._contexts[cache] = (context, tuple(hook.sessions))


class ModelHook:
    """The open sessions of one model and the generations that run under them."""

    def __init__(self, model: PreTrainedModel, outer: PreTrainedModel | None = None):
        self.model, self._outer = model, model if outer is None else outer
        self._embedded: Tensor | None = None
        self._announced: tuple[Tensor, TokenMap] | None = None
        self._media: tuple[str, ...] = ()  # what the roles of a prompt are read from, beside its ids
        self.sessions: list[Session] = []
        self.callbacks: tuple[Callback, ...] = ()
        self.current: Context | None = None
        self._contexts: weakref.WeakKeyDictionary[Any, tuple[Context, tuple[Session, ...]]] = (
            weakref.WeakKeyDictionary()
        )
        self._planned: dict[
            compat.AttentionSite, tuple[tuple[AttentionEdit | None, ...], Planned | None]
        ] = {}
        self._handles: list[Any] = []
        self._on_step: tuple[Callback, ...] = ()
        self._mlp_editors: tuple[Callback, ...] = ()
        self._mixing: tuple[Callback, ...] = ()
        self.seeing: tuple[Callback, ...] = ()
        self._layer_hooks = LayerHooks(model)
        self._self_layers, self._cross_layers = frozenset[int](), frozenset[int]()
        self._argument_names = tuple(inspect.signature(model.forward).parameters)
        self.previous = compat.current_attention(model)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InputError(
            f"this {type(self.model).__name__} has an open gaze.using(...) or gaze.recording(...); copy or "
            "pickle it outside of the block (save_pretrained works inside, and saves the plain model)"
        )

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
            compat.set_attention(self.model, self.previous)
            raise
        for module, place in modules.items():
            module.__dict__[SLOT], module.__dict__[PLACE] = self, place
        for module in (self.model, *compat.sharing_modules(self.model)):
            module.__dict__[SLOT] = self
        self._self_layers, self._cross_layers = (
            frozenset(place.layer for place in modules.values() if place.cross is cross)
            for cross in (False, True)
        )
        self._handles = [
            self.model.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.model.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]
        if self._outer is not self.model:  # embeds the ids itself and mixes the image in
            embeddings = self._outer.get_input_embeddings()
            self._handles.append(embeddings.register_forward_pre_hook(self._note_ids))

    def uninstall(self) -> None:
        self._layer_hooks.stop()  # of a forward that was interrupted from the keyboard, which runs no hook
        for handle in self._handles:
            handle.remove()
        for module in self.model.modules():
            if module.__dict__.get(SLOT) is self:  # a part of the model may be wrapped by itself
                module.__dict__.pop(SLOT)
                module.__dict__.pop(PLACE, None)
        compat.set_attention(self.model, self.previous)

    def add(self, session: Session) -> None:
        if session.records and any(other.records for other in self.sessions):
            raise CompositionError(
                "a recording is already open on this model; ask for everything in one gaze.recording"
            )
        self.sessions.append(session)
        self._refresh()

    def remove(self, session: Session) -> None:
        if session in self.sessions:
            self.sessions.remove(session)
        for cache, (context, sessions) in list(self._contexts.items()):
            if session in sessions and context.has_branches:  # what is left of it is the user's rows
                compat.keep_rows(cache, context.user_batch)
                del self._contexts[cache]
        self._refresh()
        if not self.sessions:
            self.uninstall()

    def _refresh(self) -> None:
        # Recordings come last: what they request is attached to what the others do.
        ordered = sorted(self.sessions, key=lambda session: session.records)
        self.callbacks = tuple(p for session in ordered for p in session.callbacks)
        # Worked out once: a decode step of a small model takes a millisecond.
        self._on_step = self._overriding("on_step")
        self._mlp_editors = self._overriding("edit_mlp")
        self._mixing = self._overriding("combine_logits")
        self.seeing = self._overriding("on_attention")
        self._planned.clear()
        media = any(p.needs_pixels or overrides(p, "branches") for p in self.callbacks)
        encodes = self.model.config.is_encoder_decoder  # its forwards in `generate` have no ids to read
        reader = next((s.reader for s in self.sessions if s.reader is not None), None)
        compat.pass_pixels(self.model, media, () if reader is None else reader.family.image_token_ids)
        self._media = () if reader is None else reader.family.media_inputs
        watching = reader is not None and (encodes or self._media)
        compat.on_generate(self.model, self._announce if watching else None)
        self._announced = None

    def _overriding(self, method: str) -> tuple[Callback, ...]:
        return tuple(callback for callback in self.callbacks if overrides(callback, method))

    # One forward --------------------------------------------------------------------------------------

    @outside_graphs
    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.callbacks:
            return None
        given = {**dict(zip(self._argument_names, args, strict=False)), **kwargs} if args else kwargs
        cache = compat.cache_argument(given)
        seen = compat.cache_length(cache)
        context = self._continue(cache) if seen else self._begin(given)
        self.current, context.cache_length = context, seen
        for callback in self._on_step:
            callback.on_step(context, compat.decoder_inputs(self.model, given).get("input_ids"))
        self._layer_hooks.start(context)
        if not context.has_branches:
            return None
        positions = "position_ids" in self._argument_names
        return (), context.stacked(given, seen, positions)

    def _begin(self, given: dict[str, Any]) -> Context:
        encoder = self._encoder_tokens(given) if self.model.config.is_encoder_decoder else None
        given = self._with_ids(dict(compat.decoder_inputs(self.model, given)))
        if self._cross_layers:
            self._refuse_image_token_methods()
        if compat.prompt_of(given) is None and not compat.is_vision_model(self.model):
            raise InputError("the model was called without input_ids and inputs_embeds")
        reader = next((s.reader for s in self.sessions if s.reader is not None), None)
        config, tokens = compat.text_config(self.model), self._tokens(given)
        context = Context(self.model, config, given, tokens, self.callbacks, reader)
        context.extra_forward = self._run_aside
        context.self_layers, context.cross_layers = self._self_layers, self._cross_layers
        context.encoder = encoder
        context.mlp_editors = self._mlp_editors
        self._planned.clear()
        branches: dict[str, Branch] = {}
        for callback in self.callbacks:
            for name, branch in callback.branches(context).items():
                branches.setdefault(name, branch)
        if branches and self._cross_layers:
            raise UnsupportedModelError(
                f"second contexts ({', '.join(branches)}) cannot be run so far on a "
                f"{type(self.model).__name__}, which sees images through cross-attention layers"
            )
        if branches:
            context.stack(Stack(given, branches, context.visible, context.pad_token_id))
            longer = context.prompt_length - context.visible.shape[1]
            compat.make_room(compat.cache_argument(given), longer)
        for callback in self.callbacks:
            callback.prepare(context)
        return context

    def _announce(self, inputs: Mapping[str, Any]) -> None:
        """Read the prompts that `generate` was given, while all of the processor's outputs are there."""
        self._announced = None
        tokens = self._tokens(dict(inputs))
        if isinstance(tokens, TokenMap):
            self._announced = inputs["input_ids"], tokens

    def _encoder_tokens(self, given: Mapping[str, Any]) -> TokenMap | Exception | None:
        """What the encoder reads: ids of this forward, or those that `generate` has encoded before it."""
        if given.get("input_ids") is not None:
            return self._tokens(dict(given))
        output, announced = given.get("encoder_outputs"), self._announced
        if output is None or announced is None or not isinstance(announced[1], TokenMap):
            return None
        return announced[1].repeat(max(1, len(output[0]) // len(announced[0])))

    def _note_ids(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.current is None and args:
            self._embedded = args[0]

    def _with_ids(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a forward with the ids that its embeddings were made from, where known."""
        embeds, ids = given.get("inputs_embeds"), self._embedded
        if given.get("input_ids") is not None or embeds is None or ids is None:
            return given
        if ids.shape[1] != embeds.shape[1] or embeds.shape[0] % ids.shape[0]:
            return given
        return {**given, "input_ids": ids.repeat_interleave(embeds.shape[0] // ids.shape[0], 0)}

    def _refuse_image_token_methods(self) -> None:
        """A method that only edits the keys of the text would silently miss the images."""
        for callback in self.callbacks:
            if overrides(callback, "edit", "branches") and not overrides(callback, "edit_cross"):
                raise UnsupportedModelError(
                    f"{type(callback).__name__} knows images as tokens of the prompt, but "
                    f"{type(self.model).__name__} sees them (or sound) through cross-attention layers, where "
                    "it has no meaning yet; recordings and methods that edit cross-attention work there"
                )

    def _tokens(self, given: dict[str, Any]) -> TokenMap | Exception:
        prompt = compat.prompt_of(given)
        for session in reversed(self.sessions):
            if session.tokens is not None:
                return session.tokens if prompt is None else _fitted(session.tokens, *prompt.shape[:2])
        mask = None if prompt is None else compat.padding_mask(given.get("attention_mask"), prompt.shape[1])
        if prompt is not None and given.get("input_ids") is None:
            return InputError("inputs_embeds have no roles; pass gaze.using(..., tokens=TokenMap(...))")
        if self._announced is not None and prompt is not None:
            ids, tokens = self._announced
            copies = max(1, len(prompt) // len(ids))
            # One copy may also be a later call of the model itself, with the same ids and other images.
            unrepeated = copies == 1 and all(given.get(name) is not None for name in self._media)
            if not unrepeated and torch.equal(ids.repeat_interleave(copies, 0), prompt.to(ids.device)):
                return tokens.repeat(copies)
        try:
            return next(s.read_tokens for s in self.sessions if s.read_tokens is not None)(given, mask)
        except RegazeError as error:  # raised where roles are needed: many callbacks need none
            return error

    def _continue(self, cache: Any) -> Context:
        context, sessions = self._contexts.get(cache, (None, ()))
        if context is None or any(session not in sessions for session in self.sessions):
            raise InputError(
                "this key-value cache was filled outside the open gaze.using(...) or gaze.recording(...); "
                "run the prompt and its continuation inside one block"
            )
        context.step += 1  # of a prompt that was taken over: from 0, for its last row
        return context

    @outside_graphs
    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        context, self.current = self.current, None
        self._layer_hooks.stop()
        if context is None:
            return None
        context.clear_layer_input()
        if output is None:  # the forward failed
            return None
        if context.replaying:  # a prompt that was taken over is complete now
            context.step, context.replaying = 0, False
        elif context.step == 0:
            cache = compat.cache_of(output)
            if cache is not None:
                self._contexts[cache] = (context, tuple(self.sessions))
                compat.follow_cache(cache, context)
            if context.replay_requested:
                given = {**dict(zip(self._argument_names, args, strict=False)), **kwargs}
                self._replay(context, cache, given, output)
        if not self._mixing and not context.has_branches:
            return None
        return self._mixed(context, output)

    def _replay(self, context: Context, cache: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Run the last row of the prompt once more, as a decode step over the cache of the rows before it."""
        if isinstance(output, tuple):
            raise InputError(_BY_NAME)
        context.replay_requested = False
        if cache is None:
            raise InputError(
                "an intervention that reads later layers before it edits needs the cache: use_cache=True"
            )
        if not bool(context.visible[:, -1].all()):
            raise InputError("prompts must be padded on the left, so that all end in the last column")
        inputs = compat.with_cache(compat.last_row(kwargs), cache)
        compat.crop_last(cache)
        self.current, context.step, context.replaying = context, 1, True
        context.cache_length = compat.cache_length(cache)
        self._layer_hooks.start(context)
        try:
            again = self.model.forward(**{**inputs, "return_dict": True})
        finally:
            self._layer_hooks.stop()
            self.current, context.step, context.replaying = None, 0, False
        output["logits"] = torch.cat([output.logits[:, :-1], again.logits[:, -1:]], 1)

    def _mixed(self, context: Context, output: Any) -> Any:
        """The output with the combined logits and the user's rows; None where it stays as it is."""
        if isinstance(output, tuple):
            raise InputError(_BY_NAME)
        with context.reading(output):
            combinations = [m for p in self._mixing if (m := p.combine_logits(context)) is not None]
            if not combinations and not context.has_branches:
                return None
            logits = combine(context.logits(), combinations) if combinations else context.logits()
        for name in list(output):
            output[name] = main_rows(output[name], context.batch, context.user_batch)
        output["logits"] = logits
        return output

    def _run_aside(self, inputs: Mapping[str, Any], callback: Callback) -> Any:
        """A forward without a cache, seen by `callback` alone; see `Context.extra_forward`."""
        outer = self.sessions, self.current
        tokens = next((s.tokens for s in reversed(self.sessions) if s.tokens is not None), None)
        reading = next((s.read_tokens, s.reader) for s in self.sessions)
        self.sessions = [Session((callback,), tokens, *reading)]
        self._refresh()
        inputs = {**compat.without_cache(inputs), **compat.last_logits_only(self.model), "return_dict": True}
        if inputs.get("inputs_embeds") is not None:  # the ids beside them are known from `_with_ids`
            inputs.pop("input_ids", None)
        try:
            with torch.no_grad():
                return self.model(**inputs)
        finally:
            self.sessions, self.current = outer
            self._refresh()

    # One layer ----------------------------------------------------------------------------------------

    def edit(self, place: compat.AttentionSite, keys: int, device: torch.device) -> Planned | None:
        """What the open sessions want of this layer now, which has so many keys; None: plain attention."""
        context = self.current
        if context is None:
            if self.callbacks:
                raise InputError(_recomputed(self.model) or _CALLED_ALONE)
            return None
        context.device, step = device, context.step
        known, layer = self._planned.get(place), place.layer
        if place.cross:
            context.cross_keys = keys
        if len(self.callbacks) == 1:
            only = self.callbacks[0]
            edit = (only.edit_cross if place.cross else only.edit)(layer, step, context)
            if known is not None and known[0][0] is edit:
                return known[1]
            edits: tuple[AttentionEdit | None, ...] = (edit,)
        else:
            edits = tuple(
                (p.edit_cross if place.cross else p.edit)(layer, step, context) for p in self.callbacks
            )
            if known is not None and all(a is b for a, b in zip(known[0], edits, strict=True)):
                return known[1]
        planned = plan(self.callbacks, edits)
        self._planned[place] = edits, planned
        return planned

    def first_key(self, place: compat.AttentionSite, queries: int, keys: int) -> int:
        """Number of keys that the cache of a layer has dropped: those before its sliding window."""
        context = self.current
        return 0 if context is None or place.cross else max(0, context.cache_length + queries - keys)

    def deliver(self, place: compat.AttentionSite, owner: Callback, stats: Stats) -> None:
        if self.current is not None:
            deliver = owner.on_cross_stats if place.cross else owner.on_stats
            deliver(place.layer, stats, self.current)

    def show(self, place: compat.AttentionSite, call: AttentionCall) -> None:
        if self.current is not None and not place.cross:
            for callback in self.seeing:
                callback.on_attention(place.layer, call, self.current)


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


def _fitted(tokens: TokenMap, batch: int, length: int) -> TokenMap | Exception:
    """An explicit map for a batch that generation may have expanded (beams, several returned sequences)."""
    if tokens.length == length and batch % tokens.batch == 0:
        return tokens if tokens.batch == batch else tokens.repeat(batch // tokens.batch)
    return InputError(
        f"the TokenMap is [B={tokens.batch}, L={tokens.length}], but the prompt is [{batch}, {length}]"
    )
