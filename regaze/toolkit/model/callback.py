"""`Callback`: what takes part in a generation: edits, second contexts, combined logits, measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from regaze.kernels import AttentionEdit, Stats
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch


class Callback:
    """What `gaze.using` and `gaze.recording` put into a model; every method here does nothing.

    It keeps no state of its own: what it learns from a prompt goes into `context.state(self)`.

    Class attributes:
        needs_hidden_states: whether `edit` reads `context.hidden_states(layer)` at prefill.
        needs_pixels: whether it reads pixels from `context.inputs`; those who make branches can in any case.
        needs_attention: whether `on_attention` is shown every call of every layer's attention.
        counts_steps: whether it counts the tokens of an answer, so that none may be taken back.
        edits_mlp: whether `edit_mlp` changes what the MLP of a layer adds to the residual stream.
    """

    needs_hidden_states: ClassVar[bool] = False
    needs_pixels: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False
    counts_steps: ClassVar[bool] = False
    edits_mlp: ClassVar[bool] = False

    def branches(self, context: Context) -> Mapping[str, Branch]:
        """Second contexts by name; called first. A name stands for its content: equal names are one branch.

        Here the context has the user's rows alone; from `prepare` on it has the rows of all branches.
        """
        return {}

    def prepare(self, context: Context) -> None:
        """Called once per prompt, before the prefill."""

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        """What to do to `layer` at `step` (0 is the prefill); None leaves the layer to plain attention.

        Called for every layer of every forward: return the same object again where nothing changed, and leave
        the device alone. Rows of all branches are edited, each by its own roles.
        """
        return None

    def edit_cross(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        """As `edit`, for the cross-attention of `layer`: columns are those of `context.cross_tokens`."""
        return None

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        """The statistics that the callback's edit of this layer asked for, right after the layer ran."""

    def on_cross_stats(self, layer: int, stats: Stats, context: Context) -> None:
        """As `attention_stats`, for what `edit_cross` asked for."""

    def on_attention(self, layer: int, call: AttentionCall, context: Context) -> None:
        """An attention call of this layer, right after it ran; only called with `needs_attention`."""

    def edit_mlp(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        """What the MLP of `layer` puts out, [B, Lq, D], changed; only called with `edits_mlp`."""
        return hidden

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        """How the logits of the branches combine (`context.logits`); called at the end of each forward."""
        return None


class Recorder(Callback):
    """A callback that also wants the ids fed at each step, and sees the user's rows alone."""

    def begin_step(self, context: Context, input_ids: Tensor | None) -> None: ...
