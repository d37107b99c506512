"""`Context`: what callbacks may know of the generation they take part in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regaze.errors import InputError
from regaze.toolkit.model import compat
from regaze.toolkit.model.hidden_logits import LogitReader
from regaze.toolkit.model.stack import MAIN, Stack
from regaze.toolkit.prompts.token_map import TokenMap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from regaze.toolkit.prompts.prompt_reader import PromptReader


class Context:
    """One prefill and the decode steps that follow it.

    Attributes:
        step: 0 at prefill, then 1, 2, ... for each further forward.
        cache_length: how many tokens the cache held before this forward.
        replaying: the last row of the prompt runs once more, see `replay_last_row`; `step` is 1 then.
        user_batch: B, the user's rows. batch: rows of the forward, B times the number of contexts.
        prompt_length: L of the prefill; the tokens of an image for a vision model used alone.
        inputs: the user's arguments of the prefill. visible: [B, L] bool on the CPU, False for padding.
        model: the wrapped model. config: its language model's configuration, with num_layers and num_heads
            (layers and query heads) read from it.
        input_ids: [batch, L] of the prefill; None where embeddings were given.
        callbacks: all that take part, in the order in which they were activated.
        device: that of the layer which runs.
        self_layers: layers with self-attention. cross_layers: those with cross-attention; some have both.
        encoder: what the encoder of an encoder-decoder reads, where that is ids; or why it is not known.
        cross_keys: number of keys of the cross-attention layer that runs or ran last.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: Any,
        inputs: Mapping[str, Any],
        tokens: TokenMap | Exception,
        callbacks: tuple[Any, ...],
        reader: PromptReader | None = None,
    ):
        self.model, self.config, self.inputs, self.callbacks = model, config, inputs, callbacks
        # Read once: a configuration's attributes are slow, and every layer of every step asks for these.
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.input_ids: Tensor | None = inputs.get("input_ids")
        self.batch, self.prompt_length, self.device = _shape(inputs, tokens)
        self.user_batch = self.batch
        self.visible = _visible(inputs.get("attention_mask"), self.batch, self.prompt_length)
        self.step, self.cache_length, self.replaying = 0, 0, False
        self.replay_requested = False
        self.captured_layers: tuple[int, ...] = ()
        self.mlp_editors: tuple[Any, ...] = ()  # the callbacks that edit the outputs of MLPs
        self._tokens, self._reader = tokens, reader
        self._stack: Stack | None = None
        self.cross_keys = 0
        self.self_layers, self.cross_layers = frozenset(range(self.num_layers)), frozenset[int]()
        self._cross: TokenMap | None = None
        self.encoder: TokenMap | Exception | None = None
        self._hidden: tuple[int, Tensor] | None = None
        self._kept: dict[int, Tensor] = {}
        self._logits: Tensor | None = None
        self._logit_reader: LogitReader | None = None
        self._states: dict[int, dict[Any, Any]] = {}
        self._row_state: dict[int, dict[str, Tensor]] = {}
        #: `extra_forward(inputs, callback)`: a forward of `inputs` without a cache, seen by that callback
        #: alone, in `branches` or `prepare`; costs a prefill.
        self.extra_forward: Callable[[Mapping[str, Any], Any], Any] = _no_model

    # The prompt ---------------------------------------------------------------------------------------

    @property
    def tokens(self) -> TokenMap:
        """Roles of the prompt. Raises the reason why they are not known, if they are not."""
        if isinstance(self._tokens, Exception):
            raise self._tokens
        return self._tokens

    @property
    def reader(self) -> PromptReader:
        """Renders and reads this model's prompts."""
        if self._reader is None or self._reader.processor is None:
            raise InputError("this intervention reads the prompt's text: give regaze.wrap the processor")
        return self._reader

    @property
    def pad_token_id(self) -> int:
        """A token for places that the attention mask hides."""
        ids = (getattr(self.config, "pad_token_id", None), getattr(self.config, "eos_token_id", None))
        found = next((i for i in ids if i is not None), 0)
        return found[0] if isinstance(found, (list, tuple)) else found

    @property
    def has_cross_attention(self) -> bool:
        """Whether there are cross-attention layers."""
        return bool(self.cross_layers)

    @property
    def cross_tokens(self) -> TokenMap:
        """What the keys of the cross-attention layers are: [batch, keys] roles, views and cells.

        Raises:
            UnsupportedModelError: regaze does not know.
        """
        if isinstance(self.encoder, Exception):
            raise self.encoder
        if self.encoder is not None and self.encoder.length == self.cross_keys:
            return self.encoder
        if self._cross is None or self._cross.length != self.cross_keys:
            if self._reader is None:
                raise InputError(
                    "this model is not wrapped, so the keys of its cross-attention are not known"
                )
            self._cross = self._reader.family.cross_tokens(self.inputs, self.batch, self.cross_keys)
        return self._cross

    # What callbacks keep ---------------------------------------------------------------------------

    def state(self, owner: object) -> dict[Any, Any]:
        """Scratch space of one callback for this generation. Callbacks themselves keep no state."""
        return self._states.setdefault(id(owner), {})

    def row_state(self, owner: object) -> dict[str, Tensor]:
        """Like `state`, for tensors [batch, ...] that follow their sequence when beam search re-orders."""
        return self._row_state.setdefault(id(owner), {})

    def reorder(self, rows: Tensor) -> None:
        """Beam search goes on with these rows [batch] of the forward."""
        for kept in self._row_state.values():
            for name, tensor in kept.items():
                kept[name] = tensor.index_select(0, rows.to(tensor.device))

    def take_back(self) -> None:
        """`generate` has dropped tokens from the cache that an assistant had proposed.

        Raises:
            InputError: a callback has counted them.
        """
        counting = sorted({type(p).__name__ for p in self.callbacks if p.counts_steps})
        if counting:
            raise InputError(
                f"{' and '.join(counting)} would count tokens that this generation tries and takes back; "
                "generate without an assistant model, early exit or prompt lookup"
            )

    # The forward --------------------------------------------------------------------------------------

    def hidden_states(self, layer: int) -> Tensor:
        """[batch, L, D], the residual stream entering `layer`; only at prefill, only while that layer runs.

        Raises:
            InputError: asked at another time, or no callback set `needs_hidden_states`.
        """
        if self._hidden is None or self._hidden[0] != layer:
            raise InputError(f"the input of layer {layer} is available only at prefill while that layer runs")
        return self._hidden[1].to(self.device)  # accelerate moves a layer's input after our hook has seen it

    def set_layer_input(self, layer: int, hidden: Tensor) -> None:
        """`hidden` [batch, L, D] is about to enter `layer`."""
        self._hidden = (layer, hidden)

    def clear_layer_input(self) -> None:
        """The forward has ended: what entered its layers is not kept."""
        self._hidden = None

    def capture_hidden(self, layers: tuple[int, ...]) -> None:
        """Keep the residual stream entering these layers in every forward, for `layer_logits`.

        Layer `num_layers` stands for what leaves the last one. Ask for it in `prepare`.
        """
        self.captured_layers = tuple(sorted({*self.captured_layers, *layers}))

    def captured_hidden(self, layer: int) -> Tensor:
        """[batch, Lq, D], the residual stream entering `layer` in the forward that has just ended."""
        if layer not in self._kept:
            raise InputError(
                f"the input of layer {layer} was not kept: call context.capture_hidden in prepare"
            )
        return self._kept[layer]

    def store_captured(self, layer: int, hidden: Tensor) -> None:
        """`hidden` [batch, Lq, D] has entered `layer`, one of `captured_layers`."""
        if self.replaying and layer in self._kept:  # not in one of a prompt that was taken over
            hidden = torch.cat([self._kept[layer][:, :-1], hidden], 1)
        self._kept[layer] = hidden

    def layer_logits(self, layer: int, normalise: bool = False) -> Tensor:
        """[B, T, V] logits of the user's rows, read from the residual stream entering `layer`.

        Args:
            normalise: apply the model's final norm first, as the model does to its last layer.
        """
        return self.read_logits(self.user_hidden(layer), normalise)

    def user_hidden(self, layer: int) -> Tensor:
        """[B, T, D], the residual stream entering `layer`: user's rows, and positions of `logits`."""
        return self.captured_hidden(layer)[: self.user_batch, -self.logits().shape[1] :]

    def read_logits(self, hidden: Tensor, normalise: bool = True) -> Tensor:
        """Logits [..., V] read from hidden states [..., D] by the model's output matrix, scale and cap."""
        if self._logit_reader is None:
            self._logit_reader = LogitReader(self.model)
        return self._logit_reader.read(hidden, normalise).to(self.logits().device)

    def replay_last_row(self) -> None:
        """Run the last row of the prompt again when the prefill ends, as a decode step.

        For an edit of that row alone which depends on statistics of later layers: the first token then comes
        from the edited row, and nothing else of the prompt is computed twice. Ask for it until the prefill
        ends. Prompts must end in the same column.
        """
        self.replay_requested = True

    # Branches -----------------------------------------------------------------------------------------

    def rows(self, branch: str = MAIN) -> slice:
        """The rows of one context in the batch of the forward."""
        return slice(0, self.batch) if self._stack is None else self._stack.rows(branch)

    def logits(self, branch: str = MAIN) -> Tensor:
        """[B, T, V] logits of one context, in `combine_logits`: T is what the user's forward asked for.

        Contexts are aligned at their last token.
        """
        if self._logits is None:
            raise InputError("logits exist only at the end of a forward, in `combine_logits`")
        rows = self._logits[self.rows(branch)]
        # Padding that a longer branch put before the user's prompt is no position of the user's.
        return rows if self.step else rows[:, -self.visible.shape[1] :]

    @property
    def has_branches(self) -> bool:
        return self._stack is not None

    def stack(self, stack: Stack) -> None:
        """From now on the forward runs the rows of all contexts."""
        self._stack = stack
        self.batch, self.prompt_length = stack.batch * len(stack.names), stack.length
        self.input_ids = stack.input_ids
        if not isinstance(self._tokens, Exception):
            self._tokens = stack.tokens(self._tokens)

    def stacked(self, inputs: Mapping[str, Any], seen: int, takes_positions: bool) -> dict[str, Any]:
        """The arguments of a forward for all contexts, from the user's; `seen` tokens are in the cache."""
        assert self._stack is not None
        axes = compat.has_mrope(self.model)
        if not seen:  # positions along several axes are the model's own affair
            return self._stack.prefill(inputs, takes_positions and not axes)
        stacked = self._stack.decode(inputs, seen, takes_positions)
        if axes:
            text = (stacked["attention_mask"].cumsum(1) - 1)[:, -stacked["input_ids"].shape[1] :]
            stacked["position_ids"] = compat.mrope_positions(self.model, text)
        return stacked

    def embedding_gain(self) -> Tensor | None:
        """[batch, L] factor of each input embedding at prefill; None: all are 1."""
        return None if self._stack is None else self._stack.embedding_gain()

    def stacked_rows(self, rows: Tensor) -> Tensor:
        """The rows of the forward that belong to the user's rows `rows` [B]."""
        copies = self.batch // self.user_batch
        first = torch.arange(copies, device=rows.device) * self.user_batch
        return (first[:, None] + rows).flatten()

    @contextmanager
    def reading(self, output: Any) -> Iterator[None]:
        """While `logits` can be asked for."""
        self._logits = output.logits
        try:
            yield
        finally:
            self._logits = None


def _no_model(inputs: Mapping[str, Any], callback: object) -> Any:
    raise InputError("this context belongs to no model")


def _shape(inputs: Mapping[str, Any], tokens: TokenMap | Exception) -> tuple[int, int, torch.device]:
    """Rows and columns of the prompt, and where it lies."""
    prompt = compat.prompt_of(inputs)
    if prompt is not None:
        return prompt.shape[0], prompt.shape[1], prompt.device
    if isinstance(tokens, Exception):
        raise tokens
    return tokens.batch, tokens.length, inputs["pixel_values"].device


def _visible(mask: Any, batch: int, length: int) -> Tensor:
    """[B, L] bool on the CPU: where the prompt has tokens."""
    mask = compat.padding_mask(mask, length)
    if mask is None or mask.shape != (batch, length):
        return torch.ones(batch, length, dtype=torch.bool)
    return mask.bool().cpu()
