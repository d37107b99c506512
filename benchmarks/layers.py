"""Layers of known models to time attention on: their shapes, tensors, and an edit of each kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import AttentionEdit, Channels, RowSelection, StatsRequest

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: Rows after the image: a question, the end of the turn and the header of the answer.
TEXT_ROWS = 64


class Model(NamedTuple):
    heads: int
    kv_heads: int
    dim: int


MODELS = {
    "LLaVA-1.5-7B": Model(32, 32, 128),
    "Qwen2.5-VL-7B": Model(28, 4, 128),
    "Llama-3-8B": Model(32, 8, 128),
    "SmolVLM": Model(9, 3, 64),
}
KINDS = ("unedited", "masses", "var", "gift", "bias", "score map")


@dataclass(frozen=True)
class Case:
    """One layer's call: shape, dtype, and whether it is a decode step or a prefill."""

    model: str
    phase: str
    batch: int
    keys: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.model} {self.phase} {self.dtype_name} B={self.batch} Lk={self.keys}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def shape(self) -> Model:
        return MODELS[self.model]

    @property
    def queries(self) -> int:
        return 1 if self.phase == "decode" else self.keys

    @property
    def bytes(self) -> int:
        """What must be read and written: keys, values, queries, outputs."""
        shape = self.shape
        numbers = 2 * self.batch * shape.dim * (shape.kv_heads * self.keys + shape.heads * self.queries)
        return numbers * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Multiplications and additions of both products, under the causal mask at prefill."""
        pairs = self.keys if self.phase == "decode" else self.keys * (self.keys + 1) // 2
        return 4 * self.batch * self.shape.heads * self.shape.dim * pairs

    @property
    def peak(self) -> int:
        """Bytes that eager code needs: keys and values for each head, scores in fp32 with a copy of each."""
        shape = self.shape
        kv = 2 * self.batch * shape.heads * self.keys * shape.dim * self.dtype.itemsize
        return self.bytes + kv + 4 * 4 * self.batch * shape.heads * self.queries * self.keys


class Inputs:
    """The tensors of a case and the edit of each kind."""

    def __init__(self, case: Case):
        shape, batch, keys = case.shape, case.batch, case.keys
        g = torch.Generator(DEVICE).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=g, device=DEVICE, dtype=case.dtype)

        self.causal = case.phase == "prefill"
        self.q = normal(batch, shape.heads, case.queries, shape.dim)
        self.k, self.v = (normal(batch, shape.kv_heads, keys, shape.dim) for _ in range(2))
        # A prompt of 35 tokens of text, an image with some sinks in it, and text.
        groups = torch.zeros(batch, keys, dtype=torch.uint8, device=DEVICE)
        groups[:, 35 : keys - TEXT_ROWS] = 3
        groups[:, 40 : keys - TEXT_ROWS : 97], groups[:, :2] = 2, 1
        image = (groups >= 2).float()
        rows = RowSelection(torch.arange(keys - TEXT_ROWS, keys, device=DEVICE)) if self.causal else None
        var = MoveMass(4, (1, 2), (3,), (2, 3), moved=0.6, min_share=0.5, min_mass=0.2)
        gift = AmplifyTopHeads(4, image=1, query=2, salient=3, heads=shape.heads // 2)
        salient = torch.rand(1, batch, keys, generator=g, device=DEVICE) * 3 * image
        question = torch.where(image > 0, 1, 0).to(torch.uint8)
        question[:, keys - TEXT_ROWS :] = 2
        self.column = torch.rand(batch, keys, generator=g, device=DEVICE) * image  # bias and slope alike
        self.edits = {
            "unedited": AttentionEdit(),
            "masses": AttentionEdit(stats=StatsRequest(rows=rows, channels=Channels(groups, 4))),
            "var": AttentionEdit(rows=rows, channels=Channels(groups, 4), policy=var),
            "gift": AttentionEdit(rows=rows, channels=Channels(question, 3, salient), policy=gift),
            "bias": AttentionEdit(bias=self.column[:, None]),
            "score map": AttentionEdit(score_slope=self.column[:, None]),
        }

    @property
    def shared(self) -> bool:
        return self.q.shape[1] != self.k.shape[1]

    def visible(self) -> Tensor | None:
        """[Lq, Lk] bool, or None where every row sees every key."""
        if not self.causal:
            return None
        return torch.ones(self.q.shape[2], self.k.shape[2], dtype=torch.bool, device=DEVICE).tril()
