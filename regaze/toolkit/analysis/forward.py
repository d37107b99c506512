"""One forward of a prompt, with or without an answer behind it, for what its layers show.

Analyses that need more than a `Record` holds run the model once through here and take from each layer what
they want of it while it runs; nothing of a layer outlives it unless an analysis keeps it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.errors import BadParameterError, InputError, ShapeError
from regaze.kernels import AttentionEdit
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import column_index
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.wrap import Gaze

#: Rows to look at: "last" predicts the first answer token, "answer" every answer token (one row per token),
#: "text" is all text after the image; or positions (of a vision model's class token: [0]).
RowChoice = Literal["last", "answer", "text", "all"] | Sequence[int]
#: Keys to look at: the image's tokens, all tokens, or positions.
KeyChoice = Literal["image", "all"] | Sequence[int]


class Inputs(dict[str, Any]):
    """The arguments of a forward with the roles of its tokens, for prompts that regaze cannot read itself."""

    def __init__(self, inputs: Mapping[str, Any], tokens: TokenMap):
        super().__init__(inputs)
        self.tokens = tokens


def with_answers(gaze: Gaze, inputs: Mapping[str, Any], answers: Tensor | Sequence[str]) -> Inputs:
    """Prompts with answers behind them, to be run in one forward (teacher forcing).

    Args:
        inputs: of B prompts, from `gaze.inputs`.
        answers: [B, T] generated ids, of which everything from the first end-of-sequence or padding token on
            is left away, or B texts.

    Returns:
        The arguments of a forward of [B, L + T] tokens: shorter answers are padded on the right.

    Raises:
        InputError: as many answers as prompts are needed, and one token of answer at the least.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    rows = _answer_ids(gaze, answers)
    if len(rows) != len(ids):
        raise InputError(f"{len(rows)} answers for {len(ids)} prompts: give one for each")
    longest = max(map(len, rows))
    if not longest:
        raise InputError("the answers are empty: there is no token to look at")
    pad = _pad_id(gaze)
    answer = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=ids.device)
    shown = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=ids.device)
    prompt = token_map_of(gaze, inputs)
    roles = torch.where(shown.bool().cpu(), int(Role.OUTPUT), int(Role.PAD)).to(torch.uint8)
    longer_map = replace(
        prompt,
        roles=torch.cat([prompt.roles, roles], 1),
        view=F.pad(prompt.view, (0, longest), value=-1),
        cell=F.pad(prompt.cell, (0, longest), value=-1),
    )
    longer = {
        "input_ids": torch.cat([ids, answer], 1),
        "attention_mask": torch.cat([mask, shown.to(mask)], 1),
    }
    for name in ("token_type_ids", "mm_token_type_ids"):
        if inputs.get(name) is not None:
            longer[name] = F.pad(inputs[name], (0, longest))
    return Inputs({**inputs, **longer}, longer_map)


def token_map_of(gaze: Gaze, inputs: Mapping[str, Any]) -> TokenMap:
    """Roles of a forward's tokens."""
    return inputs.tokens if isinstance(inputs, Inputs) else gaze.tokens(inputs)


def _pad_id(gaze: Gaze) -> int:
    found = getattr(gaze.reader.tokenizer, "pad_token_id", None)
    return 0 if found is None else int(found)


