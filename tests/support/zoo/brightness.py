"""Autoencoders whose words say how bright a cell is; with random weights a word may mean anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def say_brightness(coder: Any, encode: Any, pixels: Tensor, embedding: Tensor, words: list[int]) -> None:
    """Set the weights of a VQ encoder, its code book and the embeddings of its codes.

    Each code is a step of brightness, and the further two codes lie apart, the further do their embeddings.

    Args:
        coder: the model's `vqmodel`.
        encode: gives the latents that become codes.
        pixels: an image with all there is between black and white.
        embedding: the text model's, [vocabulary, D]. words: ids of the codes, in order.
    """
    for name, part in coder.named_modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)):
            _average(part, silent=name.endswith(("conv2", "conv2.conv", "proj_out")))
        elif isinstance(part, nn.Linear) and name.endswith("out_proj"):
            part.weight.zero_()
            part.bias.zero_()
        elif isinstance(part, nn.GroupNorm) and name.endswith("norm_out"):
            part.eps = 1e4  # it scales all alike: what a cell shows must not hang on the others
    reach = encode(pixels).abs().max()
    codes = coder.quantize.embedding.weight
    steps = torch.linspace(-1, 1, len(codes))
    codes.copy_((0.6 * reach * steps)[:, None].expand_as(codes))
    start, slope = torch.randn(2, embedding.shape[1], generator=torch.Generator().manual_seed(0)) * 0.2
    embedding[words] = start + steps[:, None] * 4 * slope


def _average(conv: Any, silent: bool) -> None:
    """Make a convolution the mean over channels of the square it halves, or of the pixel in its middle."""
    conv.weight.zero_()
    conv.bias.zero_()
    if silent:  # the last one of a residual branch
        return
    halves = conv.stride[-1] == 2
    here = slice(0, 2) if halves else slice(conv.kernel_size[-1] // 2, conv.kernel_size[-1] // 2 + 1)
    channels = slice(0, 1) if conv.in_channels == 3 else slice(None)  # red alone says more of noise
    taps = conv.weight[:, channels, ..., here, here]
    taps.fill_(1 / taps[0].numel())
