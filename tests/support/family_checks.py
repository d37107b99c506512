"""Checks of every model family: each raises, or returns the cell of docs/reference/families.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from models import logits_of, small_var
from PIL import Image
from torch import Tensor
from zoo.base import Entry

import regaze
from regaze import HeadKnockout, Role, TokenMap
from regaze.errors import UnsupportedModelError
from regaze.interventions import PAI
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.prompts.conversation import Message, Shown
from regaze.toolkit.prompts.token_map import View

QUESTIONS = ("Is there a dog in the picture?", "What is it that the big dog is on?")
YES, NONE = "yes", "–"


class Case:
    """An entry of the zoo, built and wrapped."""

    def __init__(self, entry: Entry):
        self.entry = entry
        self.model, self.processor = entry.build()
        self.gaze = regaze.wrap(self.model, self.processor)
        self.has_images = entry.images > 0

    @cached_property
    def places(self) -> dict[Any, compat.AttentionSite]:
        return compat.attention_modules(self.gaze.host)

    @property
    def crosses(self) -> bool:
        return any(place.cross for place in self.places.values())

    @cached_property
    def pictures(self) -> list[Any]:
        return (
            [noise(i, *size) for i, size in enumerate(self.entry.sizes)] if self.has_images else [None, None]
        )

    def inputs(self, *rows: int) -> Any:
        """The prompts of these rows: a picture and a question each."""
        return self.gaze.inputs([self.pictures[i] for i in rows], [QUESTIONS[i] for i in rows])

    @cached_property
    def plain(self) -> Tensor:
        """Logits of the unwrapped model, both prompts in one batch, the shorter one padded."""
        return logits_of(self.model, self.inputs(0, 1))


@lru_cache(maxsize=2)  # tests come entry by entry
def case_of(entry: Entry) -> Case:
    return Case(entry)


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def idle(case: Case) -> str:
    """Without edits the wrapped model is bit-identical to the plain one, at the prefill and four steps."""
    plain = case.plain
    for nothing in (Callback(), HeadKnockout(heads=())):
        with case.gaze.using(nothing):
            assert torch.equal(plain, logits_of(case.model, case.inputs(0, 1)))
    return YES


def restored(case: Case) -> str:
    """After a block, also one that ends in an exception, the model is as before."""
    before, plain = compat.current_attention(case.gaze.host), case.plain
    with suppress(KeyError), case.gaze.using(HeadKnockout(heads=(knockable(case),))):
        assert compat.current_attention(case.gaze.host) == compat.IMPLEMENTATION
        logits_of(case.model, case.inputs(0, 1), tokens=1)
        raise KeyError
    assert compat.current_attention(case.gaze.host) == before
    assert not [name for m in case.model.modules() for name in vars(m) if "regaze" in name]
    assert torch.equal(plain, logits_of(case.model, case.inputs(0, 1)))
    return YES


# Roles --------------------------------------------------------------------------------------------------


def roles(case: Case) -> str:
    """QUERY tokens are the question, and IMAGE tokens are those that another image changes."""
    inputs = case.inputs(0, 1)
    tokens = case.gaze.tokens(inputs)
    for row, question in enumerate(QUESTIONS):
        assert query_text(case, inputs, tokens, row) == normalised(question)
    if not case.has_images:
        return YES
    (features, tokens), (others, _) = (shown(case, noise(seed, 56, 56)) for seed in (5, 6))
    changed = (features - others).abs().amax(-1) > 1e-6
    is_image = tokens.mask(Role.IMAGE)[0]
    assert is_image.any()
    not_image = ~tokens.mask(Role.IMAGE, Role.PAD)[0]
    assert not (changed & not_image).any(), "an image changes tokens that are not IMAGE"
    placed = tokens.cell[0] >= 0
    assert not (placed & ~changed).any(), "cells that no image changes"
    if not placed.any():
        return "no grid"
    planted(case)
    return YES


def planted(case: Case) -> None:
    """In each view of a bright patch, the cell that changes most is the one whose box has the patch."""
    for x, y in ((0.3, 0.7), (0.8, 0.2)):
        plain, patched = (Image.new("RGB", (168, 168), (90, 90, 90)) for _ in range(2))
        patched.paste(
            (255, 255, 255), (int(168 * x) - 9, int(168 * y) - 9, int(168 * x) + 9, int(168 * y) + 9)
        )
        (features, tokens), (others, _) = (shown(case, image) for image in (plain, patched))
        change = (features - others).norm(dim=-1)
        found = 0
        for number, view in enumerate(tokens.views[0]):
            box = view.box
            if not all(view.grid) or box is None or not (box[0] < x < box[2] and box[1] < y < box[3]):
                continue
            here = change[tokens.image_cells(0, number)]
            left, top, right, bottom = cell_box(view, int(here.argmax()))
            assert left - 0.06 <= x <= right + 0.06, (number, view, (x, y), (left, right))
            assert top - 0.06 <= y <= bottom + 0.06, (number, view, (x, y), (top, bottom))
            found += 1
        assert found, "no view of this image has a box around the patch"


def cell_box(view: View, cell: int) -> tuple[float, float, float, float]:
    """The box of a cell, as shares of the image."""
    (rows, columns), (left, top, right, bottom) = view.grid, view.box
    high, wide = (bottom - top) / rows, (right - left) / columns
    row, column = divmod(cell, columns)
    return left + column * wide, top + row * high, left + (column + 1) * wide, top + (row + 1) * high


def shown(case: Case, *images: Image.Image) -> tuple[Tensor, TokenMap]:
    """The input features of each token (or key of cross-attention) of a prompt, and their roles."""
    inputs = case.gaze.inputs([list(images)], [QUESTIONS[0]])
    captured: list[Tensor] = []

    def capture(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, kwargs.get("inputs_embeds"), kwargs.get("hidden_states")]
        given = [x for x in given if isinstance(x, Tensor) and x.dim() == 3 and x.is_floating_point()]
        captured.extend(x.detach() for x in given[:1])

    crossing = [module for module, place in case.places.items() if place.cross]
    if case.model.config.is_encoder_decoder:  # the encoder mixes image and text
        where = [case.model.get_encoder()]
    elif crossing:
        where = [crossing[0].k_proj]
    else:  # in some models the first layer has other inputs
        where = [compat.decoder_of(case.gaze.host), compat.decoder_layers(case.gaze.host)[0]]
    with CrossTokens(case) as seen, hooked(where[0], capture), hooked(where[-1], capture), torch.no_grad():
        case.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    tokens = seen.cross if crossing else case.gaze.tokens(inputs)
    return captured[-1].flatten(0, 1), tokens  # Mllama's keys come tile by tile


class CrossTokens:
    """Captures the roles of the keys of cross-attention."""

    class _Capture(Callback):
        cross = None

        def edit_cross(self, layer: int, step: int, context: Any) -> None:
            self.cross = context.cross_tokens

    def __init__(self, case: Case):
        self._capture, self._case = self._Capture(), case

    def __enter__(self) -> _Capture:
        self._block = self._case.gaze.using(self._capture)
        self._block.__enter__()
        return self._capture

    def __exit__(self, *error: object) -> None:
        self._block.__exit__(*error)


@contextmanager
def hooked(module: Any, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def query_text(case: Case, inputs: Any, tokens: TokenMap, row: int) -> str:
    ids = inputs["input_ids"][row][tokens.columns(Role.QUERY, row)]
    return normalised(case.gaze.reader.tokenizer.decode(ids))


def normalised(text: str) -> str:
    return "".join(text.split()).lower()


# Recording ----------------------------------------------------------------------------------------------


def masses(case: Case) -> str:
    """Recorded masses equal those of eager attention, in the last row of the prefill and afterwards."""
    inputs = case.inputs(0, 1)
    with case.gaze.recording() as record:
        logits_of(case.model, inputs, tokens=3)
    compared = 0
    own, cross = eager_attentions(case, inputs)
    traces = [(record[0], own)] + ([] if record[0].cross is None else [(record[0].cross, cross)])
    for trace, steps in traces:
        for step, layers in enumerate(steps):
            for index, layer in enumerate(trace.layers):
                if layers.get(layer) is None:
                    continue
                want = by_role(layers[layer][:, :, -1], trace.tokens, step, trace is not record[0])
                row = trace.answer_rows()[step]
                torch.testing.assert_close(trace.masses[index, :, :, row], want, rtol=0, atol=1e-5)
                compared += 1
    assert compared >= 3
    return YES


def eager_attentions(case: Case, inputs: Any) -> tuple[list[dict[int, Tensor]], list[dict[int, Tensor]]]:
    """For each step the attention [B, Hq, Lq, Lk] by layer: self-attention, and cross-attention."""
    steps: tuple[list[dict[int, Tensor]], list[dict[int, Tensor]]] = ([], [])
    before = compat.current_attention(case.gaze.host)

    def hook_of(place: compat.AttentionSite) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            weights = next((x for x in output[1:] if isinstance(x, Tensor) and x.dim() == 4), None)
            if weights is not None:
                own = steps[place.cross]
                if not own or place.layer in own[-1]:
                    own.append({})
                own[-1][place.layer] = weights.detach()

        return hook

    handles = [module.register_forward_hook(hook_of(place)) for module, place in case.places.items()]
    compat.set_attention(case.gaze.host, "eager")
    try:
        logits_of(case.model, inputs, tokens=3)
    finally:
        compat.set_attention(case.gaze.host, before)
        for handle in handles:
            handle.remove()
    return steps


def by_role(weights: Tensor, tokens: TokenMap, step: int, cross: bool) -> Tensor:
    """Masses [B, Hq, roles] of rows [B, Hq, keys]; a window drops the first keys."""
    answer = 0 if cross else step
    every = torch.cat([tokens.roles, torch.zeros(len(tokens.roles), answer, dtype=torch.uint8)], 1)
    groups = torch.nn.functional.one_hot(every[:, -weights.shape[-1] :].long(), len(Role)).float()
    return torch.einsum("bhk,bkr->bhr", weights.float(), groups)


# Editing ------------------------------------------------------------------------------------------------


def knockable(case: Case) -> tuple[int, int]:
    return min(place.layer for place in case.places.values()), 1


def methods(case: Case) -> str:
    """Head knock-out and VAR run, neutral strength is bit-identical, and a batch equals its samples."""
    plain = case.plain  # before any block
    with case.gaze.using(HeadKnockout(heads=(knockable(case),))):
        edited = logits_of(case.model, case.inputs(0, 1))
        assert not torch.allclose(edited, plain)
        same_alone(case, edited)
    if not case.has_images:
        return "knock-out"
    if case.crosses or "hidden" in case.entry.lacks:
        why = "cross-attention" if case.crosses else "several residual streams"
        with case.gaze.using(small_var()), pytest.raises(UnsupportedModelError, match=why):
            logits_of(case.model, case.inputs(0, 1), tokens=1)
        layers = 1 + max(place.layer for place in case.places.values())
        with case.gaze.using(PAI(alpha=0.5, gamma=1.0, layers=(0, layers - 1))):
            assert not torch.equal(plain, logits_of(case.model, case.inputs(0, 1)))
        return "knock-out, PAI"
    with case.gaze.using(small_var(moved=0.0)):
        assert torch.equal(plain, logits_of(case.model, case.inputs(0, 1)))
    with case.gaze.using(small_var()):
        same_alone(case, logits_of(case.model, case.inputs(0, 1)))
    return "VAR, knock-out"


def same_alone(case: Case, batch: Tensor) -> None:
    """Logits [steps, B, V] of the batch equal those of each prompt alone, while their tokens agree."""
    for row in range(2) if case.entry.batch else ():
        alone = logits_of(case.model, case.inputs(row))[:, 0]
        same = batch[:, row].argmax(-1) == alone.argmax(-1)
        steps = 1 + int(same.long().cumprod(0).sum().clamp(max=len(same) - 1))
        torch.testing.assert_close(batch[:steps, row], alone[:steps], rtol=2e-4, atol=2e-4)


# Prompts ------------------------------------------------------------------------------------------------


def prompts(case: Case) -> str:
    """Roles are read from the inputs alone: several images, none, one after the question, several turns."""
    works = []
    if case.has_images:
        works += ["several"] if several_images(case) else []
        works += ["none"] if "none" not in case.entry.lacks and no_image(case) else []
    template = getattr(case.processor, "chat_template", None) is not None
    if template and case.has_images and "last" not in case.entry.lacks:
        question = QUESTIONS[1]
        reads(case, [Message("user", (question, Shown()))], [case.pictures[0]], question)
        works.append("last")
    if template and "turns" not in case.entry.lacks:
        first = Message("user", (*[Shown()] * case.has_images, QUESTIONS[0]))
        turns = [first, Message("assistant", ("Yes",)), Message("user", (QUESTIONS[1],))]
        reads(case, turns, case.pictures[:1] if case.has_images else [], QUESTIONS[1])
        works.append("turns")
    return ", ".join(works) or NONE


def several_images(case: Case) -> bool:
    if case.entry.images < 2:
        return False
    inputs = case.gaze.inputs([case.pictures], [QUESTIONS[0]])
    tokens = case.gaze.tokens(inputs)
    assert query_text(case, inputs, tokens, 0) == normalised(QUESTIONS[0])
    if case.crosses:
        with CrossTokens(case) as seen:
            logits_of(case.model, inputs, tokens=1)
        assert {view.image for view in seen.cross.views[0]} == {0, 1}
    else:
        assert {view.image for view in tokens.views[0]} == {0, 1}
        fresh = regaze.wrap(case.model, case.processor).tokens(inputs)
        for name in ("roles", "view", "cell"):
            assert torch.equal(getattr(tokens, name), getattr(fresh, name)), name
        assert tokens.views == fresh.views
    return True


def no_image(case: Case) -> bool:
    inputs = case.gaze.inputs([None], [QUESTIONS[0]])
    tokens = case.gaze.tokens(inputs)
    assert query_text(case, inputs, tokens, 0) == normalised(QUESTIONS[0])
    assert not tokens.mask(Role.IMAGE).any()
    return True


def reads(case: Case, messages: list[Message], images: list[Image.Image], question: str) -> None:
    """A user's own prompt, of which regaze gets the ids and the processor's other outputs."""
    gaze = regaze.wrap(case.model, case.processor)
    inputs = gaze.reader.tokenise([gaze.reader.apply_template(messages)], [images])
    tokens = gaze.tokens(inputs)
    assert query_text(case, inputs, tokens, 0) == normalised(question)
    if images and not case.crosses:
        assert tokens.mask(Role.IMAGE).any()


#: The columns of docs/reference/families.md.
CHECKS: dict[str, Callable[[Case], str]] = {
    "idle equal": idle,
    "roles": roles,
    "masses": masses,
    "methods": methods,
    "restored": restored,
    "prompts": prompts,
}


@cache
def outcome(entry: Entry, check: str) -> str:
    """The result of a check on a family; it runs once."""
    return CHECKS[check](case_of(entry))
