"""Synthetic traces for tests of the viewer, which need no model for a prompt of 4,096 tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from models import picture

from regaze.toolkit.prompts.token_map import Role, TokenMap, View
from regaze.toolkit.record.trace import Trace


def synthetic(
    layers: range,
    *,
    heads: int = 6,
    grid: tuple[int, int] = (8, 8),
    images: int = 1,
    question: tuple[str, ...] = (" What", " is", " it", "?"),
    answer: tuple[str, ...] = (" A", " dog", "."),
    sharpness: float = 3.0,
    seed: int = 0,
) -> Trace:
    """Random attention of one prompt: an attention sink, images, a question and its answer."""
    cells = grid[0] * grid[1]
    roles = [Role.SYSTEM, *[Role.IMAGE] * (cells * images), *[Role.QUERY] * len(question)]
    length, width = len(roles), len(roles) + len(answer) - 1
    image = torch.full((1, length), -1, dtype=torch.int32)
    image[0, 1 : 1 + cells * images] = torch.arange(images).repeat_interleave(cells)
    cell = torch.full((1, length), -1, dtype=torch.int32)
    cell[0, 1 : 1 + cells * images] = torch.arange(cells).repeat(images)
    views = tuple(View(grid, number) for number in range(images))
    tokens = TokenMap(torch.tensor([roles], dtype=torch.uint8), image, cell, (views,))
    position = torch.arange(length - len(question), width)
    slices = torch.stack([_rows(heads, position, width, sharpness, seed * 1000 + layer) for layer in layers])
    every = torch.tensor([*roles, *[Role.OUTPUT] * (len(answer) - 1)])
    masses = slices @ torch.nn.functional.one_hot(every.long(), len(Role)).float()
    return Trace(
        layers=tuple(layers),
        row_position=position,
        row_step=(position - length + 1).clamp_min(0),
        row_active=torch.ones(1, len(position), dtype=torch.bool),
        masses=masses[:, None],
        slices=slices[:, None],
        input_ids=torch.zeros(1, length, dtype=torch.int64),
        output_ids=torch.zeros(1, len(answer), dtype=torch.int64),
        tokens=tokens,
        text=(("<s>", *["<image>"] * (cells * images), *question, *answer),),
    )


def _rows(heads: int, position: torch.Tensor, width: int, sharpness: float, seed: int) -> torch.Tensor:
    """[heads, rows, width] causal attention whose heads differ in sharpness."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(heads, len(position), width, generator=generator)
    scores *= sharpness * torch.rand(heads, 1, 1, generator=generator)
    scores[..., 0] += 6.0
    scores.masked_fill_(torch.arange(width) > position[:, None], -torch.inf)
    return scores.softmax(-1)


def long_groups(layers: int = 12, heads: int = 16, variants: int = 2) -> Iterator[list[Trace]]:
    """A prompt of 4,123 tokens, layer by layer: one image of 63 x 65 cells, 27 of text, 24 of answer."""
    question, answer = tuple(f" q{n}" for n in range(27)), tuple(f" a{n}" for n in range(24))
    for layer in range(layers):
        yield [
            synthetic(
                range(layer, layer + 1),
                heads=heads,
                grid=(63, 65),
                question=question,
                answer=answer,
                seed=variant,
            )
            for variant in range(variants)
        ]


def pictures(count: int = 1) -> list:
    return [picture(number) for number in range(count)]
