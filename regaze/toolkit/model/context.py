"""`Context`: what a callback can read of the generation it takes part in, and where it keeps its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regaze.errors import InputError
from regaze.kernels import KeptTokens, LeavingTokens, Numbering, Stats, StatsRequest
from regaze.toolkit.model import compat
from regaze.toolkit.model.hidden_logits import LogitReader
from regaze.toolkit.model.stack import MAIN, Stack
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.prompts.token_map import Role, TokenMap


class LookedAhead(Exception):
    """Ends a layer that runs for its statistics only, see `Context.look_ahead`."""

    def __init__(self, stats: Stats):
        super().__init__()
        self.stats = stats


class Context:
    """One prompt: its prefill and the decode steps that follow.

    Attributes:
        step: 0 at prefill, then 1, 2, ... for each further forward.
        cache_length: number of tokens in the cache before this forward. fed: of tokens that it adds.
        turn_begins: this forward is the first of a call of `generate`: of a prompt, or of a further turn over
            the cache of one.
        replaying: the last row of the prompt runs once more, see `replay_last_row`; `step` is 1 then.
        user_batch: B, the user's rows. batch: rows of the forward, B times the number of contexts.
        prompt_length: L of the prefill; the tokens of an image for a vision model used alone.
        inputs: the user's arguments of the prefill. visible: [B, L] bool on the CPU, False for padding.
        model: the wrapped model. config: its language model's configuration. num_layers, num_heads: its
            decoder layers and query heads.
        input_ids: [batch, L] of the prefill; None where embeddings were given.
        callbacks: all that take part, in the order in which they act.
        layer_editors: the one that edits what a part of a layer gives, by the method that does it.
        device: that of the layer that runs. mlp_input: in `edit_mlp`, what the MLP was given, [batch,
            Lq, D]; None where it is given by keyword.
        self_layers: layers with self-attention. cross_layers: those with cross-attention; some have both.
        encoder_tokens: what the encoder of an encoder-decoder reads, where that is ids; or the error that
            says why it is not known.
        cross_keys: number of keys of the cross-attention layer that runs or ran last.
        captured_layers: layers whose input is kept in every forward, see `capture_hidden`. capturing: the
            names of the callbacks that want it.
        kept_tokens: by layer, the tokens of the prompt that it has; None: all, in every layer.
        replay_requested: see `replay_last_row`.
        look_ahead: `look_ahead(request)` gives statistics of the layer that is about to run; in `leaving`. It
            costs the projections of its queries and keys. asked_ahead: the request, while it runs for that.
        extra_forward: `extra_forward(inputs, callback)` runs a forward without a cache, in which `callback`
            alone takes part, and returns the model's output. For `branches` and `prepare`; costs a prefill.
    """

    model: PreTrainedModel
    config: Any
    inputs: Mapping[str, Any]
    callbacks: tuple[Any, ...]
    batch: int
    prompt_length: int
    device: torch.device
    step: int
    cache_length: int
    fed: int
    replaying: bool
    self_layers: frozenset[int]
    cross_layers: frozenset[int]

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
        self.user_batch: int = self.batch
        self.visible: Tensor = _visible(inputs.get("attention_mask"), self.batch, self.prompt_length)
        self.step, self.cache_length, self.fed, self.replaying = 0, 0, 0, False
        self.replay_requested: bool = False
        self.turn_begins: bool = False
        self.captured_layers: tuple[int, ...] = ()
        self.capturing: tuple[str, ...] = ()
        self.layer_editors: Mapping[str, Any] | None = None
        self.self_layers, self.cross_layers = frozenset(range(self.num_layers)), frozenset[int]()
        self.cross_keys = 0
        self.encoder_tokens: TokenMap | Exception | None = None
        self.extra_forward: Callable[[Mapping[str, Any], Any], Any] = _no_model
        self.look_ahead: Callable[[StatsRequest], Stats] = _no_layer
        self.asked_ahead: StatsRequest | None = None
        self.kept_tokens: tuple[KeptTokens | None, ...] | None = None
        self._tokens, self._reader = tokens, reader
        self._cross_tokens: TokenMap | None = None
        self._stack: Stack | None = None
        self._rope_deltas: Tensor | None = None  # of all contexts
        self.mlp_input: Tensor | None = None
        self._layer_input: tuple[int, Tensor] | None = None
        self._gone: Tensor | None = None  # [batch, L], what has left the prompt, and padding
        self._left: list[int] = []  # of the others in each sample
        self._captured: dict[int, Tensor] = {}
        self._logits: Tensor | None = None
        self._logit_reader: LogitReader | None = None
        self._states: dict[int, dict[Any, Any]] = {}
        self._row_states: dict[int, dict[str, Tensor]] = {}

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

    def prompt_ids(self) -> Tensor:
        """[B, L] ids of the user's prompts, for methods that read or rewrite them.

        Raises:
            InputError: the forward was given embeddings, or images that were encoded before.
        """
        for name in ("inputs_embeds", "mm_encoder_outputs"):
            if self.inputs.get(name) is not None:
                raise InputError(f"this intervention needs the prompt's ids, not `{name}`: pass input_ids")
        ids: Tensor = self.inputs["input_ids"]
        return ids

    @property
    def pad_token_id(self) -> int:
        """A token for places that the attention mask hides."""
        ids = (getattr(self.config, "pad_token_id", None), getattr(self.config, "eos_token_id", None))
        found = next((i for i in ids if i is not None), 0)
        return found[0] if isinstance(found, (list, tuple)) else found

    @property
    def head_is_tied(self) -> bool:
        """Whether input and output embeddings are one matrix."""
        return compat.head_is_tied(self.model)

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
        if isinstance(self.encoder_tokens, Exception):
            raise self.encoder_tokens
        if self.encoder_tokens is not None and self.encoder_tokens.length == self.cross_keys:
            return self.encoder_tokens
        if self._cross_tokens is None or self._cross_tokens.length != self.cross_keys:
            if self._reader is None:
                raise InputError(
                    "this model is not wrapped, so the keys of its cross-attention are not known"
                )
            family, own = self._reader.family, self._tokens
            tokens = family.cross_tokens(self.inputs, self.batch, self.cross_keys)
            if isinstance(own, TokenMap) and any(view.picture for views in own.views for view in views):
                tokens = self._reader.sight.placed_like(tokens, own)
            self._cross_tokens = tokens
        return self._cross_tokens

    # State of callbacks -------------------------------------------------------------------------------

    def state(self, owner: object) -> dict[Any, Any]:
        """What one callback stores for this prompt. Callbacks themselves keep no state."""
        return self._states.setdefault(id(owner), {})

    def row_state(self, owner: object) -> dict[str, Tensor]:
        """As `state`, for tensors [batch, ...]: beam search re-orders their rows with the cache's."""
        return self._row_states.setdefault(id(owner), {})

    def forward_rows(self, rows: Tensor) -> Tensor:
        """The rows of the forward [batch], those of all branches, that go with the user's rows `rows` [B]."""
        copies = self.batch // self.user_batch
        first = torch.arange(copies, device=rows.device) * self.user_batch
        return (first[:, None] + rows).flatten()

    def reorder(self, rows: Tensor) -> None:
        """Beam search goes on with these rows [batch] of the forward."""
        for state in self._row_states.values():
            for name, tensor in state.items():
                state[name] = tensor.index_select(0, rows.to(tensor.device))
        if self.kept_tokens is not None:
            new = {kept: kept.reordered(rows) for kept in self.kept_tokens if kept is not None}
            self.kept_tokens = tuple(None if kept is None else new[kept] for kept in self.kept_tokens)

    def on_rollback(self) -> None:
        """`generate` has dropped tokens from the cache that an assistant had proposed.

        Raises:
            InputError: a callback counts the tokens of the answer.
        """
        counting = sorted({type(p).__name__ for p in self.callbacks if p.counts_steps})
        if counting:
            raise InputError(
                f"{' and '.join(counting)} would count tokens that this generation tries and takes back; "
                "generate without an assistant model, early exit or prompt lookup"
            )

    # Tokens that leave the prompt -----------------------------------------------------------------------

    def remove(self, layer: int, leaving: LeavingTokens) -> None:
        """From `layer` on, the prompt's hidden states and cache are without these tokens."""
        before = None if self.kept_tokens is None else self.kept_tokens[layer]
        pads = self.tokens.mask(Role.PAD)
        if self._gone is None:
            self._gone, self._left = pads.to(leaving.tokens.device), (~pads).sum(1).tolist()
        self._gone = self._gone.to(leaving.tokens.device) | leaving.tokens
        self._left = [have - count for have, count in zip(self._left, leaving.counts, strict=True)]
        movable = (leaving.among | pads).any(0).nonzero()
        settled = max(int(movable[-1]) + 1 if len(movable) else 0, 0 if before is None else before.settled)
        if before is not None:
            before = before.to(leaving.tokens.device)
        kept = KeptTokens.without(self._gone, tuple(self._left), settled, before)
        earlier = self.kept_tokens or (None,) * self.num_layers
        self.kept_tokens = earlier[:layer] + (kept,) * (self.num_layers - layer)

    def kept(self, layer: int, device: torch.device) -> KeptTokens | None:
        """The tokens of the prompt that `layer` has; None: all."""
        kept = None if self.kept_tokens is None else self.kept_tokens[layer]
        return None if kept is None else kept.to(device)

    def numbering(self, layer: int, device: torch.device) -> Numbering | None:
        """How the forward that runs numbers its tokens in `layer`; None: as the prompt does."""
        kept = self.kept(layer, device)
        if kept is None:
            return None
        return kept.prompt if self.step == 0 else kept.answer

    def whole(self, layer: int, hidden: Tensor) -> Tensor:
        """[B, L, D] of hidden states in `layer`, of all the prompt's tokens: 0 for those that have left."""
        kept = self.kept(layer, hidden.device) if self.step == 0 else None
        return hidden if kept is None else kept.expand(hidden)

    def without_leavers(self, layer: int, hidden: Tensor) -> Tensor:
        """The inverse of `whole`."""
        kept = self.kept(layer, hidden.device) if self.step == 0 else None
        return hidden if kept is None else kept.select(hidden)

    # The forward --------------------------------------------------------------------------------------

    def hidden_states(self, layer: int) -> Tensor:
        """[batch, L, D], the residual stream entering `layer`; only at prefill, only while that layer runs.

        Raises:
            InputError: called at another time, or no callback sets `needs_hidden_states`.
        """
        if self._layer_input is None or self._layer_input[0] != layer:
            raise InputError(f"the input of layer {layer} is available only at prefill while that layer runs")
        hidden = self.whole(*self._layer_input)
        return hidden.to(self.device)  # accelerate moves it after our hook has run

    def row_values(self, callback: Any, layer: int) -> Tensor:
        """[batch, L] fp32, `callback.row_value` of each row of the prompt; when `hidden_states` are there.

        In an engine that runs a prompt in pieces, rows that have not run have 0.

        Raises:
            InputError: as `hidden_states`.
        """
        values: Tensor = callback.row_value(layer, self.hidden_states(layer), self)  # for whom it is no None
        return values

    def set_layer_input(self, layer: int, hidden: Tensor) -> None:
        """`hidden` [batch, L, D] is about to enter `layer`."""
        self._layer_input = (layer, hidden)

    def clear_layer_input(self) -> None:
        """The forward has ended."""
        self._layer_input = None

    def capture_hidden(self, layers: tuple[int, ...]) -> None:
        """Keep the residual stream entering these layers in every forward, for `captured_hidden`.

        Layer `num_layers` stands for what leaves the last one. Call this in `prepare`.
        """
        self.captured_layers = tuple(sorted({*self.captured_layers, *layers}))

    def captured_hidden(self, layer: int) -> Tensor:
        """[batch, Lq, D], the residual stream that entered `layer`, in the forward that runs or ran last."""
        if layer not in self._captured:
            raise InputError(
                f"the input of layer {layer} was not kept: call context.capture_hidden in prepare"
            )
        return self._captured[layer]

    def store_captured(self, layer: int, hidden: Tensor) -> None:
        """`hidden` [batch, Lq, D] enters `layer`, one of `captured_layers`."""
        if layer < self.num_layers:  # where they leave the last layer, all are there
            hidden = self.whole(layer, hidden)
        if self.replaying and layer in self._captured:  # not in an adopted prompt
            hidden = torch.cat([self._captured[layer][:, :-1], hidden], 1)
        self._captured[layer] = hidden

    def layer_logits(self, layer: int, normalise: bool = False) -> Tensor:
        """[B, T, V] logits of the user's rows, read from the residual stream entering `layer`.

        Args:
            normalise: apply the model's final norm first, as the model does to its last layer.
        """
        return self.read_logits(self.user_hidden(layer), normalise)

    def user_hidden(self, layer: int) -> Tensor:
        """[B, T, D], the residual stream entering `layer`, at the rows and positions of `logits`."""
        return self.captured_hidden(layer)[: self.user_batch, -self.logits().shape[1] :]

    def read_logits(self, hidden: Tensor, normalise: bool = True) -> Tensor:
        """Logits [..., V] read from hidden states [..., D], see `LogitReader.read`.

        Also while a layer runs; in `combine_logits` they lie where the model's own do.
        """
        if self._logit_reader is None:
            self._logit_reader = LogitReader(self.model)
        logits = self._logit_reader.read(hidden, normalise)
        return logits if self._logits is None else logits.to(self._logits.device)

    def replay_last_row(self) -> None:
        """Run the last row of the prompt again when the prefill ends, as a decode step.

        For an edit of that row alone which depends on statistics of later layers: the first token then comes
        from the edited row, and nothing else of the prompt is computed twice. Call it before the prefill
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
    def added(self) -> int:
        """Number of tokens that the forward adds to the cache, padding for longer branches included."""
        if self.replaying:
            return 1
        return self.fed if self.step else self.prompt_length

    @property
    def has_branches(self) -> bool:
        return self._stack is not None

    @property
    def hidden_columns(self) -> int:
        """Columns of padding before the user's prompts, which a longer branch needs."""
        return self.prompt_length - self.visible.shape[1] if self.has_branches else 0

    def rows_in(self, layer: int) -> int:
        """Rows of the forward that run in a layer: not those of branches that begin later, at the prefill."""
        return self.batch if self._stack is None or self.step else self._stack.rows_in(layer)

    def all_rows(self, part: Tensor, axis: int = 0) -> Tensor:
        """[batch, ...] of what has the rows that ran in some layer: the others are copies of the user's."""
        return part if self._stack is None else self._stack.completed(part, axis)

    @property
    def embedded_rows(self) -> int:
        """Rows that the prompt's forward is given: of branches about the same inputs it needs none."""
        return self.rows_in(-1) if compat.takes_rows(self.model) else self.batch

    def take_rope_deltas(self) -> None:
        """The prefill of all contexts has ended: leave in the model what belongs to the user's rows."""
        if compat.has_mrope(self.model):
            deltas = compat.take_rope_deltas(self.model, self.user_batch)
            self._rope_deltas = None if deltas is None else self.all_rows(deltas)

    def use_stack(self, stack: Stack) -> None:
        """From now on the forward runs the rows of all contexts."""
        self._stack = stack
        self.batch, self.prompt_length = stack.batch * len(stack.names), stack.length
        self.input_ids = stack.input_ids
        if not isinstance(self._tokens, Exception):
            self._tokens = stack.tokens(self._tokens)

    def stacked_inputs(
        self, inputs: Mapping[str, Any], cache_length: int, takes_positions: bool
    ) -> dict[str, Any]:
        """The arguments of a forward for all contexts, from the user's.

        Args:
            takes_positions: whether the forward has the argument `position_ids`.
        """
        assert self._stack is not None
        mrope = compat.has_mrope(self.model)
        if not cache_length:  # the model computes positions along several axes itself
            return self._stack.prefill(inputs, takes_positions and not mrope, self.embedded_rows)
        stacked = self._stack.decode(inputs, cache_length, takes_positions)
        if mrope:
            last = cache_length + stacked["input_ids"].shape[1]
            text = (stacked["attention_mask"].cumsum(1) - 1)[:, cache_length:last].contiguous()
            stacked["position_ids"] = compat.mrope_positions(text, self._rope_deltas)
        return stacked

    def embedding_gain(self) -> Tensor | None:
        """[batch, L] factor of each input embedding at prefill; None: all are 1."""
        return None if self._stack is None else self._stack.embedding_gain()

    def feature_gain(self) -> Tensor | None:
        """[images, patches] factor of the features of the images of all contexts; None: all are 1."""
        return None if self._stack is None else self._stack.feature_gain()

    @contextmanager
    def reading_logits(self, output: Any) -> Iterator[None]:
        """`logits` are available in the block."""
        self._logits = output.logits
        try:
            yield
        finally:
            self._logits = None


def _no_model(inputs: Mapping[str, Any], callback: object) -> Any:
    raise InputError("this context belongs to no model")


def _no_layer(request: StatsRequest) -> Stats:
    raise InputError("statistics of a layer that is about to run exist only in `leaving`")


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
