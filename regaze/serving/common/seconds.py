"""Second contexts of a prompt: what each is made of, as a request of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from regaze.errors import InputError, UnsupportedModelError
from regaze.serving.common.contexts import ServedContext
from regaze.serving.common.prompts import places
from regaze.toolkit.model import compat
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role, TokenMap


@dataclass(frozen=True)
class Second:
    """A second context of a prompt.

    Attributes:
        name: of its branch. ids: of its prompt, images expanded. tokens: their roles.
        features: vLLM's `MultiModalFeatureSpec` of each of its images.
    """

    name: str
    ids: list[int]
    tokens: TokenMap
    features: list[Any]

    @property
    def key(self) -> str:
        """Tells its caches from those of other contexts."""
        return sha256(self.name.encode()).hexdigest()[:16]


def seconds_of(context: ServedContext, features: Sequence[Any], model_config: Any) -> list[Second]:
    """The second contexts of a prompt whose images are `features`; calls `branches`, so call it first.

    Args:
        model_config: vLLM's `ModelConfig`.

    Raises:
        RegazeError: they cannot be requests of their own.
    """
    branches = context.branches()
    if any(_media(branch, context) for branch in branches.values()) and _raw(model_config):
        raise UnsupportedModelError(
            "its second context has other pixels, and this engine's are normalised in the model: start it "
            "with mm_device_do_normalize=False (--no-mm-device-do-normalize)"
        )
    found = [_second(name, branch, context, features) for name, branch in branches.items()]
    longest, limit = max((len(second.ids) for second in found), default=0), model_config.max_model_len
    if longest >= limit:
        raise InputError(
            f"a second context of this prompt has {longest} tokens, and the engine takes {limit}, of which "
            "one has to be left for the answer"
        )
    return found


def _raw(model_config: Any) -> bool:
    """Whether images come to the model as they are before the processor's normalisation."""
    return bool(getattr(model_config.multimodal_config, "mm_device_do_normalize", False))


def _second(name: str, branch: Branch, context: ServedContext, features: Sequence[Any]) -> Second:
    if branch.embedding_gain is not None or branch.feature_gain is not None:
        raise UnsupportedModelError("it blanks embeddings in its second context, which an engine does not do")
    prompt = context.prompt_ids()
    ids = branch.inputs.get("input_ids", prompt)[0]
    seen = branch.inputs.get("attention_mask", torch.ones_like(ids[None]))[0].bool()
    tokens = _without_padding(branch.tokens or context.tokens, seen.cpu())
    kept: list[int] = ids[seen].tolist()
    images = list(features) if bool(tokens.mask(Role.IMAGE).any()) else []
    images = _moved(images, prompt[0].tolist(), kept)
    if not torch.equal(tokens.mask(Role.IMAGE)[0], places(len(kept), images)):
        raise UnsupportedModelError(
            "its second context has some of an image's tokens, or others than vLLM puts there"
        )
    second = Second(name, kept, tokens, images)
    return replace(second, features=_about(_media(branch, context), images, second.key))


def _without_padding(tokens: TokenMap, seen: Tensor) -> TokenMap:
    roles, view, cell = (getattr(tokens, name)[:, seen] for name in ("roles", "view", "cell"))
    return TokenMap(roles, view, cell, tokens.views)


def _moved(features: Sequence[Any], prompt: list[int], other: list[int]) -> list[Any]:
    """The features of a prompt at the places of their tokens in another one."""
    found, begin = list[Any](), 0
    for feature in features:
        where = feature.mm_position
        tokens = prompt[where.offset : where.offset + where.length]
        starts = range(begin, len(other) - where.length + 1)
        start = next((i for i in starts if other[i : i + where.length] == tokens), None)
        if start is None:
            raise UnsupportedModelError("its second context has some of an image's tokens, and not all")
        found.append(replace(feature, mm_position=replace(where, offset=start)))
        begin = start + where.length
    return found


# Pixels ---------------------------------------------------------------------------------------------------


def media_of(features: Sequence[Any]) -> dict[str, Tensor]:
    """What the processor gave of the images, as arguments of a forward; {}: vLLM has it elsewhere."""
    found: dict[str, Tensor] = {}
    items = [feature.data for feature in features]
    if not items or any(item is None for item in items):
        return found
    for name in items[0]:
        elements = [item[name] for item in items if name in item]
        if len(elements) == len(items) and all(isinstance(each.data, Tensor) for each in elements):
            whole = elements[0].field.reduce_data(elements)
            if isinstance(whole, Tensor):
                found[name] = whole
    return found


def _media(branch: Branch, context: ServedContext) -> dict[str, Tensor]:
    """The pixels of a branch that are others than the user's."""
    names = compat.media_names(context.inputs)
    return {name: value for name in names if (value := branch.inputs.get(name)) is not None}


def _about(media: Mapping[str, Tensor], features: Sequence[Any], key: str) -> list[Any]:
    """The features about these pixels, under names of their own."""
    from vllm.multimodal.inputs import MultiModalFieldElem, MultiModalKwargsItem

    if not media:
        return list(features)
    parts = {name: _parts(whole, [each.data[name] for each in features]) for name, whole in media.items()}
    found = []
    for number, feature in enumerate(features):
        changed = {
            name: MultiModalFieldElem(data=part[number], field=feature.data[name].field)
            for name, part in parts.items()
        }
        data = MultiModalKwargsItem({**feature.data, **changed})
        hashed = None if feature.mm_hash is None else f"{feature.mm_hash}-{key}"
        found.append(replace(feature, data=data, identifier=f"{feature.identifier}-{key}", mm_hash=hashed))
    return found


def _parts(whole: Tensor, elements: Sequence[Any]) -> list[Tensor]:
    """Inverse of what `media_of` does: the part of each image."""
    from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFlatField

    field = elements[0].field
    if isinstance(field, MultiModalBatchedField):
        return list(whole)
    if isinstance(field, MultiModalFlatField):
        return list(whole.split([each.data.shape[field.dim] for each in elements], field.dim))
    raise InputError("all images of a prompt share what its second context changes")
