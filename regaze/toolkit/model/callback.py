"""`Callback`: what takes part in a generation, with its methods in the order of a forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, ClassVar

from torch import Tensor

from regaze.kernels import AttentionEdit, LeavingTokens, Stats
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch


class Callback:
    """Base of what `gaze.using` and `gaze.recording` put into a model; every method here does nothing.

    A callback keeps no state of its own: what it learns from a prompt goes into `context.state(self)`.
    Overriding a method declares what the callback does: only overridden methods cost anything, and only a
    callback with its own `edit_cross` acts on models that show images through cross-attention.

    Class attributes:
        needs_hidden_states: `edit` reads `context.hidden_states(layer)` at prefill.
        needs_pixels: the callback reads pixels from `context.inputs`. Implied by `branches`.
        fixed_edits: after the prompt, `edit` (or `edit_cross`) of a layer gives the same object in each step:
            they are called for the forwards of the prompt and in the first step after it, and no more. A
            subclass that redefines these methods does not inherit it.
        inactive: names of methods that its class has and that do nothing with its parameters; a model need
            not have what they edit.
        plans_ahead: after the prompt, the edits of a step are known when it begins (after `on_step`): `edit`
            of all layers is asked then, and what a layer measures acts in later steps only. Inherited as
            `fixed_edits`, which implies it.
        counts_steps: the callback counts the tokens of an answer, so none may be rolled back (assisted
            decoding).
        prompt_needs: which rows of a prompt have to run, where an engine takes some from a cache of prefixes
            or divides a prompt into several forwards. "": any, since edits depend on tokens alone, and what
            is measured on the last row. "values": any, where an engine keeps what `row_value` gives of the
            others; edits of a row depend on no later one. "rows": all, in any number of forwards. "whole":
            all in one forward. None: as `prompt_needs` below finds.
        records: the callback is a recording. Its requests are attached to the edits of all other callbacks,
            and a model has one recording at a time.
    """

    needs_hidden_states: ClassVar[bool] = False
    needs_pixels: ClassVar[bool] = False
    fixed_edits: bool = False
    inactive: frozenset[str] = frozenset()
    plans_ahead: bool = False
    counts_steps: ClassVar[bool] = False
    prompt_needs: ClassVar[str | None] = None
    records: ClassVar[bool] = False

    def for_model(self, config: Any) -> Callback:
        """What acts in a language model with this configuration: mostly the callback itself.

        Called when a block opens. A callback that stands for another one returns that.
        """
        return self

    def branches(self, context: Context) -> Mapping[str, Branch]:
        """Second contexts of the prompt, by name. Called first, once per prompt.

        Branches of the same name are one branch: name a branch for its content. The context has the user's
        rows only; from `prepare` on it has the rows of all branches.
        """
        return {}

    def prepare(self, context: Context) -> None:
        """Called once per prompt, before the prefill."""

    def on_step(self, context: Context, input_ids: Tensor | None) -> None:
        """A forward begins: the prefill or a decode step. `input_ids` [B, T] are those of the user's rows."""

    def on_generate(self) -> None:
        """`generate` begins, with a new prompt or with a further turn over the cache of one."""

    def on_chosen(self, sequences: Tensor | None, ended: Tensor) -> None:
        """`generate` has chosen the tokens after the forward that ran last.

        Args:
            sequences: [B, n] ids up to these tokens; None under beam search.
            ended: [B] bool, whose answer is complete: what such a row is fed from now on is padding.
        """

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        """The edit of `layer` at `step` (0 is the prefill); None leaves the layer to plain attention.

        Its tensors may lie anywhere, also on several devices: they are copied to the layer's device once per
        edit, and the parts that edits share (`RowSelection`, `Channels`, ...) once in all. So build edits
        from `context.tokens` on the CPU, or from statistics where they arrive, and ask for no device.

        Called for every layer of every forward (but see `fixed_edits`): return the same object where nothing
        changed, and do not wait for the device. The rows of all branches are edited, each by its own roles.
        """
        return None

    def row_value(self, layer: int, hidden: Tensor, context: Context) -> Tensor | None:
        """What `edit` reads of the residual stream [..., D] that enters `layer`, a number a row: [...] fp32.

        Overridden where this is all that it reads, as `context.row_values(self, layer)` in the place of
        `context.hidden_states(layer)`; `needs_hidden_states` is set all the same. An engine keeps it beside
        the row's keys, for other prompts that begin alike: it follows from the method, the layer and the row.
        None: `edit` reads nothing of this layer, whatever the prompt.
        """
        return None

    def edit_cross(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        """As `edit`, for the cross-attention of `layer`: its keys are those of `context.cross_tokens`."""
        return None

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        """The statistics that the callback's edit of this layer requested, right after the layer ran.

        In a compiled decode step of callbacks with `plans_ahead`, after the forward.
        """

    def on_stats_of_layers(self, layers: Sequence[int], stats: Stats, context: Context) -> None:
        """As `on_stats` for several layers of a decode step at once, [layers, B, ...], after the forward."""
        parts = [repeat(None) if part is None else part for part in stats]
        for layer, *own in zip(layers, *parts, strict=False):
            self.on_stats(layer, Stats(*own), context)

    def on_cross_stats(self, layer: int, stats: Stats, context: Context) -> None:
        """As `on_stats`, for what `edit_cross` requested."""

    def on_attention(self, layer: int, call: AttentionCall, context: Context) -> None:
        """A call of this layer's self-attention, right after it ran."""

    def leaving(self, layer: int, context: Context) -> LeavingTokens | None:
        """Tokens of the prompt that leave it before `layer`, which is the second one or later.

        Called while the prompt's forward runs, when `layer` is about to. From there on hidden states, and
        the layers' caches, are without these tokens; positions, roles, edits and statistics keep the numbers
        of the prompt. Hidden states that are read in later layers, and logits, are 0 at these tokens.
        """
        return None

    def edit_keys(self, layer: int, key: Tensor, value: Tensor, context: Context) -> Tensor:
        """The keys [B, Hkv, Lk, D] that the self-attention of `layer` uses in this forward instead of `key`.

        Called before the layer's attention in every forward, with all keys and values that it sees, those of
        the cache among them (and after positions were put in). The cache keeps what it has: change no tensor.
        """
        return key

    def edit_mlp(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        """The edited output [B, Lq, D] of the MLP of `layer`."""
        return hidden

    def edit_attention_output(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        """The edited output [B, Lq, D] of the self-attention of `layer`: what its output projection gives.

        A vector added to the output of a head is such an edit, too: the projection makes one of D of it.
        """
        return hidden

    def edit_vision_mlp(self, block: int, hidden: Tensor, context: Context) -> Tensor:
        """The edited output of the MLP of a block of the vision tower, [N, T, Dv]: N images or tiles of them.

        Called while the tower runs, which is inside the prompt's forward; set `needs_pixels`, so that
        `generate` does not run it beforehand.
        """
        return hidden

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        """How the logits of the branches combine (`context.logits`). Called at the end of each forward."""
        return None


def overrides(callback: Callback, *methods: str) -> bool:
    """Whether the class of `callback` has its own version of one of these methods."""
    return any(getattr(type(callback), name) is not getattr(Callback, name) for name in methods)


def keeps_edits(callback: Callback) -> bool:
    """Whether the edits of a callback are fixed: it has none, or `fixed_edits` is set beside its `edit`."""
    return _promises(callback, "fixed_edits")


def plans_ahead(callback: Callback) -> bool:
    """Whether the edits of a step are known when it begins: they are fixed, or `plans_ahead` is set."""
    return keeps_edits(callback) or _promises(callback, "plans_ahead")


def _promises(callback: Callback, name: str) -> bool:
    if not overrides(callback, "edit", "edit_cross"):
        return True
    if name in vars(callback):
        return bool(vars(callback)[name])
    for base in type(callback).__mro__:
        if name in vars(base):
            return bool(vars(base)[name])
        if "edit" in vars(base) or "edit_cross" in vars(base):
            return False
    return False


def prompt_needs(callback: Callback) -> str:
    """What a callback declares as `prompt_needs`; else "whole" where it reads or measures, or ""."""
    if callback.prompt_needs is not None:
        return callback.prompt_needs
    measures = overrides(callback, "on_stats", "on_attention", "leaving", "edit_keys")
    return "whole" if measures or callback.needs_hidden_states else ""
