"""The forwards of a fit: the residual stream of a caption, and the hidden states of the vision tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchFeature

from regaze.errors import UnsupportedModelError
from regaze.interventions.fitting.caption_pairs import CaptionPair
from regaze.toolkit.analysis.forward import HiddenStateProbe, run_forward
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.vision import vision_tower
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.wrap import Gaze

#: From the hidden states [T, D] of a sequence to what is kept of them, [..., D].
Pool = Callable[[Tensor], Tensor]


def prompt_of(gaze: Gaze, question: str) -> str:
    """The prompt about one image as the model's template renders it, up to where the answer begins."""
    return gaze.reader.render(question, 1).text


def answered_inputs(gaze: Gaze, image: ImageLike, text: str) -> BatchFeature:
    """The arguments of a forward over `text`, a rendered prompt with its answer, about an image."""
    batch = gaze.reader.tokenise([text], [[open_image(image)]])
    batch.pop("labels", None)  # PaliGemma's processor gives what to learn
    for name, tensor in batch.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            batch[name] = tensor.to(gaze.model.dtype)
    return batch.to(gaze.model.device)


def residual_states(gaze: Gaze, inputs: Any, pool: Pool, *callbacks: Callback) -> Tensor:
    """[L + 1, ..., D] fp32 on the CPU: the residual stream entering each layer, and leaving the last, pooled.

    The last entry is before the final norm, other than that of `output_hidden_states`.

    Args:
        inputs: of one sequence without padding. callbacks: that take part in the forward.
    """
    probe = _Residual(pool)
    run_forward(gaze, inputs, *callbacks, probe)
    return torch.stack([probe.pooled[layer] for layer in sorted(probe.pooled)])


class _Residual(HiddenStateProbe):
    def __init__(self, pool: Pool):
        super().__init__()
        self._pool = pool
        self.pooled: dict[int, Tensor] = {}

    def measure(self, layer: int, hidden: Tensor) -> None:
        self.pooled[layer] = self._pool(hidden[0].float()).cpu()


def tiles_of(gaze: Gaze, pair: CaptionPair) -> Tensor:
    """[n, 3, H, W] what the vision tower is given of a pair's image: one picture, or its tiles.

    Raises:
        UnsupportedModelError: the processor gives something else.
    """
    pixels = answered_inputs(gaze, pair.image, prompt_of(gaze, "What is this?")).get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.dim() not in (4, 5) or pixels.shape[-3] != 3:
        raise UnsupportedModelError(
            f"the vision tower of {type(gaze.model).__name__} is not given pictures [n, 3, H, W] of one "
            "size, so that its tokens have no fixed places"
        )
    return pixels.reshape(-1, *pixels.shape[-3:])


def tower_states(gaze: Gaze, pixels: Tensor) -> Tensor:
    """[n, Lv + 1, T, Dv] fp32: the hidden states entering each block of the tower, and leaving the last.

    Args:
        pixels: [n, 3, H, W].

    Raises:
        UnsupportedModelError: the tower has no list of blocks, does not run on pixels alone, or has no fixed
            row of tokens per picture.
    """
    tower = vision_tower(gaze.model)
    blocks: Sequence[nn.Module] = compat.decoder_layers(tower) if compat.is_vision_model(tower) else ()
    if not blocks:
        raise UnsupportedModelError(f"{type(gaze.model).__name__} has no vision tower whose blocks are known")
    seen: list[Tensor] = []

    def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    with compat.temporary_hooks([(block, entering) for block in blocks], [(blocks[-1], leaving)]):
        try:
            tower(pixel_values=pixels.to(tower.device, tower.dtype))
        except (TypeError, AttributeError, ValueError) as error:
            raise UnsupportedModelError(
                f"{type(tower).__name__} does not run on pixels alone: {error}"
            ) from error
    if any(hidden.dim() != 3 or len(hidden) != len(pixels) for hidden in seen):
        raise UnsupportedModelError(
            f"the tokens of {type(tower).__name__} are {list(seen[0].shape)}, not [pictures, tokens, width]"
        )
    return torch.stack(seen, 1).float()
