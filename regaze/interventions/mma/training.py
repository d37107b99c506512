"""Training with modality-mutual attention: the mask as a tensor, and a data collator that carries it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.errors import InputError, ShapeError
from regaze.interventions.mma.method import mutual_rectangle
from regaze.toolkit.prompts.token_map import PromptTokens, Role, TokenMap
from regaze.toolkit.wrap import Gaze

#: Label that the loss ignores.
IGNORED = -100

Roles = TokenMap | Tensor | Sequence[Sequence[int]]


def mma_mask(
    roles: Roles,
    attention_mask: Tensor | None = None,
    *,
    as_released: bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The modality-mutual mask of a batch; see `MMA`.

    A model with "sdpa" attention takes it as its `attention_mask`. The mask is L x L (bool, without heads);
    where that is too large, use `mma_mask_mod`. With such a mask a model counts positions from 0, so pad on
    the right or pass `position_ids`.

    Args:
        roles: a `TokenMap`, or [B, L] `Role` of each token, image tokens expanded.
        attention_mask: [B, L], 0 for padding; adds to the roles' own PAD.
        as_released: also unmask the assistant header.
        device: device of the mask.

    Returns:
        [B, 1, L, L] bool, True where row i may attend to key j. Padded keys are visible to no row; a padded
        row before the first token (left padding) therefore sees nothing.

    Raises:
        InputError, ShapeError: roles that are not [B, L]; an attention mask that does not fit them.
    """
    rows, columns, shown = _parts(roles, attention_mask, as_released, device)
    causal = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool, device=device).tril()
    return ((causal | (rows[:, :, None] & columns[:, None])) & shown[:, None])[:, None]


def mma_mask_mod(
    roles: Roles,
    attention_mask: Tensor | None = None,
    *,
    as_released: bool = False,
    device: torch.device | str = "cpu",
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The same mask as a `mask_mod` of FlexAttention, which needs no L x L memory.

    A model with "flex_attention" takes `create_block_mask(mma_mask_mod(roles), B, None, L, L)` as its
    attention mask. Arguments and errors as for `mma_mask`.
    """
    rows, columns, shown = _parts(roles, attention_mask, as_released, device)

    def visible(sample: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return ((key <= row) | (rows[sample, row] & columns[sample, key])) & shown[sample, key]

    return visible


def _parts(
    roles: Roles, attention_mask: Tensor | None, as_released: bool, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Unmasked rows, unmasked columns and keys that are not padding, each [B, L] bool on `device`."""
    tokens = roles if isinstance(roles, TokenMap) else TokenMap.from_roles(torch.as_tensor(roles).cpu())
    shown = ~tokens.mask(Role.PAD)
    if attention_mask is not None:
        if attention_mask.shape != shown.shape:
            raise ShapeError(
                f"attention_mask is {list(attention_mask.shape)}, but the roles are [B, L] = "
                f"{list(shown.shape)}: give the 2-D mask of the batch whose image tokens are expanded"
            )
        shown = shown & attention_mask.cpu().bool()
    rows, columns = mutual_rectangle(tokens, as_released)
    return rows.to(device), columns.to(device), shown.to(device)


@dataclass(frozen=True)
class MutualCollator:
    """A data collator whose batches carry the modality-mutual mask, for fine-tuning with a Trainer.

    Through the unmasked positions a question token sees later question tokens from the second layer on
    (question -> image -> question), and image tokens see later image tokens. A loss on a token of the prompt
    would therefore be a loss on visible tokens: its label must be -100, which is checked.

    Attributes:
        collate: a collator that gives input_ids, labels and, when padded, attention_mask, each [B, L] with
            image tokens expanded and padding on the right.
        roles: function from such a batch to its roles, for example `first_turn(gaze)`.
        as_released: also unmask the assistant header.
    """

    collate: Callable[[list[Any]], Mapping[str, Any]]
    roles: Callable[[Mapping[str, Any]], TokenMap]
    as_released: bool = False

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """The collated batch, with [B, 1, L, L] bool as its attention_mask.

        Raises:
            InputError: a batch without labels, or labels on tokens of a prompt that has an image.
        """
        batch = dict(self.collate(features))
        if batch.get("labels") is None:
            raise InputError(f"the collator gave {', '.join(batch)}, but no labels")
        tokens = self.roles(batch)
        _refuse_leaks(tokens, batch["labels"])
        mask = batch.get("attention_mask")
        batch["attention_mask"] = mma_mask(tokens, mask, as_released=self.as_released)
        return batch


def _refuse_leaks(tokens: TokenMap, labels: Tensor) -> None:
    """Raise InputError where a prompt token of a sample with unmasked positions has a label."""
    if labels.shape != tokens.roles.shape:
        raise InputError(
            f"labels are {list(labels.shape)}, but the batch has roles for {list(tokens.roles.shape)} tokens"
        )
    has_image = tokens.mask(Role.IMAGE).any(1, keepdim=True)
    leaks = (labels.cpu() != IGNORED) & ~tokens.mask(Role.OUTPUT) & has_image
    if leaks.any():
        sample, position = leaks.nonzero()[0].tolist()
        role = Role(int(tokens.roles[sample, position])).name
        raise InputError(
            f"sample {sample} has a label at position {position}, a {role} token ({int(leaks.sum())} such "
            f"labels in the batch): under this mask prompt tokens see later ones, so a loss on them is not "
            f"valid; set their labels to {IGNORED}"
        )


def first_turn(gaze: Gaze) -> Callable[[Mapping[str, Any]], TokenMap]:
    """A function that reads the roles of a training batch: the prompt ends where the labels begin.

    All tokens from the first labelled one on are OUTPUT, including later turns of a conversation.

    Returns:
        A function for `MutualCollator.roles`. It raises InputError for a sample with an image whose labels do
        not begin right after the template's assistant header.
    """

    def roles(batch: Mapping[str, Any]) -> TokenMap:
        ids, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
        mask = batch.get("attention_mask")
        visible = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.cpu().bool()
        rows = zip(ids, labels, visible, strict=True)
        samples = [_read(gaze, row[v].tolist(), label[v], n) for n, (row, label, v) in enumerate(rows)]
        return TokenMap.from_samples(samples, visible)

    return roles


def _read(gaze: Gaze, ids: list[int], labels: Tensor, number: int) -> PromptTokens:
    """Roles of one unpadded sample with labelled answers."""
    labelled = (labels != IGNORED).nonzero().flatten()
    end = int(labelled[0]) if len(labelled) else len(ids)
    prompt, answer = gaze.reader.read(ids[:end]), len(ids) - end
    if answer and gaze.family.image_token_id in ids and prompt.roles[-1:] != (Role.TAIL,):
        raise InputError(
            f"sample {number}: the labels begin at token {end}, which does not follow the chat template's "
            f"assistant header; set the labels of all prompt tokens to {IGNORED}, or give your own roles"
        )
    return PromptTokens(
        prompt.roles + (int(Role.OUTPUT),) * answer,
        prompt.view + (-1,) * answer,
        prompt.cell + (-1,) * answer,
        prompt.views,
    )
