"""Which image belongs to which prompt, where beams and several returned sequences repeat prompts.

`generate` repeats each entry of its inputs by itself: two images A, B of a prompt become A A B B, which gives
the first sequence A twice. The media arguments of a forward have no common layout, so any that is not surely
understood is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regaze.errors import UnsupportedModelError
from regaze.toolkit.prompts.pixels import PIXELS

#: Arguments that are not media, or have one entry per prompt.
_NOT_OF_IMAGES = ("cache_position", "position_ids", "batch_num_images")


def repeated_media(input_ids: Tensor, is_image: Tensor, copies: int, given: dict[str, Any]) -> dict[str, Any]:
    """The media of `copies` sequences for each prompt, in their order; they are removed from `given`.

    Args:
        input_ids: [B, L]. is_image: [B, L] bool, image tokens.
        given: what `generate` repeats beside the ids; the rest has one entry per prompt.

    Raises:
        UnsupportedModelError: it is not known which image belongs to which prompt.
    """
    if given.get("image_token_pooling") is not None:  # Molmo 2's, numbers of patches
        raise _unknown_images()
    pixels = next((given[name] for name in PIXELS if isinstance(given.get(name), Tensor)), None)
    if pixels is None or _by_prompt(given):
        return {}
    tokens = is_image.sum(1).tolist()
    if given.get("image_grid_thw") is not None:
        return _of_grids(tokens, copies, given)
    media = {
        name: value
        for name, value in given.items()
        if isinstance(value, Tensor)
        and name not in _NOT_OF_IMAGES
        and (name in PIXELS or value.shape[:2] != input_ids.shape)
    }
    if any(len(value) != len(pixels) for value in media.values()):
        raise _unknown_images()
    counts = _images_of_prompts(tokens, len(pixels), media, given.get("batch_num_images"))
    order = _repeated(counts, copies)
    for name in media:
        del given[name]
    return {name: value[order.to(value.device)] for name, value in media.items()}


def _by_prompt(given: dict[str, Any]) -> bool:
    """Whether pixels come by prompt: [B, images, ...], those of Idefics and Llama 3.2 Vision."""
    mask = given.get("pixel_attention_mask")
    return given.get("aspect_ratio_ids") is not None or (mask is not None and mask.dim() == 4)


def _of_grids(tokens: list[int], copies: int, given: dict[str, Any]) -> dict[str, Any]:
    """Qwen-VL's patches, one image after the other."""
    grid, pixels = given.pop("image_grid_thw"), given.pop("pixel_values")
    patches = grid.prod(1).tolist()
    merged = max(1, sum(patches) // max(1, sum(tokens)))
    order = _repeated(_images_of_sizes(tokens, [n // merged for n in patches]), copies)
    images = pixels.split(patches)
    repeated = torch.cat([images[i] for i in order.tolist()])
    return {"pixel_values": repeated, "image_grid_thw": grid[order.to(grid.device)]}


def _images_of_prompts(
    tokens: list[int], images: int, media: dict[str, Tensor], batch_num_images: Any
) -> list[int]:
    """How many images (or tiles) each prompt shows."""
    counts = [int(count > 0) for count in tokens]
    if batch_num_images is not None and len(batch_num_images) == len(tokens):
        counts = [int(count) for count in batch_num_images]
    if sum(counts) == images:
        return counts
    # Several per prompt: known where all have the same number of tokens, for which they need one shape
    # (Aria's mask is no shape: it hides padding from the latents, of which there are always as many).
    each = sum(tokens) // images
    shapes = (value for name, value in media.items() if name not in (*PIXELS, "pixel_mask"))
    if each and not any(count % each for count in tokens) and all((v == v[:1]).all() for v in shapes):
        counts = [count // each for count in tokens]
    if sum(counts) != images:
        raise _unknown_images()
    return counts


def _images_of_sizes(tokens: list[int], sizes: list[int]) -> list[int]:
    """How many images each prompt shows, where the number of tokens of each image is known."""
    counts, rest = [], list(sizes)
    for count in tokens:
        images = 0
        while count > 0 and rest:
            count, images = count - rest.pop(0), images + 1
        counts.append(images)
        if count:
            raise _unknown_images()
    return counts


def _unknown_images() -> UnsupportedModelError:
    return UnsupportedModelError(
        "it is not known which image belongs to which prompt, so none can be repeated for beams or several "
        "returned sequences; generate one sequence each, or give images of one size, one per prompt"
    )


def _repeated(counts: list[int], copies: int) -> Tensor:
    """Indices of the images that `copies` sequences of each prompt show, in order."""
    parts = torch.arange(sum(counts)).split(counts)
    return torch.cat([part for part in parts for _ in range(copies)])
