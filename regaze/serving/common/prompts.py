"""The roles of a request's tokens, from its ids and the places where vLLM puts what it made of images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer

from regaze.errors import InputError, UnsupportedModelError
from regaze.serving.common.contexts import ServedContext
from regaze.toolkit.prompts.families import MediaInputs, family_of
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.prompts.token_map import Role, TokenMap


def reader_of(model_config: Any) -> PromptReader:
    """Reads prompts of an engine's model, by vLLM's `ModelConfig` of it."""
    family = family_of(model_config.hf_config)
    kind: Any = AutoProcessor if family.image_token_ids else AutoTokenizer
    name = model_config.model if family.image_token_ids else model_config.tokenizer
    options = {"revision": model_config.revision, "trust_remote_code": model_config.trust_remote_code}
    return PromptReader(kind.from_pretrained(name, **options), family)


def read_tokens(ids: Sequence[int], features: Sequence[Any], reader: PromptReader) -> TokenMap:
    """Roles of a prompt, images expanded.

    Args:
        features: vLLM's `MultiModalFeatureSpec` of each image, in the order of the prompt.

    Raises:
        InputError: image tokens are not where vLLM puts the images, or of other media.
    """
    others = sorted({feature.modality for feature in features} - {"image"})
    if others:
        raise InputError(
            f"the roles of {' and '.join(others)} tokens are not known in an engine: ask about images"
        )
    media = MediaInputs(_outputs(features, reader.family.media_inputs), len(features))
    sample = reader.read(tuple(ids), media)
    if len(sample.roles) != len(ids):
        raise InputError(f"regaze reads {len(sample.roles)} tokens in a prompt of {len(ids)}")
    tokens = TokenMap(
        torch.tensor([sample.roles], dtype=torch.uint8),
        torch.tensor([sample.view], dtype=torch.int32),
        torch.tensor([sample.cell], dtype=torch.int32),
        (sample.views,),
    )
    placed = places(len(ids), features)
    if not torch.equal(tokens.mask(Role.IMAGE)[0], placed):
        raise InputError(
            f"regaze reads {int(tokens.mask(Role.IMAGE).sum())} image tokens in this prompt where vLLM puts "
            f"{int(placed.sum())}, or others: this model's prompts are not understood inside vLLM"
        )
    return tokens


def prompt_key(ids: Sequence[int], features: Sequence[Any], reader: PromptReader) -> Hashable:
    """Equal for prompts whose tokens have the same ids and roles; arguments as for `read_tokens`."""
    where = tuple(
        (feature.modality, at.offset, at.length, None if at.is_embed is None else _bytes(at.is_embed))
        for feature in features
        for at in [feature.mm_position]
    )
    media = _outputs(features, reader.family.media_inputs)
    return tuple(ids), where, tuple((name, each.shape, _bytes(each)) for name, each in media.items())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def places(length: int, features: Sequence[Any]) -> Tensor:
    """[length] bool, the tokens whose embeddings vLLM replaces by those of images."""
    placed = torch.zeros(length, dtype=torch.bool)
    for feature in features:
        where = feature.mm_position
        own = torch.ones(where.length, dtype=torch.bool) if where.is_embed is None else where.is_embed.bool()
        placed[where.offset : where.offset + where.length] = own
    return placed


def _outputs(features: Sequence[Any], names: Sequence[str]) -> dict[str, Tensor]:
    """What the processor gave of each image, as one batch, where vLLM still has it of all."""
    found: dict[str, list[Tensor]] = {}
    for feature in features:
        for name in names:
            entry = None if feature.data is None else feature.data.get(name)
            if entry is not None and isinstance(entry.data, Tensor):
                found.setdefault(name, []).append(entry.data)
    whole = {name: parts for name, parts in found.items() if len(parts) == len(features)}
    return {name: torch.stack(parts) for name, parts in whole.items()}


class _NoModel:
    """In the place of the model, which lies in other processes, in parts and under other names."""

    def __getattr__(self, name: str) -> Any:
        raise UnsupportedModelError(
            f"this method reads the model's {name!r}, which lies elsewhere inside vLLM; use transformers"
        )


def context_of(
    config: Any,
    ids: Sequence[int],
    tokens: TokenMap,
    callbacks: tuple[Any, ...],
    reader: PromptReader,
    media: Mapping[str, Tensor] | None = None,
) -> ServedContext:
    """The context of one request.

    Args:
        config: that of the language model. media: arguments of a forward about the images, where a method
            reads them.
    """
    inputs: Mapping[str, Any] = {"input_ids": torch.tensor([list(ids)]), **(media or {})}
    model: Any = _NoModel()
    return ServedContext(model, config, inputs, tokens, callbacks, reader)
