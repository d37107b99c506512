"""MODA's modular duplex attention, as a transform of the image's keys for models trained with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regaze.errors import BadParameterError, ShapeError, UnsupportedModelError
from regaze.kernels import Placeable
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import column_index
from regaze.toolkit.prompts.token_map import Role

#: Added to keys before they are scaled to length 1, as in the release.
_SHIFT = 1e-6


class DuplexAligner(nn.Module):
    """The learned part of one layer: K_v <- W (K_v + rho * (norm(K_v) G)), shared by the layer's heads.

    A new one has rho = 0 and W = I, and leaves keys as they are. (In the release W begins as any linear layer
    does.) Of the release's parameters, `ratio` is `ratio_v` and `fusion` is `pfuser_v`.

    Attributes:
        ratio: [D], rho. fusion: the linear layer W of D channels, without a bias.
    """

    def __init__(self, width: int):
        super().__init__()
        self.ratio = nn.Parameter(torch.zeros(width))
        self.fusion = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.fusion.weight)

    def forward(self, keys: Tensor, basis: Tensor) -> Tensor:
        """Transformed keys of the image, [B, Hkv, n, D], given `basis` from `text_basis`."""
        aligned = F.normalize(keys + _SHIFT, dim=-1) @ basis
        fused: Tensor = self.fusion(keys + self.ratio * aligned)
        return fused


def text_basis(keys: Tensor, values: Tensor, text: Tensor) -> Tensor:
    """G: the product of the text's keys, of length 1, and its values; its rows scaled to length 1.

    Args:
        keys, values: [B, Hkv, L, D]. text: [B, L] bool.

    Returns:
        [B, Hkv, D, D]; 0 for a sample without text.

    Raises:
        ShapeError: values of another width than the keys, which cannot span the space of keys.
    """
    if values.shape[-1] != keys.shape[-1]:
        raise ShapeError(
            f"modular duplex attention needs keys and values of one width, got {keys.shape[-1]} and "
            f"{values.shape[-1]}"
        )
    shown = text[:, None, :, None].to(keys)
    return F.normalize((F.normalize(keys + _SHIFT, dim=-1) * shown).mT @ values, dim=-1)


class ModularDuplexAttention(Callback):
    """MODA's modular duplex attention, for a model that was trained with it: `gaze.using(...)` as a method.

    Source: "MODA: MOdular Duplex Attention for Multimodal Perception, Cognition, and Emotion Understanding"
    (ICML 2025). The keys of image tokens are mapped into the space that the text's keys and values span, see
    `DuplexAligner`. This is what the released code does (KwaiVGI/MODA, Apache-2.0); the paper's text side and
    its masks are switched off there. It acts on keys with their positions (after RoPE).

    Without trained aligners it has no meaning, so it is not among the registered methods. regaze tests the
    equation and where it acts, on random weights, and claims nothing about what it is good for.

    The text is the prompt's, also what stands after the image: an image's keys depend on the question, and
    cannot be shared between questions. (In the release's training the answer counts as text, too; while it
    generates there is none yet.)

    Args:
        aligners: one for each decoder layer, or None where a layer has none. They are modules, which can be
            trained in place: gradients go through.
        decode: whether the steps after the prompt see "edited" keys or "plain" ones. The release changes the
            key tensor after it went into the cache. Where that tensor is the cache's own, steps see edited
            keys (FlashAttention, or as many key heads as query heads); where it is a copy for grouped heads,
            they see plain ones. The cache keeps plain keys here in both cases.

    Raises:
        BadParameterError: another value of `decode`.
    """

    def __init__(self, aligners: Sequence[nn.Module | None], decode: Literal["edited", "plain"] = "edited"):
        if decode not in ("edited", "plain"):
            raise BadParameterError(f'decode must be "edited" or "plain", got {decode!r}')
        self.aligners, self.decode = list(aligners), decode

    def prepare(self, context: Context) -> None:
        if len(self.aligners) != context.num_layers:
            raise BadParameterError(
                f"{len(self.aligners)} aligners for {context.num_layers} layers: give one, or None, for each"
            )
        columns = column_index(context.tokens.mask(Role.IMAGE))
        text = context.tokens.mask(Role.SYSTEM, Role.SEPARATOR, Role.QUERY, Role.TAIL)
        context.state(self)["places"] = _Places(columns, text)

    def edit_keys(self, layer: int, key: Tensor, value: Tensor, context: Context) -> Tensor:
        aligner, state = self.aligners[layer], context.state(self)
        places: _Places = state["places"]
        if aligner is None or not places.columns.shape[1]:
            return key
        if context.step and self.decode == "plain" and not context.replaying:
            return key
        if layer not in state:  # the prompt's keys never change, so neither do these
            state[layer] = _Edited.of(aligner, key, value, places.to(key.device))
        edited: _Edited = state[layer]
        result = edited.put(key, max(0, context.cache_length + context.fed - key.shape[2]))
        if context.step == 0:  # steps need no graph of the prompt's forward
            edited.keys = edited.keys.detach()
        return result


@dataclass(frozen=True, eq=False)
class _Places(Placeable):
    """Where the image and the text are: columns [B, n], -1 where a sample has fewer; text [B, L] bool."""

    columns: Tensor
    text: Tensor


class _Edited:
    """The transformed keys of a layer, where they belong, and which of them are real."""

    def __init__(self, keys: Tensor, index: Tensor, real: Tensor):
        self.keys, self.index, self.real = keys, index, real

    @classmethod
    def of(cls, aligner: Any, key: Tensor, value: Tensor, places: _Places) -> _Edited:
        length = places.text.shape[1]
        if key.shape[2] < length:
            raise UnsupportedModelError(
                "modular duplex attention needs all keys of the prompt, but tokens have left it, or a window "
                f"has dropped some: a layer has {key.shape[2]} of {length}"
            )
        rows = len(key)  # in layers before a branch's first one the user's alone
        columns, text = places.columns[:rows], places.text[:rows]
        index = columns.clamp_min(0)[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        basis = text_basis(key[:, :, :length], value[:, :, :length], text)
        return cls(aligner(key.gather(2, index), basis), index, (columns >= 0)[:, None, :, None])

    def put(self, key: Tensor, dropped: int) -> Tensor:
        """The keys [B, Hkv, Lk, D] with these in their places; a sliding window has `dropped` the first."""
        index = self.index - dropped
        real, index = self.real & (index >= 0), index.clamp_min(0)
        return key.scatter(2, index, torch.where(real, self.keys.to(key.dtype), key.gather(2, index)))
