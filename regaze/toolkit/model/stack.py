"""The contexts of one generation, stacked along the batch: the user's rows, then those of each branch.

All contexts of a prompt run in one forward: rows 0..B-1 are the user's ("main"), the next B rows belong to
the first branch, and so on, each with its own rows of the key-value cache. Decoding is bound by reading
weights, so a second context costs far less than a second forward. Only the forward sees the stack: the inputs
are stacked when it begins and the logits are split when it ends, so `generate`, which samples, stops and
streams, works on the user's B rows, and every branch is fed the same new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.errors import InputError, UnsupportedModelError
from regaze.toolkit.model import compat
from regaze.toolkit.prompts.token_map import TokenMap

MAIN = "main"


@dataclass(frozen=True, eq=False)
class Branch:
    """A second context for each of the B prompts.

    Attributes:
        inputs: the arguments of the forward that differ from the user's: input_ids and attention_mask
            [B, L'] (padded on the left), or media such as pixel_values; None leaves one out.
        tokens: roles of the branch's prompts; None: those of the user's prompts.
        embedding_gain: [B, L'] factor of each input embedding at prefill (0 blanks a token).
        feature_gain: [N, patches] factor of what the vision tower makes of each of the branch's N images,
            before it is projected.
        first_layer: where a branch without any of these begins to differ from the user's context. The prompt
            runs once for both through the layers before it, in which the branch must be edited as the user's
            rows are; its rows of the cache are copies there.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    tokens: TokenMap | None = None
    embedding_gain: Tensor | None = None
    feature_gain: Tensor | None = None
    first_layer: int = 0

    def __post_init__(self) -> None:
        own = self.inputs or any(
            part is not None for part in (self.tokens, self.embedding_gain, self.feature_gain)
        )
        if self.first_layer and own:
            raise InputError(
                f"a branch that begins in layer {self.first_layer} is the user's context before it, so it "
                "cannot have inputs, tokens or gains of its own"
            )

    @property
    def begins(self) -> int:
        """Its first layer; -1 where its embeddings are others than the user's."""
        return -1 if self.inputs or self.feature_gain is not None else self.first_layer


class Stack:
    """The contexts of one prompt, the user's first, as rows of one batch.

    Attributes:
        names: of the n contexts, in the order in which they begin. batch: B, the rows of each. length: L of
            the longest, padded on the left.
        input_ids: [n B, L]. mask: [n B, L], the attention mask of the prompts.

    Args:
        inputs: the user's arguments of the prefill, among them input_ids [B, L].
        branches: by name.
        visible: [B, L] bool, False for the user's padding.
        pad_token_id: pads shorter contexts.

    Raises:
        InputError, UnsupportedModelError: the prompt has a form that cannot be stacked.
    """

    def __init__(
        self, inputs: Mapping[str, Any], branches: Mapping[str, Branch], visible: Tensor, pad_token_id: int
    ):
        for name in ("inputs_embeds", "mm_encoder_outputs", "labels"):
            if inputs.get(name) is not None:
                raise InputError(f"an intervention with branches cannot run with `{name}`; pass input_ids")
        if inputs.get("image_embeds_position_mask") is not None:
            raise UnsupportedModelError(
                "second contexts cannot be run so far on KOSMOS, which counts positions in its own way"
            )
        branches = dict(sorted(branches.items(), key=lambda item: item[1].begins))
        self.names: tuple[str, ...] = (MAIN, *branches)
        self.branches: tuple[Branch, ...] = tuple(branches.values())
        self.batch: int = inputs["input_ids"].shape[0]
        mask = visible.to(inputs["input_ids"].device).long()
        main = {**inputs, "attention_mask": mask}  # a static cache comes with one [B, 1, L, Lk]
        self._contexts = [main, *({**main, **branch.inputs} for branch in self.branches)]
        self._pads = {**compat.SEQUENCES, "input_ids": pad_token_id}
        self.length: int = max(context["input_ids"].shape[1] for context in self._contexts)
        self._hidden = self.length - inputs["input_ids"].shape[1]  # padding before the user's prompts
        self.input_ids: Tensor = self._sequence("input_ids")
        self.mask: Tensor = self._sequence("attention_mask")

    def rows(self, name: str) -> slice:
        """The rows of one context in the stacked batch."""
        start = self.names.index(name) * self.batch
        return slice(start, start + self.batch)

    def rows_in(self, layer: int) -> int:
        """How many rows of the prompt run in a layer: those of contexts that have begun, which come first.

        In -1 they are embedded, images among them.
        """
        return self.batch * (1 + sum(branch.begins <= layer for branch in self.branches))

    def completed(self, part: Tensor, axis: int = 0) -> Tensor:
        """The rows of all contexts, [n B, ...], from those that ran in a layer: the others are the user's."""
        missing = len(self.names) - part.shape[axis] // self.batch
        return torch.cat([part, *[part.narrow(axis, 0, self.batch)] * missing], axis) if missing else part

    def prefill(self, inputs: Mapping[str, Any], takes_positions: bool, rows: int) -> dict[str, Any]:
        """The stacked arguments of the prefill.

        Args:
            rows: of the contexts that are embedded; all, or `rows_in(-1)`.
        """
        stacked = dict(inputs)
        for name in compat.SEQUENCES:
            if stacked.get(name) is not None:
                stacked[name] = self._sequence(name)[:rows]
        for name in compat.media_names(inputs):
            stacked[name] = compat.join_media(self._contexts[: rows // self.batch], name)
        stacked["attention_mask"] = self.mask[:rows]
        return self._positions(stacked, takes_positions)

    def decode(self, inputs: Mapping[str, Any], cache_length: int, takes_positions: bool) -> dict[str, Any]:
        """The stacked arguments of a later step: every context is fed the user's new tokens."""
        stacked, copies = dict(inputs), len(self.names)
        for name in compat.SEQUENCES:
            if stacked.get(name) is not None and name != "attention_mask":
                stacked[name] = stacked[name].repeat(copies, 1)
        new = cache_length + stacked["input_ids"].shape[1] - self.length
        given, prompt = stacked.get("attention_mask"), self.length - self._hidden
        if isinstance(given, Tensor) and given.shape == (self.batch, prompt + new):
            mask = torch.cat([self.mask, given[:, prompt:].to(self.mask).repeat(copies, 1)], 1)
            mask[: self.batch, self._hidden :] = given
        else:  # none, or that of a static cache
            mask = F.pad(self.mask, (0, new), value=1)
        stacked["attention_mask"] = mask
        stacked = self._positions(stacked, takes_positions)
        # One shape for all steps: a captured graph has no other. Causality hides the columns after the row.
        stacked["attention_mask"] = F.pad(
            mask, (0, compat.static_length(given, mask.shape[1]) - mask.shape[1]), value=1
        )
        return stacked

    def tokens(self, main: TokenMap) -> TokenMap:
        """Roles of the stacked batch."""
        return TokenMap.stack([main, *(branch.tokens or main for branch in self.branches)])

    def embedding_gain(self) -> Tensor | None:
        """[n B, L] factor of each input embedding at prefill; None: all are 1."""
        if all(branch.embedding_gain is None for branch in self.branches):
            return None
        gains = [torch.ones(self.batch, self.length, device=self.mask.device)]
        for branch in self.branches:
            gain = branch.embedding_gain
            gains.append(
                gains[0] if gain is None else self._left_padded(gain.to(self.mask.device).float(), 1.0)
            )
        return torch.cat(gains)

    def feature_gain(self) -> Tensor | None:
        """[images, patches] factor of the image features of all contexts embedded; None: all are 1."""
        gains = [branch.feature_gain for branch in self.branches]
        own = next((gain for gain in gains if gain is not None), None)
        if own is None:
            return None
        embedded = self.rows_in(-1) // self.batch
        found = []
        for context, gain in zip(self._contexts[:embedded], [None, *gains], strict=False):
            pixels = context.get("pixel_values")
            if pixels is not None:
                found.append(torch.ones_like(own[:1]).expand(len(pixels), -1) if gain is None else gain)
        return torch.cat(found)

    def _sequence(self, name: str) -> Tensor:
        """An argument with one entry per token, of all contexts: [n B, L]."""
        parts = [context[name] for context in self._contexts]
        return torch.cat([self._left_padded(part, self._pads[name]) for part in parts])

    def _left_padded(self, part: Tensor, value: float) -> Tensor:
        return F.pad(part, (self.length - part.shape[1], 0), value=value)

    def _positions(self, stacked: dict[str, Any], takes_positions: bool) -> dict[str, Any]:
        """Positions count the visible tokens of each row; the user's are those given, if any.

        A model computes multi-axis positions itself.
        """
        given = compat.pop_positions(stacked)
        if takes_positions and (given is None or given.dim() == 2):
            positions = (stacked["attention_mask"].long().cumsum(1) - 1).clamp_min(0)
            # Without the stride of a mask that grows, which would be another one for a graph in each step.
            positions = positions[:, -stacked["input_ids"].shape[1] :].contiguous()
            if given is not None:
                positions[: self.batch, -given.shape[1] :] = given
            stacked["position_ids"] = positions
        return stacked


def main_rows(value: Any, rows: int, batch: int) -> Any:
    """The user's `batch` rows of every tensor with `rows` rows in a nested output."""
    if isinstance(value, Tensor):
        return value[:batch] if value.dim() and value.shape[0] == rows else value
    if isinstance(value, tuple):
        return tuple(main_rows(item, rows, batch) for item in value)
    return value


def crop_columns(output: Any, hidden: int, prefill: bool) -> None:
    """Remove the `hidden` columns of padding before the user's prompts from hidden states and weights."""
    first = hidden if prefill else 0
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(state[..., first:, :] for state in output["hidden_states"])
    if output.get("attentions") is not None:
        output["attentions"] = tuple(
            None if weights is None else weights[:, :, first:, hidden:] for weights in output["attentions"]
        )
