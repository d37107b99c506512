"""AvisC: attentional vision calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from regaze.interventions.contrastive import Contrastive
from regaze.interventions.parameters import PositiveFraction
from regaze.kernels import AttentionEdit, RowSelection, Stats, StatsRequest
from regaze.toolkit.model.branches import measurement_inputs
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role, TokenMap


@dataclass(frozen=True)
class AvisC(Contrastive):
    """Contrast with the image reduced to the tokens that draw attention whatever is asked ("blind" ones).

    Source: Woo et al., "Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision
    Language Models" (arXiv:2405.17820). What the last row of the prompt looks at, averaged over heads, is
    measured by a prefill of its own, unedited. The layers with most attention on the image, until they cover
    the share `gamma` of all layers' image attention, are averaged; image tokens with at least the mean plus
    `deviations` standard deviations are blind. The branch keeps these and blanks the embeddings of all other
    image tokens. Several images of a prompt are one set of tokens.
    """

    name: ClassVar[str] = "avisc"
    summary: ClassVar[str] = "contrast with the image tokens that draw attention whatever is asked"
    source: ClassVar[str] = "arXiv:2405.17820"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "one more prefill; two rows per prompt in one forward, with the cache of both"
    release: ClassVar[str] = (
        "sangminwoo/AvisC, MIT. In a batch, layers and blind tokens are those of all samples together, and "
        "image tokens sit at fixed places (35 to 610 for LLaVA); here every sample is by itself."
    )

    gamma: PositiveFraction = field(
        default=0.5, metadata={"help": "share of the image attention that the chosen layers cover"}
    )
    deviations: float = field(
        default=1.0, metadata={"help": "lambda, how far above the mean a blind token is, in deviations"}
    )

    def negative(self, context: Context) -> Branch:
        measured = _LastRow(context.tokens)
        context.extra_forward(measurement_inputs(context), measured)
        attention = torch.stack([a.to(context.device) for a in measured.attention])
        columns = measured.columns.to(attention.device)
        blind = blind_tokens(attention, columns >= 0, self.gamma, self.deviations)
        kept = ~context.tokens.mask(Role.IMAGE).to(attention.device)
        # What is no column of a sample goes to a column behind the last one.
        places = torch.where(columns >= 0, columns, kept.shape[1])
        gain = torch.cat([kept, kept.new_zeros(len(kept), 1)], 1).scatter(1, places, blind)
        return Branch(embedding_gain=gain[:, :-1].float())


def blind_tokens(attention: Tensor, image: Tensor, gamma: float, deviations: float) -> Tensor:
    """Which image tokens stand out from the others' attention in the layers that look at the image most.

    Args:
        attention: [layers, B, n] attention on image tokens. image: [B, n] bool, which of them exist.

    Returns:
        [B, n] bool.
    """
    share = attention.sum(-1)
    share, order = (share / share.sum(0).clamp_min(1e-30)).sort(0, descending=True)
    chosen = share.cumsum(0) - share < gamma  # before the layer itself is counted: one more than falls short
    looked = attention.gather(0, order[..., None].expand_as(attention))
    mean = (looked * chosen[..., None]).sum(0) / chosen.sum(0)[:, None]  # [B, n]
    count = image.sum(1, keepdim=True)
    middle = (mean * image).sum(1, keepdim=True) / count.clamp_min(1)
    spread = (((mean - middle) * image).square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    return (mean >= middle + deviations * spread) & image


class _LastRow(Callback):
    """Keeps what the last row of the prompt looks at: per layer the image columns, averaged over heads."""

    def __init__(self, tokens: TokenMap):
        images = [tokens.columns(Role.IMAGE, row) for row in range(tokens.batch)]
        self.columns = pad_sequence(images, batch_first=True, padding_value=-1)  # [B, n]
        self.rows = RowSelection.where(tokens.answering() & ~tokens.mask(Role.OUTPUT))
        self.attention: list[Tensor] = []  # [B, n] of each layer

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        device, state = context.device, context.state(self)
        if device not in state:
            columns, rows = self.columns.to(device), self.rows.to(device)
            state[device] = StatsRequest(rows=rows, columns=columns).as_edit
        return state[device]

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        assert stats.slices is not None
        self.attention.append(stats.slices.mean(1).sum(1))  # of the rows, one is active in a sample