def _answer_ids(gaze: Gaze, answers: Tensor | Sequence[str]) -> list[list[int]]:
    tokenizer = gaze.reader.tokenizer
    if not isinstance(answers, Tensor):
        if isinstance(answers, str) or not all(isinstance(answer, str) for answer in answers):
            raise InputError(f"answers must be [B, T] ids or a list of B texts, got {answers!r}")
        if tokenizer is None:
            raise InputError("give the answers as [B, T] ids: regaze.wrap was given no tokenizer")
        return [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    if answers.dim() != 2:
        raise ShapeError(f"answers must be [B, T] ids, got {list(answers.shape)}")
    ends = gaze.model.generation_config.eos_token_id if gaze.model.generation_config is not None else None
    stop = {*torch.tensor([] if ends is None else ends).flatten().tolist()}
    stop.add(getattr(tokenizer, "pad_token_id", None))
    rows = []
    for row in answers.tolist():
        length = next((i for i, token in enumerate(row) if token in stop), len(row))
        rows.append(row[:length])
    return rows


class _Probe(Callback):
    """Looks at some layers in one forward of the prompt, at the user's rows.

    Args:
        layers: which; None: all.
    """

    #: One more number than there are layers: what leaves the last one.
    streams: ClassVar[bool] = False

    def __init__(self, layers: Sequence[int] | None = None):
        self.layers = layers

    def prepare(self, context: Context) -> None:
        self.chosen = self._checked(context.num_layers + self.streams)
        self.batch = context.user_batch
        #: Columns that a longer branch put before the user's prompt.
        self.before = context.prompt_length - context.visible.shape[1]

    def _checked(self, count: int) -> tuple[int, ...]:
        """The chosen numbers below `count`, in order."""
        chosen = range(count) if self.layers is None else self.layers
        outside = [layer for layer in chosen if not 0 <= layer < count]
        if outside or not len(chosen):
            raise BadParameterError(f"layers {outside} do not exist; there are 0..{count - 1}")
        return tuple(sorted(set(chosen)))


class AttentionProbe(_Probe):
    """Looks at the attention of layers."""

    def on_attention(self, layer: int, call: AttentionCall, context: Context) -> None:
        if context.step == 0 and layer in self.chosen:
            self.measure(layer, call)

    def measure(self, layer: int, call: AttentionCall) -> None:
        """What to do with a layer's call; rows of branches follow the first `batch` ones."""
        raise NotImplementedError

    def blocks(self, call: AttentionCall) -> Iterator[tuple[slice, Tensor]]:
        """The user's rows in blocks, from the last ones up, with their weights [B, Hq, R, K]."""
        for rows in reversed(call.blocks()):
            first, stop = max(rows.start - self.before, 0), rows.stop - self.before
            if first < stop:
                weights = call.weights(slice(first + self.before, rows.stop))
                yield slice(first, stop), weights[: self.batch, ..., self.before :]


class HiddenStateProbe(_Probe):
    """Looks at the residual stream: what enters each layer, and as one layer more what leaves the last."""

    needs_hidden_states: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._depth, self._context, self._seen = context.num_layers, context, set[int]()
        context.capture_hidden((self._depth,))

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        if step == 0 and layer in self.chosen and layer not in self._seen:
            self._seen.add(layer)
            self.measure(layer, context.hidden_states(layer)[: self.batch, self.before :])
        return None

    def finish(self) -> None:
        """Look at what left the last layer; called when the forward is over."""
        if self._depth in self.chosen:
            self.measure(self._depth, self.last_stream)

    @property
    def last_stream(self) -> Tensor:
        """[B, L, D], what left the last layer."""
        return self._context.captured_hidden(self._depth)[: self.batch, self.before :]

    def measure(self, layer: int, hidden: Tensor) -> None:
        """What to do with a layer's stream [B, L, D]."""
        raise NotImplementedError


def run_forward(gaze: Gaze, inputs: Mapping[str, Any], *callbacks: Callback, logits: int = 1) -> Any:
    """A forward of `inputs` without a cache, seen by `callbacks`; gives the model's output.

    Args:
        logits: for how many last positions the model computes logits, where it can be told; 0: all.
    """
    known = inspect.signature(gaze.model.forward).parameters
    given = {name: value for name, value in inputs.items() if value is not None}
    mask = given.get("attention_mask")
    if "position_ids" in known and mask is not None and not compat.has_mrope(gaze.model):
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
    """Positions of the rows asked for, [B, R] int64, -1 where a sample has fewer.

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
    """Positions of the keys asked for, [B, n] int64, -1 where a sample has fewer; errors as `row_index`."""
    if not isinstance(columns, str):
        return _positions("columns", columns, tokens)
    if columns == "all":
        return torch.arange(tokens.length).expand(tokens.batch, -1)
    if columns != "image":
        raise BadParameterError(f'columns must be "image", "all", or positions; got {columns!r}')
    if not bool(tokens.mask(Role.IMAGE).any()):
        raise InputError('columns="image" was asked for, but the prompt has no image; use columns="all"')
    return column_index(tokens.mask(Role.IMAGE))


def _positions(what: str, wanted: Sequence[int], tokens: TokenMap) -> Tensor:
    try:
        index = torch.tensor([int(position) for position in wanted], dtype=torch.int64)
    except (TypeError, ValueError):
        raise BadParameterError(f"{what} must be positions such as [3, -1], got {wanted!r}") from None
    length = tokens.length
    if not len(index) or bool(((index < -length) | (index >= length)).any()):
        raise BadParameterError(
            f"{what} must be positions in 0..{length - 1} (or from the end), one at the least; got {wanted!r}"
        )
    return (index % length).expand(tokens.batch, -1)
