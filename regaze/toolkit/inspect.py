"""`inspect_model`: what works with a model, from its configuration and its processor alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedModel

from regaze.errors import RegazeError
from regaze.toolkit.model import compat
from regaze.toolkit.prompts.families import Family, UnknownFamily, family_of
from regaze.toolkit.prompts.images import ImageLike
from regaze.toolkit.prompts.token_map import Role, View
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True)
class Inspection:
    """What regaze finds in a model.

    Attributes:
        model_type, model_class: of transformers. family: regaze's name for its layout of image tokens.
        layers: number of decoder layers. attention_layers, cross_layers: those with self-attention and with
            cross-attention that regaze reaches.
        heads, kv_heads, head_dim: of the language model.
        windows: layers that see a sliding window only, and its width in tokens.
        implementation: the attention that the model runs now.
        image_token_ids: ids of the tokens that carry an image's content.
        unsupported: what does not work, one sentence each.
    """

    model_type: str
    model_class: str
    family: str
    layers: int
    attention_layers: tuple[int, ...]
    cross_layers: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[tuple[int, ...], int | None]
    implementation: str
    image_token_ids: tuple[int, ...]
    unsupported: tuple[str, ...]


def inspect_model(model: PreTrainedModel) -> Inspection:
    """Inspect a model, which may be on the "meta" device; it is not changed and does not run."""
    family = family_of(model.config)
    host = family.hook_target(model)
    config, sites = compat.text_config(host), _sites(host)
    types, window = getattr(config, "layer_types", None) or (), getattr(config, "sliding_window", None)
    slides = tuple(i for i, kind in enumerate(types) if "sliding" in kind or "chunked" in kind)
    heads = config.num_attention_heads
    return Inspection(
        model_type=model.config.model_type,
        model_class=type(model).__name__,
        family=family.name,
        layers=config.num_hidden_layers,
        attention_layers=tuple(sorted(site.layer for site in sites if not site.cross)),
        cross_layers=tuple(sorted(site.layer for site in sites if site.cross)),
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        windows=(slides, window if slides else None),
        implementation=compat.current_attention(host),
        image_token_ids=family.image_token_ids,
        unsupported=tuple(_unsupported(host, family, sites)),
    )


def _sites(model: PreTrainedModel) -> list[compat.AttentionSite]:
    try:
        return list(compat.attention_modules(model).values())
    except (AttributeError, NotImplementedError, RegazeError):
        return []


def _unsupported(model: PreTrainedModel, family: Family, sites: list[compat.AttentionSite]) -> list[str]:
    """Each thing that an open block would refuse, as its error message says."""
    found, before = [], compat.current_attention(model)
    try:
        compat.set_attention(model, compat.IMPLEMENTATION)
    except (RegazeError, ValueError) as error:
        found.append(str(error))
    finally:
        compat.set_attention(model, before)
    if not sites:
        found.append("regaze reaches no attention module of this model: nothing can be edited or recorded")
    if isinstance(family, UnknownFamily):
        found.append(
            "the places of image tokens are not known: pass roles as tokens=TokenMap.from_roles(...)"
        )
    if family.is_guess:
        found.append(
            "the places of image tokens are a guess: a run of them is one image in the shape of its pixels"
        )
    if any(site.cross for site in sites):
        found.append(
            "methods that edit image tokens of the prompt or run second contexts: images (or sound) are seen "
            "through cross-attention, where recordings and methods that edit cross-attention work"
        )
    config = compat.text_config(model)
    missing = config.num_hidden_layers - len({site.layer for site in sites})
    if sites and missing:
        found.append(f"{missing} of {config.num_hidden_layers} layers have no attention, and are left alone")
    return found


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one role, and their text; for image tokens, how many there are."""

    role: Role
    text: str


def read_prompt(gaze: Gaze, image: ImageLike | None, question: str) -> tuple[list[View], list[Span]]:
    """The views of the image of a prompt, and its tokens by role; the model does not run.

    Raises:
        InputError, UnsupportedModelError: the prompt cannot be built or read.
    """
    inputs = gaze.cpu_inputs([image], [question])
    tokens, ids = gaze.tokens(inputs), inputs["input_ids"][0].tolist()
    spans = []
    for role, places in groupby(range(len(ids)), key=lambda i: Role(int(tokens.roles[0, i]))):
        part = [ids[i] for i in places]
        text = f"[{len(part)} image tokens]" if role is Role.IMAGE else gaze.reader.tokenizer.decode(part)
        spans.append(Span(role, text))
    return list(tokens.views[0]), spans
