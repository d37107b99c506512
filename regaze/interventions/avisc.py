"""AvisC: attentional vision calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from regaze.interventions.contrastive import Contrastive
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import PositiveFraction
from regaze.kernels import AttentionEdit, RowSelection, Stats, StatsRequest
from regaze.toolkit.model.branches import measurement_inputs
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role, TokenMap


@dataclass(frozen=True)
class AvisC(Contrastive):
    """Contrast with the image reduced to "blind" tokens, which draw attention whatever the question.

    Source: Woo et al., "Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision
    Language Models" (arXiv:2405.17820). The attention of the prompt's last row, averaged over heads, is
    measured in a separate, unedited prefill. The layers with most attention on the image, until they cover
    the share `gamma` of all layers' image attention, are averaged; image tokens with at least the mean plus
    `deviations` standard deviations are blind. The branch keeps these and zeroes the embeddings of all other
    image tokens. Several images of a prompt count as one set of tokens.
    """

    name: ClassVar[str] = "avisc"
    summary: ClassVar[str] = "contrast with the image tokens that draw attention whatever the question"
    source: ClassVar[str] = "arXiv:2405.17820"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "one more prefill; two rows per prompt in one forward, with the cache of both"
    facts: ClassVar[Facts] = Facts(
        edits=("logits",), cost="two rows", needs=("second context", "all heads", "whole prompt")
    )
    release: ClassVar[str] = (
        "sangminwoo/AvisC, MIT. In a batch, layers and blind tokens are chosen for all samples together, and "
        "image tokens are at fixed places (35 to 610 for LLaVA); here every sample is separate."
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
        # Padding of the column index goes to an extra column after the last one, which is dropped.
        places = torch.where(columns >= 0, columns, kept.shape[1])
        gain = torch.cat([kept, kept.new_zeros(len(kept), 1)], 1).scatter(1, places, blind)
        return Branch(embedding_gain=gain[:, :-1].float())


def blind_tokens(attention: Tensor, image: Tensor, gamma: float, deviations: float) -> Tensor:
    """Which image tokens have outstanding attention in the layers that attend most to the image.

    Args:
        attention: [layers, B, n] attention on image tokens. image: [B, n] bool, which of them exist.

    Returns:
        [B, n] bool.
    """
    share = attention.sum(-1)
    share, order = (share / share.sum(0).clamp_min(1e-30)).sort(0, descending=True)
    chosen = share.cumsum(0) - share < gamma  # up to the layer whose share reaches gamma
    ordered = attention.gather(0, order[..., None].expand_as(attention))
    mean = (ordered * chosen[..., None]).sum(0) / chosen.sum(0)[:, None]  # [B, n]
    count = image.sum(1, keepdim=True)
    middle = (mean * image).sum(1, keepdim=True) / count.clamp_min(1)
    spread = (((mean - middle) * image).square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    return (mean >= middle + deviations * spread) & image


class _LastRow(Callback):
    """Keeps the attention of the prompt's last row: per layer on the image columns, averaged over heads."""

    def __init__(self, tokens: TokenMap):
        images = [tokens.columns(Role.IMAGE, row) for row in range(tokens.batch)]
        self.columns = pad_sequence(images, batch_first=True, padding_value=-1)  # [B, n]
        rows = RowSelection.where(tokens.answering() & ~tokens.mask(Role.OUTPUT))
        self._edit = StatsRequest(rows=rows, columns=self.columns).as_edit
        self.attention: list[Tensor] = []  # [B, n] of each layer

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return self._edit

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        assert stats.slices is not None
        self.attention.append(stats.slices.mean(1).sum(1))  # of the rows, one is active in a sample
