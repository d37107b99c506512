"""`Context`: what an intervention may know about the generation it takes part in."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from regaze.errors import InputError
from regaze.kernels import AttentionEdit, Stats
from regaze.toolkit.tokens import TokenMap


@runtime_checkable
class Participant(Protocol):
    """What `gaze.using` and `gaze.recording` put into a model; `Intervention` is the usual one."""

    uses_hidden_states: ClassVar[bool]

    def prepare(self, context: Context) -> None: ...

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None: ...


class Recorder(Participant, Protocol):
    """A participant that also wants the statistics its edits asked for, and the ids fed at each step."""

    def begin_step(self, context: Context, input_ids: Tensor | None) -> None: ...

    def deliver(self, layer: int, stats: Stats) -> None: ...


class Context:
    """One prefill and the decode steps that follow it.

    Attributes:
        step: 0 at prefill, then 1, 2, ... for each further forward.
        batch, prompt_length: B and L of the prefill.
        config: the language model's configuration. num_layers, num_heads: its layers and query heads.
        device: where the tensors of the current attention call live (layers may sit on different devices).
        input_ids: [B, L] of the prefill, or None when the model was given embeddings.
        participants: everything that takes part in this generation, in order.
    """

    def __init__(
        self,
        config: Any,
        input_ids: Tensor | None,
        shape: tuple[int, int],
        tokens: TokenMap | Exception,
        participants: tuple[Participant, ...],
    ):
        self.config, self.input_ids, self.participants = config, input_ids, participants
        # Read once: a configuration's attributes are slow, and every layer of every step asks for these.
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.batch, self.prompt_length = shape
        self.step = 0
        self.device = torch.device("cpu")
        self._tokens = tokens
        self._hidden: tuple[int, Tensor] | None = None
        self._states: dict[int, dict[Any, Any]] = {}

    @property
    def tokens(self) -> TokenMap:
        """Roles of the prompt. Raises the reason why they are not known, if they are not."""
        if isinstance(self._tokens, Exception):
            raise self._tokens
        return self._tokens

    def state(self, owner: Participant) -> dict[Any, Any]:
        """Scratch space of one participant for this generation. Participants themselves keep no state."""
        return self._states.setdefault(id(owner), {})

    def hidden_states(self, layer: int) -> Tensor:
        """[B, L, D], the residual stream entering `layer`; only at prefill, only while that layer runs.

        Raises:
            InputError: asked at another time, or no participant set `uses_hidden_states`.
        """
        if self._hidden is None or self._hidden[0] != layer:
            raise InputError(f"the input of layer {layer} is available only at prefill while that layer runs")
        return self._hidden[1].to(self.device)  # accelerate moves a layer's input after our hook has seen it
