"""One forward whose layers are measured by probes, and the choice of its rows and keys.

Analyses that need more than a `Record` holds run the model once through `run_forward`. A probe is called with
each layer while the model runs; nothing of a layer is kept unless the probe keeps it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.kernels import AttentionEdit, Placeable
from regaze.toolkit.analysis.answers import Inputs
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import column_index
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.record.host_copies import to_host
from regaze.toolkit.wrap import Gaze

#: Query rows: "last" predicts the first answer token, "answer" every answer token (one row per token), "text"
#: is all text after the image; or positions (of a vision model's class token: [0]).
RowChoice = Literal["last", "answer", "text", "all"] | Sequence[int]
#: Keys: the image's tokens, all tokens, or positions.
KeyChoice = Literal["image", "all"] | Sequence[int]


@dataclass(frozen=True, eq=False)
class EachDevice(Placeable):
    """A tensor that layers on any device read, as `.to(device).tensor`: it is copied once per device."""

    tensor: Tensor


class _Probe(Callback):
    """Measures the user's rows in some layers of one forward.

    Args:
        layers: numbers; None: all.
    """

    #: 1 if the output of the last layer can be chosen, too, as one more layer.
    extra_layers: ClassVar[int] = 0

    def __init__(self, layers: Sequence[int] | None = None):
        self.layers = layers

    def prepare(self, context: Context) -> None:
        self.chosen = self._checked(self.existing(context))
        self.batch = context.user_batch
        #: Columns before the user's prompt, which a longer branch needs.
        self.before = context.prompt_length - context.visible.shape[1]

    def existing(self, context: Context) -> Sequence[int]:
        """The layers that can be measured."""
        return range(context.num_layers + self.extra_layers)

    def _checked(self, existing: Sequence[int]) -> tuple[int, ...]:
        """The chosen layers, in order, checked to be among those that exist."""
        chosen = existing if self.layers is None else self.layers
        outside = [layer for layer in chosen if layer not in existing]
        if outside or not len(chosen):
            known = f"0..{existing[-1]}" if isinstance(existing, range) else f"with attention: {existing}"
            raise BadParameterError(f"layers {outside} do not exist; there are {known}")
        return tuple(sorted(set(chosen)))


class AttentionProbe(_Probe):
    """Measures the attention of layers."""

    def existing(self, context: Context) -> Sequence[int]:
        every = range(context.num_layers)
        return every if context.self_layers >= {*every} else sorted(context.self_layers)

    def on_attention(self, layer: int, call: AttentionCall, context: Context) -> None:
        if context.step == 0 and layer in self.chosen:
            self.measure(layer, call)

    def measure(self, layer: int, call: AttentionCall) -> None:
        """Called with each chosen layer's attention call; rows of branches follow the first `batch` rows."""
        raise NotImplementedError

    def blocks(self, call: AttentionCall) -> Iterator[tuple[slice, Tensor]]:
        """The user's rows in blocks, from the last block to the first, with their weights [B, Hq, R, K]."""
        for rows in reversed(call.blocks()):
            first, stop = max(rows.start - self.before, 0), rows.stop - self.before
            if first < stop:
                weights = call.weights(slice(first + self.before, rows.stop))
                yield slice(first, stop), weights[: self.batch, ..., self.before :]


class HiddenStateProbe(_Probe):
    """Measures the hidden states: the input of each layer, and as one more layer the output of the last."""

    needs_hidden_states: ClassVar[bool] = True
    extra_layers: ClassVar[int] = 1

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._depth, self._context, self._measured = context.num_layers, context, set[int]()
        # Layers without attention ask for no edit; what enters them is read after the forward.
        self._later = tuple(layer for layer in self.chosen if layer not in context.self_layers)
        context.capture_hidden((self._depth, *self._later))

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        if step == 0 and layer in self.chosen and layer not in self._measured:
            self._measured.add(layer)
            self.measure(layer, context.hidden_states(layer)[: self.batch, self.before :])
        return None

    def finish(self) -> None:
        """Measure what is left: the last layer's output and layers without attention, after the forward."""
        for layer in self._later:
            self.measure(layer, self._captured(layer))

    @property
    def last_output(self) -> Tensor:
        """[B, L, D] output of the last layer."""
        return self._captured(self._depth)

    def _captured(self, layer: int) -> Tensor:
        return self._context.captured_hidden(layer)[: self.batch, self.before :]

    def measure(self, layer: int, hidden: Tensor) -> None:
        """Called with each chosen layer's hidden states [B, L, D]."""
        raise NotImplementedError


