"""MoA: mixture of attention spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import fspath
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction
from regaze.kernels import AttentionEdit
from regaze.kernels.spec import Windows
from regaze.reading import StrPath, parse_json, read_text
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role

#: Span of a head that keeps everything.
UNLIMITED = 2**62


@dataclass(frozen=True)
class MoA(Intervention):
    """Limit each head to its own span of recent keys and the first block of the prompt.

    Source: Fu et al., "MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression"
    (arXiv:2406.14909). A head with the rule (alpha, beta) keeps, of a prompt of N tokens, the first `block`
    tokens and the last span(N) = alpha + beta N, counted in blocks: alpha // block + int(beta N / block), at
    least one. All rows of prompt and answer have this span; N counts the sample's own prompt. A rule with
    alpha >= 0 and beta >= 1 keeps everything, however long the answer.

    The release (`thu-nics/MoA`) rounds the windows of the prompt's rows to whole blocks, so that such a row
    sees up to block - 1 keys fewer than here; its decode steps keep whole spans, as here. It requires as many
    key-value heads as query heads, one prompt per batch and prompts of at least one block.

    This is the method's mask, for measuring how a plan affects quality. The cache keeps all keys and the
    edited prefill runs in plain torch, so that neither memory nor time is saved.
    """

    name: ClassVar[str] = "moa"
    summary: ClassVar[str] = "give each head its own span of recent keys, besides the first block"
    source: ClassVar[str] = "arXiv:2406.14909"
    edits: ClassVar[str] = "the mask of every head, in every row and step"
    cost: ClassVar[str] = "one forward, no faster than a plain one; the cache keeps every key"
    facts: ClassVar[Facts] = Facts(edits=("mask",), cost="one forward")
    release: ClassVar[str] = (
        "thu-nics/MoA. Windows of the prompt's rows are rounded to whole blocks; one prompt per batch, "
        "at least a block long, and no grouped queries. None of this applies here."
    )
    fixed_edits = True

    plan: str | None = field(
        default=None, metadata={"help": "JSON file with alphas and betas, each layers x heads numbers"}
    )
    alpha: float = field(default=0.0, metadata={"help": "tokens of every head's span; without a plan"})
    beta: Fraction = field(
        default=0.5, metadata={"help": "share of the prompt in every head's span (1: all); without a plan"}
    )
    block: PositiveInt = field(
        default=64, metadata={"help": "block size, and how many first tokens are kept"}
    )

    def controls(self) -> Sequence[Method]:
        """One rule for all heads, the mean of the plan's; without a plan all heads are alike."""
        if self.plan is None:
            return ()
        alpha, beta = read_plan(self.plan).mean((1, 2)).tolist()
        return (replace(self, plan=None, alpha=alpha, beta=min(max(beta, 0.0), 1.0)),)

    def prepare(self, context: Context) -> None:
        layers, heads = context.num_layers, context.num_heads
        if self.plan is None:
            rule = torch.tensor([self.alpha, self.beta], dtype=torch.float64)
            rules = rule[:, None, None].expand(2, layers, heads)
        else:
            rules = read_plan(self.plan)
        if rules.shape != (2, layers, heads):
            raise BadParameterError(
                f"the plan {self.plan} is for {rules.shape[1]} layers of {rules.shape[2]} heads; the model "
                f"has {layers} layers of {heads} query heads"
            )
        visible = ~context.tokens.mask(Role.PAD)
        lengths = (visible & ~context.tokens.mask(Role.OUTPUT)).sum(1)
        first = visible.int().argmax(1)
        edits: dict[tuple[int, ...], AttentionEdit | None] = {}  # layers with the same spans share one
        by_layer = context.state(self)["edits"] = []
        for span in spans(rules[0, :, None], rules[1, :, None], lengths[:, None], self.block):
            key = tuple(span.flatten().tolist())
            if key not in edits:
                edit = AttentionEdit(windows=Windows(span, self.block, first))
                edits[key] = edit if min(key) < UNLIMITED else None
            by_layer.append(edits[key])

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        edit: AttentionEdit | None = context.state(self)["edits"][layer]
        return edit


def spans(alpha: Tensor, beta: Tensor, length: Tensor, block: int = 64) -> Tensor:
    """Number of tokens that heads keep besides the first block, int64; the tensors broadcast."""
    alpha, beta, blocks = alpha.double(), beta.double(), length.double() / block
    kept = block * (alpha // block + torch.floor(beta * blocks)).clamp_min(1).long()
    return torch.where((alpha >= 0) & (beta >= 1), UNLIMITED, kept)


def read_plan(path: StrPath) -> Tensor:
    """The alphas and betas of a plan file in the released format, [2, layers, heads].

    Raises:
        InputError: a file that cannot be read or is not a plan.
    """
    path = fspath(path)
    data = parse_json(read_text(path, "plan "), path)
    try:
        rules = torch.tensor([data["alphas"], data["betas"]], dtype=torch.float64)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f'{path} is no plan {{"alphas": [...], "betas": [...]}}: {error!r}') from None
    if rules.dim() != 3:
        raise InputError(
            f"{path}: alphas and betas must be layers x heads numbers, got {list(rules.shape[1:])}"
        )
    return rules
