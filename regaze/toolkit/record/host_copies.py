"""Copies to the host: many small tensors in few of them, since each makes the host wait for its device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

#: Most bytes that one copy of several tensors brings; they are put together on the device first.
COPY_BYTES = 64 << 20


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors on the CPU, without their graphs."""
    found = [tensor.detach() if tensor.requires_grad else tensor for tensor in tensors]
    for numbers in _together(found):
        if len(numbers) == 1:
            found[numbers[0]] = found[numbers[0]].cpu()
            continue
        parts = [found[number] for number in numbers]
        flat = torch.cat([part.flatten() for part in parts]).cpu()
        for number, part, values in zip(
            numbers, parts, flat.split([part.numel() for part in parts]), strict=True
        ):
            found[number] = values.view(part.shape)
    return found


def _together(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the tensors that go in one copy: of one device and dtype, up to `COPY_BYTES`."""
    copies: dict[tuple[torch.device, torch.dtype], list[list[int]]] = defaultdict(lambda: [[]])
    sizes: dict[tuple[torch.device, torch.dtype], int] = defaultdict(int)
    for number, tensor in enumerate(tensors):
        if tensor.device.type == "cpu":
            continue
        key, size = (tensor.device, tensor.dtype), tensor.numel() * tensor.element_size()
        if sizes[key] + size > COPY_BYTES and copies[key][-1]:
            copies[key].append([])
            sizes[key] = 0
        copies[key][-1].append(number)
        sizes[key] += size
    return [numbers for groups in copies.values() for numbers in groups]