def stacked(per_layer: Mapping[int, Sequence[Tensor]], layers: Sequence[int]) -> list[Tensor]:
    """The tensors that a probe kept of each layer, stacked over `layers` on the CPU, [S, ...] each."""
    kept = [per_layer[layer] for layer in layers]
    fetched = iter(to_host([tensor for tensors in kept for tensor in tensors]))
    by_layer = [[next(fetched) for _ in tensors] for tensors in kept]
    return [torch.stack(tensors) for tensors in zip(*by_layer, strict=True)]


def run_forward(gaze: Gaze, inputs: Mapping[str, Any], *callbacks: Callback, logits: int = 1) -> Any:
    """Run one forward of `inputs` without a cache, with `callbacks` active; returns the model's output.

    Args:
        logits: number of last positions for which the model computes logits, if it has that option; 0: all.
    """
    known = inspect.signature(gaze.model.forward).parameters
    given = {name: value for name, value in inputs.items() if value is not None and name != "labels"}
    mask = given.get("attention_mask")
    counts = compat.counts_positions(gaze.model, given)
    if "position_ids" in known and mask is not None and not counts:
        given.setdefault("position_ids", (mask.cumsum(1) - 1).clamp_min(0))
    if "use_cache" in known:
        given["use_cache"] = False
    if "logits_to_keep" in known:
        given["logits_to_keep"] = logits
    tokens = inputs.tokens if isinstance(inputs, Inputs) else None
    with gaze.using(*callbacks, tokens=tokens):
        output = gaze.model(**given, return_dict=True)
    for callback in callbacks:
        if isinstance(callback, HiddenStateProbe):
            callback.finish()
    return output


def row_index(tokens: TokenMap, rows: RowChoice) -> Tensor:
    """Positions of the chosen rows, [B, R] int64, -1 where a sample has fewer.

    Raises:
        BadParameterError: an unknown choice, or positions that the prompt does not have.
    """
    if not isinstance(rows, str):
        return _positions("rows", rows, tokens)
    choices = {
        "last": tokens.answering() & ~tokens.mask(Role.OUTPUT),
        "answer": tokens.answering(),
        "text": tokens.after_image(),
        "all": ~tokens.mask(Role.PAD),
    }
    if rows not in choices:
        raise BadParameterError(f"rows must be one of {', '.join(choices)}, or positions; got {rows!r}")
    return column_index(choices[rows])


def key_index(tokens: TokenMap, columns: KeyChoice) -> Tensor:
    """Positions of the chosen keys, [B, n] int64, -1 where a sample has fewer; errors as for `row_index`."""
    if not isinstance(columns, str):
        return _positions("columns", columns, tokens)
    if columns == "all":
        return torch.arange(tokens.length).expand(tokens.batch, -1)
    if columns != "image":
        raise BadParameterError(f'columns must be "image", "all", or positions; got {columns!r}')
    if not bool(tokens.mask(Role.IMAGE).any()):
        raise InputError('columns="image" was asked for, but the prompt has no image; use columns="all"')
    return column_index(tokens.mask(Role.IMAGE))


def _positions(what: str, values: Sequence[int], tokens: TokenMap) -> Tensor:
    try:
        index = torch.tensor([int(position) for position in values], dtype=torch.int64)
    except (TypeError, ValueError):
        raise BadParameterError(f"{what} must be positions such as [3, -1], got {values!r}") from None
    length = tokens.length
    if not len(index) or bool(((index < -length) | (index >= length)).any()):
        raise BadParameterError(
            f"{what} must be positions in 0..{length - 1} (or from the end), one at the least; got {values!r}"
        )
    return (index % length).expand(tokens.batch, -1)
